"""The development certificates in front of a real TLS server, judged by a real client."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import anyio
import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from rag.errors import Misconfigured
from rag.identity import tls
from rag.identity.tls import TlsFiles, ensure_development_tls

BOUND_S = 10.0
DAY_S = 86400.0
NOW = 1_800_000_000.0


async def _hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


@contextmanager
def _server(files: TlsFiles) -> Generator[int]:
    """Serve over TLS, as the real servers do, on every loopback address; yield the port."""
    listening = socket.create_server(("127.0.0.1", 0))
    started = threading.Event()

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            started.set()

    config = uvicorn.Config(
        Starlette(routes=[Route("/", _hello)]),
        ssl_certfile=files.certificate,
        ssl_keyfile=files.key,
        log_config=None,
        lifespan="off",
    )
    server = Announcing(config)
    thread = threading.Thread(target=anyio.run, args=(server.serve, [listening]), daemon=True)
    thread.start()
    try:
        assert started.wait(BOUND_S), "the server did not start"
        yield int(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(BOUND_S)
        listening.close()
        assert not thread.is_alive()


def _get(url: str, context: ssl.SSLContext) -> str:
    with httpx.Client(verify=context, trust_env=False, timeout=BOUND_S) as client:
        return client.get(url).raise_for_status().text


def _strict(ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    return context


def test_a_client_that_trusts_the_authority_is_served_and_any_other_refuses(tmp_path: Path) -> None:
    files = ensure_development_tls(tmp_path)
    with _server(files) as port:
        assert _get(f"https://localhost:{port}/", _strict(files.ca)) == "hello"
        assert _get(f"https://127.0.0.1:{port}/", _strict(files.ca)) == "hello"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            _get(f"https://localhost:{port}/", ssl.create_default_context())
        other = ensure_development_tls(tmp_path / "other")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            _get(f"https://localhost:{port}/", _strict(other.ca))


def test_a_certificate_for_another_host_is_refused(tmp_path: Path) -> None:
    files = ensure_development_tls(tmp_path, ["mcp-server"])
    with _server(files) as port, pytest.raises(httpx.ConnectError, match=r"Hostname mismatch|not valid for"):
        _get(f"https://localhost:{port}/", _strict(files.ca))


def test_keys_are_private_and_the_authority_may_issue_server_certificates_only(tmp_path: Path) -> None:
    files = ensure_development_tls(tmp_path)
    for path in (files.ca_key, files.key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ca, server = (x509.load_pem_x509_certificate(path.read_bytes()) for path in (files.ca, files.certificate))
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    purposes = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
    lifetime = server.not_valid_after_utc - server.not_valid_before_utc
    assert lifetime == tls.SERVER_LIFETIME + tls.CLOCK_SKEW


def test_the_files_are_kept_until_the_certificate_nears_its_end(tmp_path: Path) -> None:
    files = ensure_development_tls(tmp_path, clock=lambda: NOW)
    ca, first = files.ca.read_bytes(), files.certificate.read_bytes()
    last_day_s = (tls.SERVER_LIFETIME - tls.RENEW_BEFORE) / timedelta(days=1) * DAY_S
    ensure_development_tls(tmp_path, clock=lambda: NOW + last_day_s - 60)
    assert files.certificate.read_bytes() == first
    ensure_development_tls(tmp_path, clock=lambda: NOW + last_day_s + 60)
    assert files.certificate.read_bytes() != first
    assert files.ca.read_bytes() == ca


def test_other_hosts_or_a_damaged_pair_bring_a_new_certificate_from_the_same_authority(tmp_path: Path) -> None:
    files = ensure_development_tls(tmp_path)
    ca, first = files.ca.read_bytes(), files.certificate.read_bytes()
    ensure_development_tls(tmp_path, ["::1", "127.0.0.1", "localhost"])
    assert files.certificate.read_bytes() == first, "the order of hosts does not matter"
    ensure_development_tls(tmp_path, ["localhost", "mcp-server"])
    second = files.certificate.read_bytes()
    assert second != first
    files.key.unlink()
    ensure_development_tls(tmp_path, ["localhost", "mcp-server"])
    assert files.certificate.read_bytes() != second
    assert files.ca.read_bytes() == ca


def test_an_authority_that_others_trust_is_never_replaced(tmp_path: Path) -> None:
    files = ensure_development_tls(tmp_path, clock=lambda: NOW)
    ca = files.ca.read_bytes()
    files.ca_key.unlink()
    ensure_development_tls(tmp_path, clock=lambda: NOW)  # nothing is due: fine without the key
    with pytest.raises(Misconfigured, match=r"ca-key\.pem is gone"):
        ensure_development_tls(tmp_path, ["elsewhere"], clock=lambda: NOW)
    with pytest.raises(Misconfigured, match="have every client trust"):
        ensure_development_tls(tmp_path, clock=lambda: NOW + tls.CA_LIFETIME / timedelta(seconds=1))
    stranger = ensure_development_tls(tmp_path / "stranger", clock=lambda: NOW)
    files.ca_key.write_bytes(stranger.ca_key.read_bytes())
    with pytest.raises(Misconfigured, match="does not belong"):
        ensure_development_tls(tmp_path, clock=lambda: NOW)
    assert files.ca.read_bytes() == ca
    files.ca.write_bytes(b"not a certificate")
    with pytest.raises(Misconfigured, match="not a certificate"):
        ensure_development_tls(tmp_path, clock=lambda: NOW)


@pytest.mark.parametrize("hosts", [[], ["a" * 64], [""]])
def test_hosts_that_cannot_be_certified_are_refused(tmp_path: Path, hosts: list[str]) -> None:
    with pytest.raises(Misconfigured, match="host"):
        ensure_development_tls(tmp_path, hosts)
