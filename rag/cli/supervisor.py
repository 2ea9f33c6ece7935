"""Runs the processes of one installation side by side, as `bulkhead up` and `bulkhead demo` need them.

Below: the processes themselves, started by `python -m` with an environment of their own and logs in the data
directory. A process that dies is started again; when it keeps dying, everything stops. A supervisor that was itself
killed leaves its processes behind: the next start finds them by process id and start time, and ends them first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.abc
import httpx
import psutil

from rag.errors import Conflict, Misconfigured, Unavailable
from rag.identity.keys import write_private
from rag.runtime import http_client
from rag.settings import Settings

__all__ = ["a2a_replicas", "free_port", "port_is_free", "reachable", "running"]

REPLICA_PORTS = 10
"""From a port of one A2A server to the same port of the next."""
READY_BOUND_S = 60.0
STOP_BOUND_S = 8.0
"""`bulkhead up` promises to be gone within 10 s of SIGTERM; the database needs the rest."""
MAX_RESTARTS = 5
POLL_S = 0.1
MAX_QUOTED_BYTES = 500
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "PYTHONPATH", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    name: str
    """Its log carries it."""
    command: tuple[str, ...]
    """What `python -m` runs."""
    settings: Settings


def a2a_replicas(settings: Settings, replicas: int) -> list[Settings]:
    """Return the settings of so many A2A servers: each has ports of its own, and all say that they are where the first
    one is, or whatever stands before them.
    """
    said = dataclasses.replace(settings, a2a_public_url=settings.a2a_url, a2a_grpc_public=settings.a2a_grpc_url)
    return [
        dataclasses.replace(
            said,
            a2a_port=settings.a2a_port + number * REPLICA_PORTS,
            a2a_grpc_port=settings.a2a_grpc_port and settings.a2a_grpc_port + number * REPLICA_PORTS,
        )
        for number in range(replicas)
    ]


@asynccontextmanager
async def running(settings: Settings, environ: Mapping[str, str], *, replicas: int = 1) -> AsyncGenerator[None]:
    """Keep all processes up while the block runs, `replicas` A2A servers among them; they are ready when it begins and
    gone when it has ended.

    Raises:
        Conflict: Another supervisor runs on this data directory.
        Misconfigured: A port is taken.
        Unavailable: A process did not become ready, or kept dying.
    """
    logs = settings.data_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _only_supervisor(settings.data_dir):
        await anyio.to_thread.run_sync(_end_leftovers, settings.data_dir)
        processes = _processes(settings, replicas)
        _check_ports(settings, replicas)
        inherited = {name: environ[name] for name in _INHERITED if name in environ}
        children: dict[str, anyio.abc.Process] = {}
        try:
            async with anyio.create_task_group() as group:
                for process in processes:
                    started = anyio.Event()
                    group.start_soon(_keep, process, inherited, logs, settings.data_dir, children, started)
                    await started.wait()
                await _ready(processes, logs)
                yield
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await _stop(children)
                (settings.data_dir / _RECORD).unlink(missing_ok=True)


def _processes(settings: Settings, replicas: int) -> list[_Process]:
    """Return what runs, in the order of its start.

    Each gets its own login and no other's: servers, the worker, maintenance; none the owner's or administrator's.
    """
    narrowed = dataclasses.replace(
        settings, owner_database_url=None, maintenance_database_url=None, admin_database_url=None, token=None
    )
    serving = dataclasses.replace(narrowed, worker_database_url=None)
    working = dataclasses.replace(narrowed, database_url=None)
    maintaining = dataclasses.replace(
        serving,
        database_url=None,
        seal_keys_file=None,
        redis_url=None,
        maintenance_database_url=settings.maintenance_database_url,
    )
    return [
        _Process(name="mcp_server", command=("mcp_server",), settings=serving),
        *(
            _Process(name=f"a2a_server{'' if number == 1 else f'-{number}'}", command=("a2a_server",), settings=own)
            for number, own in enumerate(a2a_replicas(serving, replicas), 1)
        ),
        _Process(name="workflows", command=("workflows",), settings=working),
        _Process(name="maintenance", command=("rag.cli", "maintain"), settings=maintaining),
    ]


def _check_ports(settings: Settings, replicas: int) -> None:
    wanted = [("MCP", settings.mcp_host, settings.mcp_port)]
    for own in a2a_replicas(settings, replicas):
        own.check()
        wanted.append(("A2A", own.a2a_host, own.a2a_port))
        if own.a2a_grpc_port:
            wanted.append(("A2A_GRPC", own.a2a_grpc_host, own.a2a_grpc_port))
    for name, host, port in wanted:
        if not port_is_free(host, port):
            raise Misconfigured(f"port {port} is taken; set BULKHEAD_{name}_PORT to another")


async def _keep(  # start_soon passes positions only
    process: _Process,
    inherited: Mapping[str, str],
    logs: Path,
    data_dir: Path,
    children: dict[str, anyio.abc.Process],
    started: anyio.Event,
) -> None:
    name = process.name
    for _ in range(MAX_RESTARTS + 1):
        with (logs / f"{name}.log").open("ab") as log:
            child = await anyio.open_process(
                [sys.executable, "-m", *process.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**inherited, **process.settings.to_env()},
                start_new_session=True,  # Ctrl-C is for the supervisor, which decides the order of shutdown
            )
        children[name] = child
        _record(data_dir, children)
        started.set()
        await child.wait()
    raise Unavailable(f"{name} keeps ending: {_last_line(logs / f'{name}.log')}; see {logs / name}.log")


def _last_line(log: Path) -> str:
    """Return the end of what a process wrote before it ended: its refusal to start, where that was the reason."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - MAX_QUOTED_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return lines[-1].strip() if lines else "it wrote nothing"


async def _ready(processes: Sequence[_Process], logs: Path) -> None:
    urls: dict[str, str] = {}
    for process in processes:
        own = process.settings
        match process.command:
            case ("mcp_server",):
                urls[process.name] = f"{own.scheme}://{reachable(own.mcp_host)}:{own.mcp_port}/readyz"
            case ("a2a_server",):
                urls[process.name] = f"{own.scheme}://{reachable(own.a2a_host)}:{own.a2a_port}/readyz"
            case _:
                pass  # nobody calls it
    async with http_client(processes[0].settings) as client:
        for name, url in urls.items():
            with anyio.move_on_after(READY_BOUND_S) as scope:
                while not await _answers(client, url):  # noqa: ASYNC110  # another process: there is no event to wait for
                    await anyio.sleep(POLL_S)
            if scope.cancelled_caught:
                raise Unavailable(f"{name} did not become ready in {READY_BOUND_S:.0f} s; see {logs / name}.log")


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url, timeout=2.0)).status_code == 200
    except httpx.TransportError:
        return False


async def _stop(children: Mapping[str, anyio.abc.Process]) -> None:
    # the worker first, so that it hands its runs back while everything it talks to is still there
    for child in reversed(list(children.values())):
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
    with anyio.move_on_after(STOP_BOUND_S):
        for child in children.values():
            await child.wait()
    for child in children.values():
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()


@contextmanager
def _only_supervisor(data_dir: Path) -> Generator[None]:
    with (data_dir / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise Conflict(f"Bulkhead already runs on {data_dir}; stop it, or use another --data-dir") from exc
        yield


_RECORD = "processes.json"


def _record(data_dir: Path, children: Mapping[str, anyio.abc.Process]) -> None:
    entries: list[list[float]] = []
    for child in children.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            entries.append([child.pid, psutil.Process(child.pid).create_time()])
    write_private(data_dir / _RECORD, json.dumps(entries).encode())


def _end_leftovers(data_dir: Path) -> None:
    try:
        entries = json.loads((data_dir / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    leftovers: list[psutil.Process] = []
    for pid, created in entries:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(int(pid))
            if process.create_time() == created:  # a process id may have been given to somebody else since
                process.terminate()
                leftovers.append(process)
    for process in psutil.wait_procs(leftovers, timeout=STOP_BOUND_S)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()


def port_is_free(host: str, port: int) -> bool:
    """Tell whether a server could listen there now.

    Raises:
        Misconfigured: It never could: the host is not one of this machine's, or the port is not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                return False
            raise Misconfigured(f"cannot listen on {host}, port {port}: {exc.strerror}") from exc
        return True


def free_port(host: str) -> int:
    """Return a port that was free a moment ago."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def reachable(host: str) -> str:
    """Return where this machine finds a server that listens at `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104  # a mapping, not a bind
