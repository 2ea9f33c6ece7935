# One image, four services: python -m mcp_server | a2a_server | workflows | rag.cli maintain; `bulkhead migrate` prepares all.
# The compose file and k8s/base bring probes, limits, secrets and a read-only root file system.

FROM python:3.11.15-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/bulkhead
ENV PATH=/opt/bulkhead/bin:$PATH
WORKDIR /src
# dependencies in a layer of their own: it changes with the lock and not with the code
COPY requirements.lock ./
RUN python -m pip install --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY sql sql
COPY rag rag
COPY workflows workflows
COPY mcp_server mcp_server
COPY a2a_server a2a_server
RUN python -m pip install --no-deps --no-build-isolation . \
    && python -m pip uninstall --yes hatchling editables pip setuptools

FROM python:3.11.15-slim-bookworm
RUN python -m pip uninstall --yes --root-user-action ignore pip setuptools wheel \
    && groupadd --gid 10001 bulkhead \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin bulkhead
COPY --from=build /opt/bulkhead /opt/bulkhead
# Nothing is written outside /tmp, which the deployment mounts; any other uid works as well.
ENV PATH=/opt/bulkhead/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:10001
ENTRYPOINT ["python", "-m"]
CMD ["mcp_server"]
