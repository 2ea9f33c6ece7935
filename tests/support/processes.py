"""The three processes as they are deployed: `python -m NAME`, an environment made of settings, signals from outside.

Above: fault and trace tests. Nothing is shared with the test but the network and the database.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.abc
import httpx

from rag.cli.supervisor import free_port
from rag.settings import Settings

__all__ = ["Started", "fleet_settings", "started"]

READY_BOUND_S = 40.0
POLL_S = 0.05
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A running process."""

    process: anyio.abc.Process
    log: Path

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def wait(self) -> int:
        """Return its exit status."""
        return await self.process.wait()

    async def logged(self, text: str) -> None:
        """Return once its log holds `text`: what a process says is all that a stranger sees of it."""
        while text not in await anyio.Path(self.log).read_text(encoding="utf-8"):  # noqa: ASYNC110  # a file has no event
            await anyio.sleep(POLL_S)


def fleet_settings(settings: Settings, **changes: object) -> Settings:
    """Return settings with free ports for both servers, and without what a server does not get."""
    mcp_port, a2a_port = free_port("127.0.0.1"), free_port("127.0.0.1")
    return dataclasses.replace(
        settings,
        owner_database_url=None,
        maintenance_database_url=None,
        mcp_port=mcp_port,
        a2a_port=a2a_port,
        **changes,  # pyright: ignore[reportArgumentType]  # names of fields, as dataclasses.replace checks
    )


@asynccontextmanager
async def started(name: str, settings: Settings, logs: Path) -> AsyncGenerator[Started]:
    """Run `python -m name` until the block ends; a server is ready when the block begins."""
    path = logs / f"{name}-{secrets.token_hex(4)}.log"
    env = {"PATH": os.environ["PATH"], **settings.to_env()}  # noqa: TID251  # what a child needs to start at all
    with path.open("wb") as log:
        process = await anyio.open_process(
            [sys.executable, "-m", name], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=ROOT
        )
    try:
        ports = {"mcp_server": settings.mcp_port, "a2a_server": settings.a2a_port}
        if name in ports:
            await _ready(f"http://127.0.0.1:{ports[name]}/readyz", process, path)
        yield Started(process=process, log=path)
    finally:
        if process.returncode is None:
            # a stopped process takes no other signal
            process.send_signal(signal.SIGCONT)
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.wait()
            await process.aclose()


async def _ready(url: str, process: anyio.abc.Process, log: Path) -> None:
    async with httpx.AsyncClient(timeout=2.0) as http:
        with anyio.fail_after(READY_BOUND_S):
            while True:
                assert process.returncode is None, await anyio.Path(log).read_text(encoding="utf-8")
                try:
                    if (await http.get(url)).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await anyio.sleep(POLL_S)
