"""A certificate authority and a server certificate for development, made on demand in the certificates folder.

    certs/ca.pem          the authority, for clients to trust; P-256, may issue server certificates and nothing else
    certs/ca-key.pem      its key, 0600
    certs/server.pem      the servers' certificate, renewed before it expires
    certs/server-key.pem  its key, 0600

Below: `keys` for writing files. Above: the CLI. Production brings certificates of its own and calls nothing here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rag.clock import Clock, system_clock
from rag.errors import Misconfigured
from rag.identity.keys import turn, write_private

__all__ = ["DEVELOPMENT_HOSTS", "TlsFiles", "ensure_development_tls"]

DEVELOPMENT_HOSTS = ("localhost", "127.0.0.1", "::1")
CA_LIFETIME = timedelta(days=5 * 365)
SERVER_LIFETIME = timedelta(days=90)
RENEW_BEFORE = timedelta(days=14)
CLOCK_SKEW = timedelta(minutes=5)
"""Certificates begin a little in the past, for clients whose clocks are behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where the PEM files lie."""

    ca: Path
    ca_key: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | None
    """None where the key was taken away: what was issued stays valid, nothing can be issued."""


def ensure_development_tls(
    certs_dir: Path, hosts: Iterable[str] = DEVELOPMENT_HOSTS, *, clock: Clock = system_clock
) -> TlsFiles:
    """Return a server certificate for `hosts` (names or addresses) that `ca.pem` vouches for, making what is missing.

    The server certificate is issued anew when it nears its end, `hosts` changed or it does not belong to the authority.
    The authority is made once and never replaced: others may trust it.

    Raises:
        Misconfigured: The authority is damaged, expires, or its key is gone and a certificate is due.
    """
    files = TlsFiles(
        ca=certs_dir / "ca.pem",
        ca_key=certs_dir / "ca-key.pem",
        certificate=certs_dir / "server.pem",
        key=certs_dir / "server-key.pem",
    )
    names = sorted({_general_name(host) for host in hosts if host}, key=str)
    if not names:
        raise Misconfigured("a server certificate needs at least one host name")
    certs_dir.mkdir(parents=True, exist_ok=True)
    now = datetime.fromtimestamp(clock(), UTC)
    with turn(certs_dir):
        authority = _read_authority(files, now) if files.ca.exists() else _make_authority(files, now)
        if not _serves(files, authority, names, now):
            _issue(files, authority, names, now)
    return files


def _make_authority(files: TlsFiles, now: datetime) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Bulkhead development CA {now:%Y-%m-%d}")])
    certificate = (
        _builder(subject=name, issuer=name, key=key.public_key(), now=now, until=now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_key(files.ca_key, key)
    _write_public(files.ca, certificate)
    return _Authority(certificate=certificate, key=key)


def _read_authority(files: TlsFiles, now: datetime) -> _Authority:
    certificate = _read_certificate(files.ca)
    if certificate is None:
        raise Misconfigured("ca.pem is not a certificate; restore it, or remove ca.pem and ca-key.pem to start afresh")
    if certificate.not_valid_after_utc < now + RENEW_BEFORE:
        raise Misconfigured(
            f"the development CA ends on {certificate.not_valid_after_utc:%Y-%m-%d}; remove ca.pem and ca-key.pem to "
            "have a new one made, and have every client trust that"
        )
    key = _read_key(files.ca_key) if files.ca_key.exists() else None
    if files.ca_key.exists() and (key is None or key.public_key() != certificate.public_key()):
        raise Misconfigured("ca-key.pem does not belong to ca.pem; restore it, or remove both to start afresh")
    return _Authority(certificate=certificate, key=key)


def _serves(files: TlsFiles, authority: _Authority, names: list[x509.GeneralName], now: datetime) -> bool:
    """Tell whether the certificate that lies there is good for `names` for a while yet."""
    certificate, key = _read_certificate(files.certificate), _read_key(files.key)
    if certificate is None or key is None or key.public_key() != certificate.public_key():
        return False
    if certificate.not_valid_after_utc < now + RENEW_BEFORE or certificate.not_valid_before_utc > now:
        return False
    try:
        certificate.verify_directly_issued_by(authority.certificate)
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    return sorted(held, key=str) == names


def _issue(files: TlsFiles, authority: _Authority, names: list[x509.GeneralName], now: datetime) -> None:
    if authority.key is None:
        raise Misconfigured(
            "a server certificate is due and ca-key.pem is gone; bring it back, or your own certificate"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(
            subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Bulkhead development server")]),
            issuer=authority.certificate.subject,
            key=key.public_key(),
            now=now,
            until=min(now + SERVER_LIFETIME, authority.certificate.not_valid_after_utc),
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    # a crash in between leaves a pair that does not match, which the next call replaces
    _write_key(files.key, key)
    _write_public(files.certificate, certificate)


def _builder(
    *, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode("ascii").lower())
    except (UnicodeError, ValueError) as exc:
        raise Misconfigured(f"{host!r} is neither a host name nor an address") from exc


def _read_certificate(path: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(path, pem)


def _write_public(path: Path, certificate: x509.Certificate) -> None:
    write_private(path, certificate.public_bytes(serialization.Encoding.PEM))
    path.chmod(0o644)
