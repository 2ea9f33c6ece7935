"""`bulkhead secrets`: make the files that compose and Kubernetes refer to, and rotate their keys. Prints no secret.

One folder holds an installation's secrets, one file each, for one user only. Compose mounts the files, `k8s/secrets.sh`
turns them into Kubernetes Secrets (docs/deployment.md). Below: `rag.identity`, which makes the keys.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path
from secrets import token_bytes, token_hex, token_urlsafe
from urllib.parse import quote

import click
import orjson

from rag.db.migrate import LOGIN_ROLES
from rag.errors import Misconfigured
from rag.identity.keys import ensure_keys, load_signing_key, rotate, write_private
from rag.identity.outward import ensure_outward_keys, load_outward_key, rotate_outward
from rag.identity.seal import ensure_seal_keys, load_seal_keys
from rag.identity.tls import DEVELOPMENT_HOSTS, ensure_development_tls

__all__ = ["IMAGE_UID", "secrets"]

IMAGE_UID = 10001
"""The user of our container image (Dockerfile); root hands the files to it, since the containers do not run as root."""
ADMIN_ROLE = "postgres"
ENV_NAME = "compose.env"
URL_FILES = {
    "bulkhead_owner": "owner-database-url",
    "bulkhead_app": "app-database-url",
    "bulkhead_worker": "worker-database-url",
    "bulkhead_maintenance": "maintenance-database-url",
}
NAMES = frozenset(URL_FILES.values()) | {
    ".gitignore",
    ENV_NAME,
    "admin-database-url",
    "llm-api-key",
    "outward",
    "postgres-admin-password",
    "redis-password",
    "redis-url",
    "redis.conf",
    "seal-keys.json",
    "signing",
    "tls",
}
"""What lies in the folder. Root hands all of it to the containers' user: it must not be a home, or a checkout."""
SERVICE_HOSTS = tuple(
    f"{service}{suffix}"
    for service in ("mcp-server", "a2a-server")
    for suffix in ("", ".bulkhead", ".bulkhead.svc", ".bulkhead.svc.cluster.local")
)
"""What the servers are called inside compose and inside the namespace of k8s/base."""


@click.group()
def secrets() -> None:
    """Make and rotate the secret files of a deployment."""


directory_argument = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))


@secrets.command()
@directory_argument
@click.option("--host", default="postgres", show_default=True, help="PostgreSQL server: NAME or NAME:PORT.")
@click.option("--database", default="bulkhead", show_default=True, help="Database to create and serve from.")
@click.option(
    "--tls-host",
    "tls_hosts",
    multiple=True,
    help="A further name on the server certificate; repeat all at each call.",
)
def init(directory: Path, host: str, database: str, tls_hosts: tuple[str, ...]) -> None:
    """Make whatever is missing in DIR; what is there is kept."""
    strange = [path.name for path in directory.iterdir() if path.name not in NAMES] if directory.is_dir() else []
    if strange:
        raise Misconfigured(
            f"{directory} holds {min(strange)}, which is no secret of ours; name a folder for them alone"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.chmod(0o700)
    except OSError as exc:
        raise Misconfigured(
            f"{directory} cannot be made private to you: {exc.strerror}; choose another folder"
        ) from exc
    before = _files(directory)
    _keep(directory / ".gitignore", lambda: "*\n")
    _database_secrets(directory, host=host, database=database)
    ensure_seal_keys(directory / "seal-keys.json")
    redis_password = _keep(directory / "redis-password", lambda: token_urlsafe(32))
    _keep(directory / "redis.conf", lambda: f"requirepass {redis_password}\n")
    _keep(directory / "redis-url", lambda: f"redis://:{quote(redis_password, safe='')}@redis:6379/0")
    _keep(directory / "llm-api-key", lambda: token_urlsafe(32))
    ensure_keys(directory / "signing")
    ensure_outward_keys(directory / "outward")
    ensure_development_tls(directory / "tls", (*DEVELOPMENT_HOSTS, *SERVICE_HOSTS, *tls_hosts))
    _finish(directory)
    made = sorted(str(path.relative_to(directory)) for path in _files(directory) - before)
    click.echo(f"made in {directory}: {', '.join(made) or 'nothing, all was there'}")
    click.echo(f"next: docker compose --env-file {directory / ENV_NAME} up --build")


@secrets.command("rotate")
@directory_argument
@click.argument("kind", type=click.Choice(["signing", "seal", "outward"]))
def rotate_(directory: Path, kind: str) -> None:
    """Add a new key to DIR and make it the active one.

    The one before stays valid. Then migrate (seal) and restart the processes; docs/deployment.md says in which order.
    """
    if not (directory / ENV_NAME).is_file():
        raise Misconfigured(f"{directory} was not made by `bulkhead secrets init`; name a folder that was")
    match kind:
        case "signing":
            kid = rotate(directory / "signing")
        case "outward":
            kid = rotate_outward(directory / "outward")
        case _:
            kid = _rotate_seal(directory / "seal-keys.json")
    _finish(directory)
    click.echo(f"active {kind} key: {kid}")


def _database_secrets(directory: Path, *, host: str, database: str) -> None:
    admin_password = _keep(directory / "postgres-admin-password", lambda: token_urlsafe(32))
    _keep(directory / "admin-database-url", lambda: _url(ADMIN_ROLE, admin_password, host=host, database="postgres"))
    for role in LOGIN_ROLES:
        _keep(directory / URL_FILES[role], lambda: _url(role, token_urlsafe(32), host=host, database=database))  # noqa: B023  # called at once


def _url(role: str, password: str, *, host: str, database: str) -> str:
    return f"postgresql://{role}:{quote(password, safe='')}@{host}/{quote(database, safe='')}"


def _keep(path: Path, make: Callable[[], str]) -> str:
    """Return what `path` holds, after writing `make()` there unless it exists."""
    if not path.exists():
        write_private(path, make().encode())
    return path.read_text(encoding="utf-8").strip()


def _rotate_seal(path: Path) -> str:
    keys = load_seal_keys(path)
    kid = token_hex(4)
    held = {kid: token_bytes(32), keys.active: keys.keys[keys.active]}
    encoded = {name: base64.b64encode(key).decode() for name, key in held.items()}
    write_private(path, orjson.dumps({"active": kid, "keys": encoded}, option=orjson.OPT_INDENT_2))
    return kid


def _finish(directory: Path) -> None:
    """Write compose.env, and let the containers' user, and nobody else, read the files."""
    uid, gid = (IMAGE_UID, IMAGE_UID) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    ensure_outward_keys(directory / "outward")  # a folder of the version before has none
    outward = load_outward_key(directory / "outward")
    assert outward is not None
    lines = {
        "SECRETS_DIR": str(directory.resolve()),
        "SECRETS_UID": str(uid),
        "SECRETS_GID": str(gid),
        "SIGNING_KID": load_signing_key(directory / "signing").kid,
        "OUTWARD_KID": outward.kid,
    }
    text = "# Written by `bulkhead secrets`: where the secrets lie and who may read them. Holds no secret itself.\n"
    write_private(directory / ENV_NAME, (text + "".join(f"{k}={v}\n" for k, v in lines.items())).encode())
    if os.geteuid() == 0:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, uid, gid)


def _files(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file()}
