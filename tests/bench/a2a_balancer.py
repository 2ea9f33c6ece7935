"""The smallest balancer, a process of its own: `python -m tests.bench.a2a_balancer PORT REPLICA_PORT...`.

Each connection goes to the next replica in turn that takes it; the benchmarks' clients send one request over each. It
knows nothing of tasks, which is the point.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.abc

from rag.cli.supervisor import free_port
from tests.support.processes import ROOT

__all__ = ["balanced"]

READY_BOUND_S = 20.0
POLL_S = 0.05
_GONE = (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


@asynccontextmanager
async def balanced(ports: Sequence[int]) -> AsyncGenerator[int]:
    """Yield the port of a balancer before the replicas at `ports` of this machine."""
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "tests.bench.a2a_balancer", *map(str, (port, *ports))]
    process = await anyio.open_process(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=None, stderr=None)
    try:
        with anyio.fail_after(READY_BOUND_S):
            while True:
                try:
                    await anyio.aclose_forcefully(await anyio.connect_tcp("127.0.0.1", port))
                    break
                except OSError:
                    await anyio.sleep(POLL_S)
        yield port
    finally:
        with anyio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.aclose()


async def _balance(port: int, replicas: Sequence[int]) -> None:
    turn = itertools.cycle(replicas)

    async def replica() -> anyio.abc.SocketStream:
        for _ in replicas:
            try:
                return await anyio.connect_tcp("127.0.0.1", next(turn))
            except OSError:
                continue
        raise anyio.BrokenResourceError

    async def carry(client: anyio.abc.SocketStream) -> None:
        try:
            server = await replica()
        except anyio.BrokenResourceError:
            await anyio.aclose_forcefully(client)
            return
        async with anyio.create_task_group() as both:
            both.start_soon(pipe, client, server, both)
            both.start_soon(pipe, server, client, both)
        await anyio.aclose_forcefully(server)
        await anyio.aclose_forcefully(client)

    async def pipe(source: anyio.abc.SocketStream, sink: anyio.abc.SocketStream, both: anyio.abc.TaskGroup) -> None:
        try:
            while True:
                await sink.send(await source.receive())
        except _GONE:
            both.cancel_scope.cancel()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port, backlog=1024) as listener:
        await listener.serve(carry)


if __name__ == "__main__":
    anyio.run(_balance, int(sys.argv[1]), [int(one) for one in sys.argv[2:]], backend_options={"use_uvloop": True})
