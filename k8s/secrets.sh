#!/bin/sh
# Print the Kubernetes Secrets that k8s/base refers to, out of a folder made by `bulkhead secrets init`:
#
#   sh k8s/secrets.sh secrets | kubectl apply --filename -
#
# Each Secret holds what one kind of pod needs and no more. Nothing is printed unless every file is there.
set -eu
directory=${1:?usage: sh k8s/secrets.sh DIR [NAMESPACE]}
namespace=${2:-bulkhead}
cd "$directory"

secret() {
    echo '---'
    kubectl create secret "$@" --namespace "$namespace" --dry-run=client --output yaml
}

manifests=$(
    set -e
    secret generic bulkhead-app --from-file app-database-url --from-file seal-keys.json --from-file redis-url
    secret generic bulkhead-worker --from-file worker-database-url
    secret generic bulkhead-migrate --from-file admin-database-url --from-file owner-database-url \
        --from-file maintenance-database-url
    secret generic bulkhead-operator --from-file maintenance-database-url
    secret generic bulkhead-postgres --from-file postgres-admin-password
    secret generic bulkhead-redis --from-file redis.conf
    secret generic bulkhead-jwks --from-file signing/jwks.json
    secret generic bulkhead-signing --from-file signing
    secret generic bulkhead-outward --from-file outward
    secret generic bulkhead-ca --from-file tls/ca.pem
    secret tls bulkhead-tls --cert tls/server.pem --key tls/server-key.pem
    secret generic bulkhead-llm --from-file llm-api-key
)
printf '%s\n' "$manifests"
