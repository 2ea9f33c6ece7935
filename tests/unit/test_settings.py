"""Settings: read once, refused when they cannot work."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest

from rag.errors import Misconfigured
from rag.settings import SECRETS, VARIABLES, Settings

EXTERNAL = {"BULKHEAD_EXTERNAL_ISSUER": "https://login.test", "BULKHEAD_JWKS_URL": "https://login.test/keys"}
MODEL = {"BULKHEAD_LLM_URL": "http://gpu/v1", "BULKHEAD_LLM_MODEL": "m"}


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
        ({"BULKHEAD_A2A_GRPC_PORT": "-1"}, "BULKHEAD_A2A_GRPC_PORT must be between"),
        ({"BULKHEAD_A2A_GRPC_PORT": "8082"}, "BULKHEAD_A2A_GRPC_PORT must differ"),
        ({"BULKHEAD_TEST_FIXTURES": "yes"}, "BULKHEAD_TEST_FIXTURES must be on or off"),
        ({"BULKHEAD_LOG_LEVEL": "loud"}, "BULKHEAD_LOG_LEVEL must be one of DEBUG"),
        ({"BULKHEAD_REDIS_URL": "localhost:6379"}, "BULKHEAD_REDIS_URL must be a URL that begins with redis://"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT must be a URL"),
        ({"BULKHEAD_EMBEDDINGS_URL": "http://there:port/v1"}, "BULKHEAD_EMBEDDINGS_URL must be a URL"),
        ({"BULKHEAD_DATABASE_URL": "there", "BULKHEAD_SEAL_KEYS_FILE": "x"}, "BULKHEAD_DATABASE_URL must be a URL"),
        ({"BULKHEAD_MCP_PORT": "eighty"}, "BULKHEAD_MCP_PORT must be a number"),
        ({"BULKHEAD_POOL_SIZE": "0"}, "BULKHEAD_POOL_SIZE must be greater than 0"),
        ({"BULKHEAD_TLS_KEY": "k.pem"}, "set both"),
        ({"BULKHEAD_LLM_URL": "http://x/v1"}, "needs BULKHEAD_LLM_MODEL"),
        ({"BULKHEAD_LLM_KIND": "tgi"}, "BULKHEAD_LLM_KIND must be vllm or openai or ollama"),
        ({"BULKHEAD_LLM_PRICES": "1,1,1"}, "BULKHEAD_LLM_PRICES needs BULKHEAD_LLM_URL"),
        ({**MODEL, "BULKHEAD_LLM_PRICES": "1,1"}, "input,cached,output for a million"),
        ({**MODEL, "BULKHEAD_LLM_PRICES": "1,2,3"}, "cached input is no dearer"),
        ({**MODEL, "BULKHEAD_LLM_PRICES": "1,1,0.0000001"}, "up to 6 decimal places"),
        ({**MODEL, "BULKHEAD_LLM_PRICES": "1,1,NaN"}, "BULKHEAD_LLM_PRICES is"),
        ({**MODEL, "BULKHEAD_LLM_PRICES": "1,1,Infinity"}, "BULKHEAD_LLM_PRICES is"),
        ({**MODEL, "BULKHEAD_LLM_PRICES": "1,1,-1"}, "BULKHEAD_LLM_PRICES is"),
        ({**MODEL, "BULKHEAD_LLM_PRICES": "one,1,1"}, "BULKHEAD_LLM_PRICES is"),
        ({"BULKHEAD_LLM_URL": "ftp://x", "BULKHEAD_LLM_MODEL": "m"}, "begins with http:// or https://"),
        ({"BULKHEAD_DATABASE_URL": "postgresql://x"}, "BULKHEAD_SEAL_KEYS_FILE"),
        ({"BULKHEAD_REDIS_URL_FILE": "/nowhere/at/all"}, "cannot be read"),
        ({"BULKHEAD_JWKS_URL": "https://login.test/keys"}, "BULKHEAD_JWKS_URL needs BULKHEAD_EXTERNAL_ISSUER"),
        ({"BULKHEAD_MCP_AUDIENCE": "mcp"}, "BULKHEAD_MCP_AUDIENCE needs BULKHEAD_EXTERNAL_ISSUER"),
        ({"BULKHEAD_EXTERNAL_ISSUER": "https://login.test"}, "needs BULKHEAD_JWKS_URL"),
        ({**EXTERNAL, "BULKHEAD_ISSUER": "https://login.test"}, "told apart"),
        (
            {**EXTERNAL, "BULKHEAD_EXTERNAL_ISSUER": "http://login.test"},
            "BULKHEAD_EXTERNAL_ISSUER must begin with https",
        ),
        ({**EXTERNAL, "BULKHEAD_JWKS_URL": "http://login.test/keys"}, "BULKHEAD_JWKS_URL must begin with https"),
        ({**EXTERNAL, "BULKHEAD_JWKS_URL": "http://127.0.0.1.evil.test/"}, "BULKHEAD_JWKS_URL must begin with https"),
        ({**EXTERNAL, "BULKHEAD_JWKS_URL": "https://a:b@login.test/keys"}, "BULKHEAD_JWKS_URL must begin with https"),
        ({**EXTERNAL, "BULKHEAD_JWKS_URL": "file:///etc/keys"}, "BULKHEAD_JWKS_URL must be a URL"),
        ({**EXTERNAL, "BULKHEAD_MCP_AUDIENCE": "one", "BULKHEAD_A2A_AUDIENCE": "one"}, "must differ"),
        ({**EXTERNAL, "BULKHEAD_JWKS_KEEP_SECONDS": "0"}, "BULKHEAD_JWKS_KEEP_SECONDS must be greater than 0"),
        ({"BULKHEAD_ALLOWED_ORIGINS": "https://a.test https://b.test/"}, "https://b.test/ is not like"),
        ({"BULKHEAD_ALLOWED_ORIGINS": "*"}, "is not like"),
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


def test_the_prices_of_the_configured_model_are_exact_decimals() -> None:
    settings = Settings.from_env({**MODEL, "BULKHEAD_LLM_PRICES": "0.50, 0.1,1.500001"})
    assert settings.llm_price == (Decimal("0.5"), Decimal("0.1"), Decimal("1.500001"))
    assert Settings.from_env(settings.to_env()).llm_price == settings.llm_price
    assert Settings.from_env(MODEL).llm_price is None


def test_an_external_issuer_s_tokens_are_for_the_url_of_the_server_that_they_go_to() -> None:
    settings = Settings.from_env({**EXTERNAL, "BULKHEAD_MCP_URL": "https://mcp.test/mcp", "BULKHEAD_A2A_AUDIENCE": "a"})
    assert (settings.external_mcp_audience, settings.external_a2a_audience) == ("https://mcp.test/mcp", "a")
    for loopback in ("http://localhost:9000/keys", "http://127.0.0.1/keys", "http://[::1]:1/keys"):
        assert Settings.from_env({**EXTERNAL, "BULKHEAD_JWKS_URL": loopback}).jwks_url == loopback
    assert Settings.from_env(settings.to_env()).jwks_url == settings.jwks_url


def test_a_secret_may_come_as_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "redis"
    secret.write_text("redis://there\n", encoding="utf-8")
    assert Settings.from_env({"BULKHEAD_REDIS_URL_FILE": str(secret)}).redis_url == "redis://there"


def test_every_setting_is_documented_and_nothing_else_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`((?:BULKHEAD|OTEL)_[A-Z0-9_]+)`", page))
    assert documented == set(VARIABLES)


def test_no_secret_shows_when_settings_are_printed() -> None:
    secrets = dict.fromkeys(SECRETS, "postgresql://app:hush@db/x") | {"BULKHEAD_REDIS_URL": "redis://:hush@redis"}
    text = repr(Settings.from_env({**secrets, "BULKHEAD_SEAL_KEYS_FILE": "seal.json"}))
    assert "hush" not in text
    assert "seal.json" in text
