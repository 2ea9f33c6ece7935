"""The files of one embedded PostgreSQL: making the cluster, checking it, deleting it.

`rag.db.embedded` stands above and holds the lock under which everything here is called; `rag.db.embedded_place` below
says where things may lie.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from rag.db import embedded_place as place
from rag.errors import Misconfigured

__all__ = ["Cluster", "cluster_id", "delete_cluster", "ensure_cluster", "prepare", "read_password"]

MAJOR_VERSION = "18"
INITDB_BOUND_S = 120.0
MAX_QUOTED_ERROR = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What is decided about one data directory before its server is touched, and the names inside it."""

    data_dir: Path
    """Absolute, without symbolic links."""
    account: place.Account | None
    binaries: Path

    @property
    def link(self) -> Path:
        """The cluster, or a symbolic link to it."""
        return self.data_dir / "postgres"

    @property
    def path(self) -> Path:
        """The cluster itself, as PostgreSQL is told it."""
        return self.link.resolve()

    @property
    def password(self) -> Path:
        """The superuser's password, for us alone."""
        return self.data_dir / "postgres-superuser"

    @property
    def identity(self) -> Path:
        """A random value, new with every new cluster, in the name of whatever lies outside the data directory."""
        return self.data_dir / "postgres-id"

    @property
    def log(self) -> Path:
        """The server's log; `postgres.log.1` is the one before."""
        return self.data_dir / "postgres.log"


def prepare(data_dir: Path) -> Cluster:
    """Make `data_dir` if it is missing, and find the user and the programs for it.

    Raises:
        Misconfigured: There is no such user, or no such programs.
    """
    account = place.server_account()
    # As root the server runs as another user, which must be able to pass through; what is secret inside is 0600.
    data_dir.mkdir(mode=0o700 if account is None else 0o711, parents=True, exist_ok=True)
    return Cluster(data_dir=data_dir.resolve(), account=account, binaries=place.reachable_binaries(account))


def ensure_cluster(cluster: Cluster) -> None:
    """Make the cluster if there is none, and refuse one that this PostgreSQL cannot serve.

    Raises:
        Misconfigured: It cannot be made or served; the message says what to do.
    """
    if not cluster.link.exists():
        _create(cluster)
    path, account = cluster.path, cluster.account
    if not place.can_reach(path, account) or path.stat().st_uid != place.server_uid(account):
        raise Misconfigured(
            "the embedded PostgreSQL's data belongs to another user or lies where its user cannot enter; run as the "
            "user who made it, or choose another BULKHEAD_DATA_DIR"
        )
    version = (path / "PG_VERSION").read_text(encoding="utf-8").strip()
    if version != MAJOR_VERSION:
        raise Misconfigured(
            f"the data was written by PostgreSQL {version} and this is {MAJOR_VERSION}: dump it with the release that "
            "wrote it and load it into a new BULKHEAD_DATA_DIR"
        )
    if not cluster.password.is_file():
        raise Misconfigured(f"{cluster.password} is missing: restore it, or delete the data directory to begin anew")


def read_password(cluster: Cluster) -> str:
    """Return the superuser's password."""
    return cluster.password.read_text(encoding="utf-8").strip()


def cluster_id(cluster: Cluster) -> str:
    """Return the random value of this cluster, 16 hexadecimal digits."""
    if not cluster.identity.exists():
        _write_private(cluster.identity, secrets.token_hex(8))
    return cluster.identity.read_text(encoding="utf-8").strip()


def delete_cluster(cluster: Cluster) -> None:
    """Delete the data, wherever it lies, its password and its logs; the lock files stay."""
    if cluster.link.exists():
        shutil.rmtree(cluster.path)
    if cluster.link.is_symlink():
        cluster.link.unlink()
    for leftover in (cluster.data_dir / "run", *cluster.data_dir.glob("postgres.new-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    for path in (cluster.password, cluster.identity, cluster.log, cluster.log.with_name(f"{cluster.log.name}.1")):
        path.unlink(missing_ok=True)


def _create(cluster: Cluster) -> None:
    """Make the cluster aside and move it into place whole, so that a crash leaves nothing that looks like a cluster.

    1. Forget what an earlier attempt left, and a link whose target is gone.
    2. Make the cluster and its superuser in a directory of the server's user.
    3. Put the password in place, then the cluster: a password without a cluster is replaced by the next attempt.
    """
    if cluster.link.is_symlink():
        log.warning("the embedded PostgreSQL's data is gone from %s; beginning anew", cluster.link.readlink())
        cluster.link.unlink()
    new_id = secrets.token_hex(8)
    home = place.cluster_home(cluster.data_dir, new_id, cluster.account)
    for leftover in home.parent.glob(f"{home.name.split('-')[0]}*.new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    _write_private(cluster.identity, new_id)
    work = home.with_name(f"{home.name}.new-{new_id}")
    work.mkdir(mode=0o700)
    try:
        password = secrets.token_urlsafe(32)
        _initdb(cluster, work, password)
        _write_private(cluster.password, password)
        (work / "data").rename(home)
        if home != cluster.link:
            cluster.link.symlink_to(home)
        _sync_directory(home.parent)
        _sync_directory(cluster.data_dir)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _initdb(cluster: Cluster, work: Path, password: str) -> None:
    log.info("making the embedded PostgreSQL's cluster")
    _write_private(work / "password", password)
    place.give(work / "password", cluster.account)
    place.give(work, cluster.account)
    made = place.run(
        [
            cluster.binaries / "initdb",
            f"--pgdata={work / 'data'}",
            "--username=postgres",
            f"--pwfile={work / 'password'}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--data-checksums",
            "--no-instructions",
        ],
        account=cluster.account,
        bound_s=INITDB_BOUND_S,
    )
    if made.returncode != 0:
        reason = made.stderr.strip()[-MAX_QUOTED_ERROR:]
        raise Misconfigured(f"the embedded PostgreSQL's cluster could not be made: {reason}")


def _write_private(path: Path, text: str) -> None:
    """Write a file that only we can read, whole or not at all."""
    draft = path.with_name(f"{path.name}.draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  # from a descriptor, for O_EXCL and the mode
        file.write(text + "\n")
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
