"""Several processes behind one socket: one Python process uses one core.

Above: `__main__`, when BULKHEAD_MCP_WORKERS is more than one. Below: the same `python -m mcp_server`, once per worker,
with the listening socket handed down. The socket is bound once, here: a port that is taken is noticed at once, and what
waits in its backlog outlives a worker that dies.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import anyio
import anyio.abc

from rag.errors import Misconfigured, Unavailable
from rag.identity.scopes import Audience
from rag.runtime import open_runtime
from rag.settings import Settings

__all__ = ["listening_socket", "run_workers", "until_orphaned"]

_log = logging.getLogger(__name__)
BACKLOG = 2048
MAX_RESTARTS = 5
"""Of one worker in a row: what keeps dying is for whoever watches this process to see."""
STEADY_S = 60.0
"""A worker that lived so long has not been dying in a row."""
FIRST_PAUSE_S = 0.25
"""Before a worker is started again, doubled each time: with five a database has some eight seconds to come back."""
REFUSED = 1
"""Status of a process that refuses to start: with the same settings it would again."""
STOP_BOUND_S = 7.0
"""A worker ends within five seconds of SIGTERM."""


def listening_socket(settings: Settings) -> socket.socket:
    """Return the bound socket of the MCP face.

    Raises:
        Misconfigured: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.mcp_host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.mcp_host, settings.mcp_port))
    except OSError as exc:
        listening.close()
        where = f"{settings.mcp_host}, port {settings.mcp_port}"
        raise Misconfigured(f"cannot listen on {where}: {exc.strerror}; set BULKHEAD_MCP_PORT to another") from exc
    listening.listen(BACKLOG)
    return listening


async def run_workers(settings: Settings) -> None:
    """Keep `settings.mcp_workers` workers running until SIGTERM or SIGINT, or until one keeps dying.

    Raises:
        Misconfigured: The address cannot be had, or as `open_runtime`.
        Unavailable: A worker refuses to start or keeps ending, or the database is not reachable.
    """
    # what each of them would say, said once
    async with open_runtime(settings, audience=Audience.MCP, application="bulkhead-mcp", embeds=False):
        pass
    children: dict[int, anyio.abc.Process] = {}
    with listening_socket(settings) as listening:
        try:
            async with anyio.create_task_group() as tasks:
                with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                    tasks.start_soon(_cancel_on_signal, signals, tasks.cancel_scope)
                    for number in range(settings.mcp_workers):
                        tasks.start_soon(_keep, number, listening.fileno(), children)
                    await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await _stop(children)


async def until_orphaned() -> None:
    """Return when the process that started this worker is gone: it holds the other end of our standard input."""
    while True:
        await anyio.wait_readable(sys.stdin.fileno())
        if os.read(sys.stdin.fileno(), 1) == b"":
            return


async def _keep(number: int, descriptor: int, children: dict[int, anyio.abc.Process]) -> None:
    falls = 0
    while falls <= MAX_RESTARTS:
        began = anyio.current_time()
        child = await anyio.open_process(
            [sys.executable, "-m", "mcp_server", "--fd", str(descriptor)],
            stdin=subprocess.PIPE,
            stdout=None,
            stderr=None,
            pass_fds=[descriptor],
            # Ctrl-C in a terminal is for this process, which tells its workers
            start_new_session=True,
        )
        children[number] = child
        status = await child.wait()
        _log.error("worker %d ended with status %d", number, status)
        lived_s = anyio.current_time() - began
        if status == REFUSED and falls == 0 and lived_s < STEADY_S:
            raise Unavailable(f"worker {number} of the MCP server refuses to start; its log says why")
        falls = 1 if lived_s > STEADY_S else falls + 1
        await anyio.sleep(FIRST_PAUSE_S * 2 ** (falls - 1))
    raise Unavailable(f"worker {number} of the MCP server keeps ending; its log says why")


async def _cancel_on_signal(signals: AsyncIterator[signal.Signals], scope: anyio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()
        return


async def _stop(children: dict[int, anyio.abc.Process]) -> None:
    for child in children.values():
        if child.returncode is None:
            child.terminate()
    with anyio.move_on_after(STOP_BOUND_S):
        for child in children.values():
            await child.wait()
    for child in children.values():
        if child.returncode is None:
            child.kill()
        await child.aclose()
