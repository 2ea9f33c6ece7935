"""Settings: read once, refused when they cannot work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rag.errors import Misconfigured
from rag.settings import VARIABLES, Settings


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.from_env({})
    assert settings == Settings()
    assert settings.mcp_url == "http://127.0.0.1:8080/mcp"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"BULKHEAD_MCP_PROT": "1"}, "unknown setting BULKHEAD_MCP_PROT; did you mean BULKHEAD_MCP_PORT"),
        ({"BULKHEAD_ELEPHANT": "1"}, "unknown setting BULKHEAD_ELEPHANT; docs/configuration.md"),
        ({"BULKHEAD_MCP_PORT": "70000"}, "BULKHEAD_MCP_PORT must be between 1 and 65535"),
        ({"BULKHEAD_A2A_PORT": "8080"}, "must differ"),
        ({"BULKHEAD_LOG_LEVEL": "loud"}, "BULKHEAD_LOG_LEVEL must be one of DEBUG"),
        ({"BULKHEAD_REDIS_URL": "localhost:6379"}, "BULKHEAD_REDIS_URL must be a URL that begins with redis://"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT must be a URL"),
        ({"BULKHEAD_EMBEDDINGS_URL": "http://there:port/v1"}, "BULKHEAD_EMBEDDINGS_URL must be a URL"),
        ({"BULKHEAD_DATABASE_URL": "there", "BULKHEAD_SEAL_KEYS_FILE": "x"}, "BULKHEAD_DATABASE_URL must be a URL"),
        ({"BULKHEAD_MCP_PORT": "eighty"}, "BULKHEAD_MCP_PORT must be a number"),
        ({"BULKHEAD_POOL_SIZE": "0"}, "BULKHEAD_POOL_SIZE must be greater than 0"),
        ({"BULKHEAD_TLS_KEY": "k.pem"}, "set both"),
        ({"BULKHEAD_LLM_URL": "http://x/v1"}, "needs BULKHEAD_LLM_MODEL"),
        ({"BULKHEAD_LLM_URL": "ftp://x", "BULKHEAD_LLM_MODEL": "m"}, "begins with http:// or https://"),
        ({"BULKHEAD_DATABASE_URL": "postgresql://x"}, "BULKHEAD_SEAL_KEYS_FILE"),
        ({"BULKHEAD_REDIS_URL_FILE": "/nowhere/at/all"}, "cannot be read"),
        ({"BULKHEAD_REDIS_URL_FILE": "/x", "BULKHEAD_REDIS_URL": "redis://x"}, "not both"),
    ],
)
def test_what_cannot_work_is_refused_by_name(environ: dict[str, str], message: str) -> None:
    with pytest.raises(Misconfigured, match=message):
        Settings.from_env(environ)


def test_a_child_process_reads_the_same_settings(tmp_path: Path) -> None:
    settings = Settings.from_env(
        {"BULKHEAD_DATA_DIR": str(tmp_path), "BULKHEAD_LEASE_SECONDS": "2.5", "BULKHEAD_MCP_PORT": "9000"}
    )
    again = Settings.from_env(settings.to_env())
    assert (again.data_dir, again.lease_s, again.mcp_port) == (tmp_path, 2.5, 9000)


def test_a_secret_may_come_as_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "redis"
    secret.write_text("redis://there\n", encoding="utf-8")
    assert Settings.from_env({"BULKHEAD_REDIS_URL_FILE": str(secret)}).redis_url == "redis://there"


def test_every_setting_is_documented_and_nothing_else_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`((?:BULKHEAD|OTEL)_[A-Z0-9_]+)`", page))
    assert documented == set(VARIABLES)
