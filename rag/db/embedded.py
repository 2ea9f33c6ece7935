"""The embedded PostgreSQL of one data directory: made once, started by the first user, stopped by the last.

`rag.cli` and the tests stand above; below, `rag.db.embedded_cluster` makes the files.

Who uses the server is written nowhere: the kernel knows, and forgets with a process however it ends.
    postgres.lock    exclusive flock   held while anyone decides to make, start or stop
    postgres.users   shared flock      held by every user; who can take it exclusively is the last and stops the server
    postgres.alive   exclusive flock   inherited by the server itself: taken means that some process of it still lives
NOTE: flocks pass to children made by a bare fork; start helpers with exec (`subprocess`), as the supervisor does.
"""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from rag.db import embedded_place as place
from rag.db.embedded_cluster import (
    INITDB_BOUND_S,
    Cluster,
    cluster_id,
    delete_cluster,
    ensure_cluster,
    prepare,
    read_password,
)
from rag.errors import Conflict, Misconfigured, Unavailable

__all__ = ["EmbeddedPostgres", "embedded_postgres", "pg_binary", "remove_embedded_postgres"]

START_BOUND_S = 60.0
STOP_BOUND_S = 30.0
TURN_BOUND_S = INITDB_BOUND_S + START_BOUND_S + STOP_BOUND_S
"""How long to wait for another process that is making, starting or stopping this server."""
POLL_S = 0.02
MAX_LOG_BYTES = 16 * 2**20
QUOTED_LOG_LINES = 8

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "256MB",
    "max_connections": "100",
    "jit": "off",  # compiling costs more than the millisecond statements it would serve
    "timezone": "UTC",
    "log_timezone": "UTC",
    # What follows keeps documents, parameters and seals out of the server log. A primary message or a DETAIL quotes
    # values ("invalid input syntax ...", "Key (...)=(...) already exists"), so ERROR and below are not logged at all:
    # they reach the client, which logs them without content. LOG, FATAL and PANIC stay, in one terse line each.
    "log_min_messages": "log",
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_checkpoints": "off",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedPostgres:
    """A running server; good until the context that gave it ends."""

    socket_dir: Path
    port: int
    pid: int
    """Process id of the postmaster."""
    superuser_url: str = field(repr=False)

    def url(self, *, user: str, password: str, database: str) -> str:
        """Return a connection URL, understood by asyncpg and libpq, for another login of this server."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        where = f"host={quote(str(self.socket_dir), safe='')}&port={self.port}"
        return f"postgresql://{login}@/{quote(database, safe='')}?{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Postmaster:
    """What postmaster.pid says; its line numbers are LOCK_FILE_LINE_* of PostgreSQL's utils/pidfile.h."""

    pid: int
    port: int
    socket_dir: Path
    status: str


def pg_binary(name: str) -> Path:
    """Return the path of a PostgreSQL program of the wheel, such as pg_dump, psql or pgbench.

    Raises:
        Misconfigured: The wheel is not installed, or has no such program.
    """
    binary = place.bundled_binaries() / name
    if not binary.is_file():
        raise Misconfigured(f"the embedded PostgreSQL has no program named {name!r}")
    return binary


@contextmanager
def embedded_postgres(data_dir: Path, *, settings: Mapping[str, str] | None = None) -> Generator[EmbeddedPostgres]:
    """Hold the embedded PostgreSQL of `data_dir` open: make it, start it, or join the one that runs.

    The last of its users, in whichever process, stops it on leaving. It survives the interrupt key and the death of the
    process that started it. `settings` are server settings that override ours; they count only for the user who starts
    the server. Blocks: to be entered before any event loop runs.

    Raises:
        Misconfigured: The wheel, the user, a directory or an existing cluster cannot be used; with what to do.
        Unavailable: The server did not come up in time, or another process held its locks for too long.
    """
    with _refusals():
        cluster = prepare(data_dir)
        users = _open_lock(cluster.data_dir / "postgres.users")
    try:
        try:
            with _refusals(), _turn(cluster):
                fcntl.flock(users, fcntl.LOCK_SH)  # never waits: exclusive holders hold the turn as well
                server = _ensure_running(cluster, settings or {})
        except Unavailable:
            raise  # a server that is still recovering is left to it: stopped, it would have to begin again
        except BaseException:
            _leave(cluster, users)
            raise
        try:
            yield server
        finally:
            _leave(cluster, users)
    finally:
        os.close(users)


def remove_embedded_postgres(data_dir: Path) -> None:
    """Stop the embedded PostgreSQL of `data_dir` and delete all of its data, wherever it was put.

    Raises:
        Conflict: Somebody uses it.
        Misconfigured: Its files cannot be deleted.
    """
    if not data_dir.is_dir():
        return
    with _refusals():
        cluster = prepare(data_dir)
        users = _open_lock(cluster.data_dir / "postgres.users")
        try:
            with _turn(cluster):
                if not _take(users):
                    raise Conflict("the embedded PostgreSQL is in use; stop Bulkhead first")
                _stop(cluster)
                delete_cluster(cluster)
        finally:
            os.close(users)


@contextmanager
def _refusals() -> Generator[None]:
    """Tell the operator about a file that cannot be used; everything that happens here is about files."""
    try:
        yield
    except OSError as exc:
        raise Misconfigured(
            f"the embedded PostgreSQL cannot use {exc.filename or 'its files'}: {exc.strerror}; only the user who made "
            "it can use it: become that user, or choose another BULKHEAD_DATA_DIR"
        ) from exc


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_within(descriptor: int, bound_s: float) -> bool:
    deadline = time.monotonic() + bound_s
    while not _take(descriptor):
        if time.monotonic() > deadline:
            return False
        _pause()
    return True


def _pause() -> None:
    """Let a moment pass before looking again, where neither flock nor PostgreSQL offers an event with a bound."""
    threading.Event().wait(POLL_S)


@contextmanager
def _turn(cluster: Cluster) -> Generator[None]:
    descriptor = _open_lock(cluster.data_dir / "postgres.lock")
    try:
        if not _take_within(descriptor, TURN_BOUND_S):
            raise Unavailable("another process is still starting or stopping the embedded PostgreSQL; try again")
        yield
    finally:
        os.close(descriptor)


def _leave(cluster: Cluster, users: int) -> None:
    ours = False
    with suppress(FileNotFoundError):
        ours = os.path.samestat(os.fstat(users), (cluster.data_dir / "postgres.users").stat())
    if not ours:
        return  # the data directory was deleted under us, and one by the same name may have users of its own
    with _refusals(), _turn(cluster):
        fcntl.flock(users, fcntl.LOCK_UN)
        if _take(users):
            _stop(cluster)


def _ensure_running(cluster: Cluster, settings: Mapping[str, str]) -> EmbeddedPostgres:
    ensure_cluster(cluster)
    postmaster = _running(cluster)
    if postmaster is not None:
        log.info("joining the embedded PostgreSQL that runs as process %d", postmaster.pid)
        postmaster = _wait_ready(cluster)
        if postmaster is not None and not (postmaster.socket_dir / f".s.PGSQL.{postmaster.port}").exists():
            log.warning("the embedded PostgreSQL has lost its socket; restarting it")
            _stop(cluster)
            postmaster = None
    if postmaster is None:
        postmaster = _start(cluster, settings)
    server = EmbeddedPostgres(
        socket_dir=postmaster.socket_dir, port=postmaster.port, pid=postmaster.pid, superuser_url=""
    )
    return replace(
        server, superuser_url=server.url(user="postgres", password=read_password(cluster), database="postgres")
    )


def _read_postmaster(cluster: Path) -> _Postmaster | None:
    try:
        lines = (cluster / "postmaster.pid").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        pid = int(lines[0])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    lines += [""] * (8 - len(lines))
    return _Postmaster(pid=pid, port=int(lines[3] or 0), socket_dir=Path(lines[4]), status=lines[7].strip())


def _running(cluster: Cluster) -> _Postmaster | None:
    """Return the postmaster of our cluster; None if none runs, whatever process now has the number it once had."""
    postmaster = _read_postmaster(cluster.path)
    return postmaster if postmaster is not None and _serves(postmaster.pid, cluster.path) else None


def _serves(pid: int, path: Path) -> bool:
    """Tell whether process `pid` is a postmaster of the cluster at `path`."""
    if Path("/proc/self/cmdline").exists():
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        named = {os.path.realpath(argument) for argument in arguments[1:] if argument.startswith(b"/")}
        return arguments[0].endswith(b"/postgres") and os.fsencode(path) in named
    line = place.run(["ps", "-ww", "-o", "command=", "-p", str(pid)]).stdout
    return "/postgres" in line and f"-D {path}" in line


def _alive(cluster: Cluster) -> bool:
    """Tell whether any process of a server that we started still lives, its orphans included."""
    descriptor = _open_lock(cluster.data_dir / "postgres.alive")
    try:
        return not _take(descriptor)
    finally:
        os.close(descriptor)


def _wait_ready(cluster: Cluster) -> _Postmaster | None:
    """Wait until the server takes connections; None if it ended instead.

    Raises:
        Unavailable: It is still recovering after START_BOUND_S seconds.
    """
    deadline = time.monotonic() + START_BOUND_S
    while time.monotonic() < deadline:
        postmaster = _running(cluster)
        if postmaster is not None and postmaster.status == "ready":
            return postmaster
        if postmaster is None and not _alive(cluster):
            return None
        _pause()
    raise Unavailable(f"the embedded PostgreSQL is not ready after {START_BOUND_S:.0f} s; see {cluster.log}, try again")


def _start(cluster: Cluster, settings: Mapping[str, str]) -> _Postmaster:
    alive = _open_lock(cluster.data_dir / "postgres.alive")
    try:
        if not _take_within(alive, STOP_BOUND_S):
            raise Unavailable(
                "a process of the embedded PostgreSQL still lives and cannot be reached from here (another "
                "container?); stop it and try again"
            )
        # Whoever has the number in a leftover lock file of PostgreSQL's, it is not our server. PostgreSQL would only
        # see that the process lives (or waits to be reaped), and refuse to start.
        socket_dir = place.socket_directory(cluster.data_dir, cluster_id(cluster), cluster.account)
        for leftover in (cluster.path / "postmaster.pid", *socket_dir.glob(".s.PGSQL.*")):
            leftover.unlink(missing_ok=True)
        offset = _spawn(cluster, socket_dir, settings, alive)
    finally:
        os.close(alive)
    postmaster = _wait_ready(cluster)
    if postmaster is None:
        raise Unavailable(f"the embedded PostgreSQL did not start: {_quote_log(cluster.log, offset)}")
    log.info("started the embedded PostgreSQL as process %d", postmaster.pid)
    return postmaster


def _spawn(cluster: Cluster, socket_dir: Path, settings: Mapping[str, str], alive: int) -> int:
    """Start the postmaster detached from us and from the terminal; return where its part of the log begins.

    A shell starts it and leaves at once, so that it becomes a child of init: it outlives us, and ends without us.
    """
    command: list[str | Path] = [cluster.binaries / "postgres", "-D", cluster.path]
    for name, value in {**SETTINGS, **settings, "unix_socket_directories": f'"{socket_dir}"'}.items():
        command += ["-c", f"{name}={value}"]
    if cluster.log.exists() and cluster.log.stat().st_size > MAX_LOG_BYTES:
        cluster.log.replace(cluster.log.with_name(f"{cluster.log.name}.1"))
    written = os.open(cluster.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        offset = os.fstat(written).st_size
        subprocess.run(
            ["/bin/sh", "-c", '"$@" &', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            check=True,
            timeout=START_BOUND_S,
            cwd="/",
            env=place.ENVIRONMENT,
            pass_fds=(alive,),
            start_new_session=True,
            **place.as_account(cluster.account),
        )
    except subprocess.SubprocessError as exc:
        raise Unavailable("the embedded PostgreSQL could not be started: no shell would run it") from exc
    finally:
        os.close(written)
    return offset


def _quote_log(path: Path, offset: int) -> str:
    with path.open("rb") as file:
        file.seek(offset)
        lines = file.read().decode(errors="replace").splitlines()
    return " | ".join(lines[-QUOTED_LOG_LINES:]) or "it left no message"


def _stop(cluster: Cluster) -> None:
    """Stop the server if it runs: end its sessions, and if even that takes too long leave the rest to recovery."""
    postmaster = _running(cluster)
    if postmaster is None:
        return
    for mode in ("fast", "immediate"):
        command = [
            cluster.binaries / "pg_ctl",
            "stop",
            "-s",
            "-D",
            cluster.path,
            "-m",
            mode,
            "-t",
            f"{STOP_BOUND_S:.0f}",
        ]
        stopped = place.run(command, account=cluster.account, bound_s=STOP_BOUND_S + place.PROBE_BOUND_S)
        if stopped.returncode == 0 or _running(cluster) is None:
            log.info("stopped the embedded PostgreSQL")
            break
        log.warning("the embedded PostgreSQL did not stop (%s)", mode)
    if postmaster.socket_dir != cluster.data_dir / "run":
        with suppress(OSError):
            postmaster.socket_dir.rmdir()
