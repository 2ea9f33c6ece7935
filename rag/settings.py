"""Every setting of every process, read once from the environment and passed on as a frozen value.

Ground floor, and the only reader of the environment (ruff bans `os.environ` elsewhere). A value that is missing or
malformed refuses the start with a message that names the variable; nothing falls back in silence.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from rag.errors import Misconfigured

__all__ = ["SECRETS", "URL_SCHEMES", "VARIABLES", "Settings"]

DEFAULT_DATA_DIR = Path(".bulkhead")
DEFAULT_CERTS_DIR = Path("certs")
PRICE_PLACES = 6
MAX_PRICE = 1_000_000_000
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_HTTP = ("http://", "https://")
_POSTGRES = ("postgresql://", "postgres://")
URL_SCHEMES: Mapping[str, tuple[str, ...]] = {
    "database_url": _POSTGRES,
    "worker_database_url": _POSTGRES,
    "owner_database_url": _POSTGRES,
    "maintenance_database_url": _POSTGRES,
    "admin_database_url": _POSTGRES,
    "redis_url": ("redis://", "rediss://", "unix://"),
    "mcp_public_url": _HTTP,
    "a2a_public_url": _HTTP,
    "embeddings_url": _HTTP,
    "rerank_url": _HTTP,
    "llm_url": _HTTP,
    "otlp_endpoint": _HTTP,
    "external_issuer": _HTTP,
    "jwks_url": _HTTP,
}
OF_EXTERNAL_ISSUER = (
    "jwks_url",
    "jwks_keep_s",
    "mcp_audience",
    "a2a_audience",
    "tenant_claim",
    "groups_claim",
    "team_claim",
    "token_id_claim",
)
"""Settings that mean nothing without an external issuer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a process was told. Built by `Settings.from_env`; change one with `dataclasses.replace`."""

    data_dir: Path = DEFAULT_DATA_DIR
    """BULKHEAD_DATA_DIR: the embedded database, its secrets and logs."""
    certs_dir: Path = DEFAULT_CERTS_DIR
    """BULKHEAD_CERTS_DIR: signing keys, JWKS, development CA."""

    database_url: str | None = dataclasses.field(default=None, repr=False)
    """BULKHEAD_DATABASE_URL: the app role. Unset: the embedded PostgreSQL under `data_dir`."""
    worker_database_url: str | None = dataclasses.field(default=None, repr=False)
    """BULKHEAD_WORKER_DATABASE_URL: the worker's role, which may claim work of any tenant; no server's."""
    owner_database_url: str | None = dataclasses.field(default=None, repr=False)
    """BULKHEAD_OWNER_DATABASE_URL: migrations only."""
    maintenance_database_url: str | None = dataclasses.field(default=None, repr=False)
    """BULKHEAD_MAINTENANCE_DATABASE_URL: tenants, revocation, background upkeep."""
    admin_database_url: str | None = dataclasses.field(default=None, repr=False)
    """BULKHEAD_ADMIN_DATABASE_URL: an administrator, with whom `bulkhead migrate` creates roles; no server's."""
    seal_keys_file: Path | None = None
    """BULKHEAD_SEAL_KEYS_FILE: JSON {"active": kid, "keys": {kid: base64}}; at most two keys."""
    redis_url: str | None = dataclasses.field(default=None, repr=False)
    """BULKHEAD_REDIS_URL: shared limits and caches. Unset: per process."""
    pool_size: int = 8
    """BULKHEAD_POOL_SIZE: database connections per process."""

    token: str | None = dataclasses.field(default=None, repr=False)
    """BULKHEAD_TOKEN: what the command line presents instead of minting a token itself."""
    issuer: str = "https://bulkhead.localhost"
    """BULKHEAD_ISSUER: the `iss` of the tokens that we sign ourselves."""
    external_issuer: str | None = None
    jwks_url: str | None = None
    """BULKHEAD_EXTERNAL_ISSUER, BULKHEAD_JWKS_URL: whose tokens are taken besides ours, and where its keys are."""
    jwks_keep_s: float = 86_400.0
    """BULKHEAD_JWKS_KEEP_SECONDS: how long its last keys are good while it cannot be reached."""
    mcp_audience: str | None = None
    a2a_audience: str | None = None
    """BULKHEAD_MCP_AUDIENCE, BULKHEAD_A2A_AUDIENCE: `aud` of its tokens. Unset: the URL of the server they are for."""
    tenant_claim: str = "tenant_id"
    groups_claim: str = "groups"
    team_claim: str = "team"
    token_id_claim: str = "jti"  # noqa: S105  # a claim's name
    """BULKHEAD_TENANT_CLAIM, _GROUPS_CLAIM, _TEAM_CLAIM, _TOKEN_ID_CLAIM: what its tokens call these."""
    allowed_origins: str = ""
    """BULKHEAD_ALLOWED_ORIGINS: origins of browser clients of the MCP endpoint, separated by spaces."""
    mcp_host: str = "127.0.0.1"
    mcp_port: int = 8080
    """BULKHEAD_MCP_HOST, BULKHEAD_MCP_PORT."""
    a2a_host: str = "127.0.0.1"
    a2a_port: int = 8082
    """BULKHEAD_A2A_HOST, BULKHEAD_A2A_PORT."""
    a2a_grpc_host: str = "127.0.0.1"
    a2a_grpc_port: int | None = None
    """BULKHEAD_A2A_GRPC_HOST, BULKHEAD_A2A_GRPC_PORT. Unset or 0: no gRPC; `bulkhead up` sets one that is unset."""
    mcp_workers: int = 1
    """BULKHEAD_MCP_WORKERS: processes of the MCP face behind its one port; each has a pool of BULKHEAD_POOL_SIZE."""
    mcp_public_url: str | None = None
    """BULKHEAD_MCP_URL: where clients and the worker reach the MCP endpoint, such as https://mcp.example.com/mcp."""
    a2a_public_url: str | None = None
    """BULKHEAD_A2A_URL: the base URL that the agent card advertises."""
    a2a_grpc_public: str | None = None
    """BULKHEAD_A2A_GRPC_URL: the host:port at which the extended card says that gRPC is reached."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    """BULKHEAD_TLS_CERTIFICATE, BULKHEAD_TLS_KEY: PEM files; both or neither."""
    ca_certificate: Path | None = None
    """BULKHEAD_CA_CERTIFICATE: PEM bundle that our own clients trust besides the system's."""

    embeddings_url: str | None = None
    """BULKHEAD_EMBEDDINGS_URL: an OpenAI-compatible base URL ending in /v1. Unset: MiniLM on the CPU."""
    embeddings_model: str = "all-MiniLM-L6-v2"
    embeddings_dimension: int = 384
    embeddings_api_key: str | None = dataclasses.field(default=None, repr=False)
    """BULKHEAD_EMBEDDINGS_MODEL, _DIMENSION, _API_KEY: of tenants that have no model of their own."""
    embeddings_file: Path | None = None
    """BULKHEAD_EMBEDDINGS_FILE: JSON [{"model", "dimension", "url", "api_key_file"?}]: what tenants may change to."""
    embedder_threads: int = 1
    """BULKHEAD_EMBEDDER_THREADS: CPU threads of the local model in this process."""

    rerank_url: str | None = None
    """BULKHEAD_RERANK_URL: what stands before /rerank. Unset: hits stay in the order of their fused scores."""
    rerank_shape: str = "cohere"
    rerank_model: str | None = None
    rerank_api_key: str | None = dataclasses.field(default=None, repr=False)
    """BULKHEAD_RERANK_SHAPE (cohere, which vLLM and Jina speak too; or tei), _MODEL, _API_KEY."""
    search_cache: str = "on"
    """BULKHEAD_SEARCH_CACHE: on or off; results are kept in Redis where there is one, else in the process."""

    llm_url: str | None = None
    """BULKHEAD_LLM_URL: an OpenAI-compatible base URL ending in /v1 (vLLM). Unset: extractive answers, labelled so."""
    llm_model: str | None = None
    llm_api_key: str | None = dataclasses.field(default=None, repr=False)
    """BULKHEAD_LLM_MODEL, BULKHEAD_LLM_API_KEY."""
    llm_kind: str = "vllm"
    """BULKHEAD_LLM_KIND: vllm, openai or ollama: whether it knows /tokenize and cache_salt besides the OpenAI API.
    Unless told otherwise it does: tenants whose prefixes are not kept apart would not be noticed, a refusal is."""
    llm_concurrency: int = 16
    """BULKHEAD_LLM_CONCURRENCY: calls at a time of one worker to one model server; more wait, tenants in turn."""
    llm_prices: str | None = None
    """BULKHEAD_LLM_PRICES: "input,cached,output" of its tokens, for a million. Unset: not known."""
    llm_keys_file: Path | None = None
    """BULKHEAD_LLM_KEYS_FILE: JSON [{"url", "api_key_file"}]: keys of the catalogue's endpoints, by their base URL."""

    worker_slots: int = 4
    """BULKHEAD_WORKER_SLOTS: tasks that one worker process runs at a time."""
    lease_s: float = 6.0
    """BULKHEAD_LEASE_SECONDS: how long a silent worker keeps a task; with 6, another took over after 5 to 6 s."""
    input_timeout_s: float = 86_400.0
    """BULKHEAD_INPUT_TIMEOUT_SECONDS: how long a task that asks waits for its caller's answer before it fails."""
    index_build_mb: int = 256
    """BULKHEAD_INDEX_BUILD_MB: memory for building a vector index, which the database server's /dev/shm must have."""
    index_build_workers: int = 1
    """BULKHEAD_INDEX_BUILD_WORKERS: server processes that help with such a build; 0: none, and no shared memory."""
    request_limit_per_minute: int | None = None
    """BULKHEAD_REQUEST_LIMIT: one rate for every tenant and every user. Unset: what the tenant's tier says."""
    audit_durability: str = "writes"
    """BULKHEAD_AUDIT_DURABILITY: which operations wait for the database's disk to have their entry: writes, or all."""
    outbound_loopback: str = "off"
    """BULKHEAD_OUTBOUND_LOOPBACK: on or off; for tests: what a tenant names may be on this machine, in plain http."""
    test_fixtures: str = "off"
    """BULKHEAD_TEST_FIXTURES: on or off; for the A2A compatibility kit: what it sends is answered as it expects."""
    log_level: str = "INFO"
    """BULKHEAD_LOG_LEVEL: of our own loggers; libraries speak from WARNING on, whatever it is."""
    otlp_endpoint: str | None = None
    """OTEL_EXPORTER_OTLP_ENDPOINT: base URL of an OTLP/HTTP collector. Unset: no spans and metrics are exported."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read the settings out of `environ` (usually the process environment).

        A secret may also come as a file: NAME_FILE names it, for every NAME in SECRETS (Docker and Kubernetes secrets).

        Raises:
            Misconfigured: A variable is malformed, contradicts another, or starts with BULKHEAD_ and is unknown.
        """
        environ = _with_files(environ)
        unknown = sorted(name for name in environ if name.startswith("BULKHEAD_") and name not in VARIABLES)
        if unknown:
            meant = difflib.get_close_matches(unknown[0], VARIABLES, n=1, cutoff=0.85)
            hint = f"did you mean {meant[0]}? " if meant else ""
            raise Misconfigured(f"unknown setting {unknown[0]}; {hint}docs/configuration.md lists all of them")
        values: dict[str, object] = {}
        types = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        for variable, field in VARIABLES.items():
            text = environ.get(variable, "")
            if text != "":
                values[field] = _parse(variable, text, types[field])
        settings = cls(**values)  # pyright: ignore[reportArgumentType]  # _parse returned each field's declared type
        settings.check()
        return settings

    @classmethod
    def from_process(cls) -> Settings:
        """Read the settings of this process.

        Raises:
            Misconfigured: As `from_env`.
        """
        return cls.from_env(os.environ)  # noqa: TID251  # the one place that may

    def check(self) -> None:
        """Refuse combinations that cannot work.

        Raises:
            Misconfigured: With the variables to change.
        """
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise Misconfigured("set both BULKHEAD_TLS_CERTIFICATE and BULKHEAD_TLS_KEY, or neither")
        if self.database_url is not None and self.seal_keys_file is None:
            raise Misconfigured("BULKHEAD_DATABASE_URL needs BULKHEAD_SEAL_KEYS_FILE (made by `bulkhead migrate`)")
        if self.llm_url is not None and self.llm_model is None:
            raise Misconfigured("BULKHEAD_LLM_URL needs BULKHEAD_LLM_MODEL")
        if self.llm_url is None and self.llm_prices is not None:
            raise Misconfigured("BULKHEAD_LLM_PRICES needs BULKHEAD_LLM_URL, whose model they are the prices of")
        if self.llm_prices is not None:
            _prices(self.llm_prices)
        self._check_choices()
        self._check_search()
        for field, schemes in URL_SCHEMES.items():
            url: str | None = getattr(self, field)
            if url is not None and not _is_url(url, schemes):
                raise Misconfigured(f"{_variable(field)} must be a URL that begins with {' or '.join(schemes)}")
        self._check_external_issuer()
        self._check_ports()
        if self.log_level.upper() not in LOG_LEVELS:
            raise Misconfigured(f"BULKHEAD_LOG_LEVEL must be one of {', '.join(LOG_LEVELS)}")
        for variable, number in (
            ("BULKHEAD_POOL_SIZE", self.pool_size),
            ("BULKHEAD_EMBEDDINGS_DIMENSION", self.embeddings_dimension),
            ("BULKHEAD_MCP_WORKERS", self.mcp_workers),
            ("BULKHEAD_WORKER_SLOTS", self.worker_slots),
            ("BULKHEAD_LLM_CONCURRENCY", self.llm_concurrency),
            ("BULKHEAD_LEASE_SECONDS", self.lease_s),
            ("BULKHEAD_INPUT_TIMEOUT_SECONDS", self.input_timeout_s),
            ("BULKHEAD_JWKS_KEEP_SECONDS", self.jwks_keep_s),
            ("BULKHEAD_INDEX_BUILD_MB", self.index_build_mb),
            ("BULKHEAD_REQUEST_LIMIT", self.request_limit_per_minute),
        ):
            if number is not None and number <= 0:
                raise Misconfigured(f"{variable} must be greater than 0")

    def _check_ports(self) -> None:
        for field in ("mcp_port", "a2a_port"):
            if not 1 <= getattr(self, field) <= 65535:
                raise Misconfigured(f"{_variable(field)} must be between 1 and 65535")
        if not 0 <= (self.a2a_grpc_port or 0) <= 65535:
            raise Misconfigured("BULKHEAD_A2A_GRPC_PORT must be between 1 and 65535, or 0 for no gRPC")
        if self.a2a_grpc_port in {self.mcp_port, self.a2a_port}:
            raise Misconfigured("BULKHEAD_A2A_GRPC_PORT must differ from the ports of the two servers")
        if (self.mcp_host, self.mcp_port) == (self.a2a_host, self.a2a_port):
            raise Misconfigured("BULKHEAD_MCP_PORT and BULKHEAD_A2A_PORT must differ: each server listens on its own")

    def _check_choices(self) -> None:
        for variable, value, choices in (
            ("BULKHEAD_RERANK_SHAPE", self.rerank_shape, ("cohere", "tei")),
            ("BULKHEAD_SEARCH_CACHE", self.search_cache, ("on", "off")),
            ("BULKHEAD_LLM_KIND", self.llm_kind, ("vllm", "openai", "ollama")),
            ("BULKHEAD_AUDIT_DURABILITY", self.audit_durability, ("writes", "all")),
            ("BULKHEAD_OUTBOUND_LOOPBACK", self.outbound_loopback, ("on", "off")),
            ("BULKHEAD_TEST_FIXTURES", self.test_fixtures, ("on", "off")),
        ):
            if value not in choices:
                raise Misconfigured(f"{variable} must be {' or '.join(choices)}")

    def _check_search(self) -> None:
        if self.index_build_workers < 0:
            raise Misconfigured("BULKHEAD_INDEX_BUILD_WORKERS must not be negative")
        if self.rerank_url is not None and self.rerank_shape == "cohere" and self.rerank_model is None:
            raise Misconfigured("BULKHEAD_RERANK_URL needs BULKHEAD_RERANK_MODEL, unless BULKHEAD_RERANK_SHAPE is tei")

    def _check_external_issuer(self) -> None:
        for origin in self.allowed_origins.split():
            if not _is_origin(origin):
                raise Misconfigured(f"BULKHEAD_ALLOWED_ORIGINS: {origin} is not like https://app.example.com")
        if self.external_issuer is None:
            defaults = {field.name: field.default for field in dataclasses.fields(self)}
            for field in OF_EXTERNAL_ISSUER:
                if getattr(self, field) != defaults[field]:
                    raise Misconfigured(f"{_variable(field)} needs BULKHEAD_EXTERNAL_ISSUER, whose tokens it is about")
            return
        if self.jwks_url is None:
            raise Misconfigured("BULKHEAD_EXTERNAL_ISSUER needs BULKHEAD_JWKS_URL, where its keys are")
        if self.external_issuer == self.issuer:
            raise Misconfigured(
                "BULKHEAD_EXTERNAL_ISSUER is BULKHEAD_ISSUER: the two must be told apart by their names"
            )
        for field in ("external_issuer", "jwks_url"):
            if not _is_safe(getattr(self, field)):
                raise Misconfigured(f"{_variable(field)} must begin with https://, unless it is on this machine")
        if self.external_mcp_audience == self.external_a2a_audience:
            raise Misconfigured("BULKHEAD_MCP_AUDIENCE and BULKHEAD_A2A_AUDIENCE must differ: a token is for one door")

    @property
    def allows_loopback(self) -> bool:
        """Whether `rag.outbound` may reach this machine."""
        return self.outbound_loopback == "on"

    @property
    def llm_price(self) -> tuple[Decimal, Decimal, Decimal] | None:
        """Prices of input, cached input and output of the configured model, for a million tokens; None: not known."""
        return None if self.llm_prices is None else _prices(self.llm_prices)

    @property
    def external_mcp_audience(self) -> str:
        """`aud` of an external issuer's token for the MCP server: by default the resource that its client names."""
        return self.mcp_audience or self.mcp_url

    @property
    def external_a2a_audience(self) -> str:
        """`aud` of an external issuer's token for the A2A server."""
        return self.a2a_audience or self.a2a_url

    @property
    def scheme(self) -> str:
        """`https` when the servers hold a certificate."""
        return "https" if self.tls_certificate else "http"

    @property
    def mcp_url(self) -> str:
        """Where the MCP endpoint is reached."""
        return self.mcp_public_url or f"{self.scheme}://{self.mcp_host}:{self.mcp_port}/mcp"

    @property
    def a2a_url(self) -> str:
        """The A2A server's base URL, without a trailing slash."""
        return (self.a2a_public_url or f"{self.scheme}://{self.a2a_host}:{self.a2a_port}").rstrip("/")

    @property
    def a2a_grpc_url(self) -> str | None:
        """The host:port at which gRPC is reached; None where it is not."""
        if not self.a2a_grpc_port:
            return None
        return self.a2a_grpc_public or f"{self.a2a_grpc_host}:{self.a2a_grpc_port}"

    def to_env(self) -> dict[str, str]:
        """Return the environment that makes a child process read these same settings."""
        out: dict[str, str] = {}
        for variable, field in VARIABLES.items():
            value = getattr(self, field)
            if value is not None:
                out[variable] = str(value.resolve()) if isinstance(value, Path) else str(value)
        return out


VARIABLES: dict[str, str] = {
    "BULKHEAD_DATA_DIR": "data_dir",
    "BULKHEAD_CERTS_DIR": "certs_dir",
    "BULKHEAD_DATABASE_URL": "database_url",
    "BULKHEAD_WORKER_DATABASE_URL": "worker_database_url",
    "BULKHEAD_OWNER_DATABASE_URL": "owner_database_url",
    "BULKHEAD_MAINTENANCE_DATABASE_URL": "maintenance_database_url",
    "BULKHEAD_ADMIN_DATABASE_URL": "admin_database_url",
    "BULKHEAD_SEAL_KEYS_FILE": "seal_keys_file",
    "BULKHEAD_REDIS_URL": "redis_url",
    "BULKHEAD_POOL_SIZE": "pool_size",
    "BULKHEAD_TOKEN": "token",
    "BULKHEAD_ISSUER": "issuer",
    "BULKHEAD_EXTERNAL_ISSUER": "external_issuer",
    "BULKHEAD_JWKS_URL": "jwks_url",
    "BULKHEAD_JWKS_KEEP_SECONDS": "jwks_keep_s",
    "BULKHEAD_MCP_AUDIENCE": "mcp_audience",
    "BULKHEAD_A2A_AUDIENCE": "a2a_audience",
    "BULKHEAD_TENANT_CLAIM": "tenant_claim",
    "BULKHEAD_GROUPS_CLAIM": "groups_claim",
    "BULKHEAD_TEAM_CLAIM": "team_claim",
    "BULKHEAD_TOKEN_ID_CLAIM": "token_id_claim",
    "BULKHEAD_ALLOWED_ORIGINS": "allowed_origins",
    "BULKHEAD_MCP_HOST": "mcp_host",
    "BULKHEAD_MCP_PORT": "mcp_port",
    "BULKHEAD_A2A_HOST": "a2a_host",
    "BULKHEAD_A2A_PORT": "a2a_port",
    "BULKHEAD_A2A_GRPC_HOST": "a2a_grpc_host",
    "BULKHEAD_A2A_GRPC_PORT": "a2a_grpc_port",
    "BULKHEAD_A2A_GRPC_URL": "a2a_grpc_public",
    "BULKHEAD_MCP_WORKERS": "mcp_workers",
    "BULKHEAD_MCP_URL": "mcp_public_url",
    "BULKHEAD_A2A_URL": "a2a_public_url",
    "BULKHEAD_TLS_CERTIFICATE": "tls_certificate",
    "BULKHEAD_TLS_KEY": "tls_key",
    "BULKHEAD_CA_CERTIFICATE": "ca_certificate",
    "BULKHEAD_EMBEDDINGS_URL": "embeddings_url",
    "BULKHEAD_EMBEDDINGS_MODEL": "embeddings_model",
    "BULKHEAD_EMBEDDINGS_DIMENSION": "embeddings_dimension",
    "BULKHEAD_EMBEDDINGS_API_KEY": "embeddings_api_key",
    "BULKHEAD_EMBEDDINGS_FILE": "embeddings_file",
    "BULKHEAD_EMBEDDER_THREADS": "embedder_threads",
    "BULKHEAD_RERANK_URL": "rerank_url",
    "BULKHEAD_RERANK_SHAPE": "rerank_shape",
    "BULKHEAD_RERANK_MODEL": "rerank_model",
    "BULKHEAD_RERANK_API_KEY": "rerank_api_key",
    "BULKHEAD_SEARCH_CACHE": "search_cache",
    "BULKHEAD_LLM_URL": "llm_url",
    "BULKHEAD_LLM_MODEL": "llm_model",
    "BULKHEAD_LLM_API_KEY": "llm_api_key",
    "BULKHEAD_LLM_KIND": "llm_kind",
    "BULKHEAD_LLM_CONCURRENCY": "llm_concurrency",
    "BULKHEAD_LLM_PRICES": "llm_prices",
    "BULKHEAD_LLM_KEYS_FILE": "llm_keys_file",
    "BULKHEAD_WORKER_SLOTS": "worker_slots",
    "BULKHEAD_LEASE_SECONDS": "lease_s",
    "BULKHEAD_INPUT_TIMEOUT_SECONDS": "input_timeout_s",
    "BULKHEAD_INDEX_BUILD_MB": "index_build_mb",
    "BULKHEAD_INDEX_BUILD_WORKERS": "index_build_workers",
    "BULKHEAD_REQUEST_LIMIT": "request_limit_per_minute",
    "BULKHEAD_AUDIT_DURABILITY": "audit_durability",
    "BULKHEAD_OUTBOUND_LOOPBACK": "outbound_loopback",
    "BULKHEAD_TEST_FIXTURES": "test_fixtures",
    "BULKHEAD_LOG_LEVEL": "log_level",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "otlp_endpoint",
}


SECRETS = frozenset(
    {
        "BULKHEAD_DATABASE_URL",
        "BULKHEAD_WORKER_DATABASE_URL",
        "BULKHEAD_OWNER_DATABASE_URL",
        "BULKHEAD_MAINTENANCE_DATABASE_URL",
        "BULKHEAD_ADMIN_DATABASE_URL",
        "BULKHEAD_REDIS_URL",
        "BULKHEAD_TOKEN",
        "BULKHEAD_EMBEDDINGS_API_KEY",
        "BULKHEAD_LLM_API_KEY",
        "BULKHEAD_RERANK_API_KEY",
    }
)


def _variable(field: str) -> str:
    return next(variable for variable, named in VARIABLES.items() if named == field)


def _is_url(text: str, schemes: tuple[str, ...]) -> bool:
    if not text.startswith(schemes):
        return False
    if schemes is not _HTTP:  # PostgreSQL's may name several hosts and ports
        return True
    try:
        parts = urlsplit(text)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _prices(text: str) -> tuple[Decimal, Decimal, Decimal]:
    try:
        told, cached, output = (Decimal(number) for number in text.split(","))
        numbers = (told, cached, output)
        fit = all(0 <= one <= MAX_PRICE and int(one.as_tuple().exponent) >= -PRICE_PLACES for one in numbers)
    except (InvalidOperation, ValueError):
        pass
    else:
        if fit and cached <= told:
            return numbers
    raise Misconfigured(
        "BULKHEAD_LLM_PRICES is input,cached,output for a million tokens, such as 0.5,0.05,1.5: up to "
        f"{PRICE_PLACES} decimal places, and cached input is no dearer than input"
    )


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    if parts.username is not None or parts.fragment:
        return False
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _is_origin(text: str) -> bool:
    return _is_url(text, _HTTP) and "*" not in text and text == "{0.scheme}://{0.netloc}".format(urlsplit(text))


def _with_files(environ: Mapping[str, str]) -> dict[str, str]:
    values = dict(environ)
    for variable in SECRETS:
        path = values.pop(f"{variable}_FILE", "")
        if not path:
            continue
        if values.get(variable):
            raise Misconfigured(f"set {variable} or {variable}_FILE, not both")
        try:
            values[variable] = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as exc:
            raise Misconfigured(f"the file that {variable}_FILE names cannot be read") from exc
    return values


def _parse(variable: str, text: str, declared: str) -> object:
    declared = declared.removesuffix(" | None")
    try:
        if declared == "int":
            return int(text)
        if declared == "float":
            return float(text)
    except ValueError as exc:
        raise Misconfigured(f"{variable} must be a number, not {text!r}") from exc
    return Path(text) if declared.startswith("Path") else text
