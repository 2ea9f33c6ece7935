"""A receiver of notifications over real HTTP, which checks signatures as docs/push.md tells receivers to, and couriers.

Above: tests of push notifications. Below: tests.support.servers, `workflows.webhooks`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
import jwt
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rag.db.listener import listener
from rag.identity.scopes import Audience
from rag.identity.tls import TlsFiles
from rag.push.courier import PUSH_CHANNEL
from rag.push.values import Pace
from rag.runtime import open_runtime
from tests.support.servers import serving
from tests.support.world import World
from workflows.webhooks import run_courier

__all__ = ["QUICK", "Received", "Receiver", "couriers", "loopback", "receiver", "verified"]

BOUND_S = 20.0
QUICK = Pace(first_s=0.05, factor=1.5, longest_s=0.2, lease_s=5.0, timeout_s=2.0)
"""Retries within milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One notification as it came."""

    headers: dict[str, str]
    body: bytes

    @property
    def event_id(self) -> str:
        """The task and the seq of its event."""
        return self.headers["x-a2a-notification-id"]

    @property
    def seq(self) -> int:
        """Of the event."""
        return int(self.event_id.rpartition("/")[2])

    @property
    def payload(self) -> dict[str, Any]:
        """The StreamResponse."""
        return orjson.loads(self.body)


@dataclass(slots=True, kw_only=True)
class Receiver:
    """Somebody's webhook. `answer` decides what it answers; by default it takes everything."""

    url: str = ""
    received: list[Received] = field(default_factory=list[Received])
    answer: Callable[[Received], Response] = lambda _: Response(status_code=204)
    blocked: anyio.Event | None = None
    """Set: answers wait for it."""
    _more: anyio.Event = field(default_factory=anyio.Event)

    @property
    def seqs(self) -> list[int]:
        """Of what came, in its order."""
        return [one.seq for one in self.received]

    async def until(self, count: int) -> list[Received]:
        """Wait until so many have come, and return them."""
        return await self.when(lambda: len(self.received) >= count)

    async def when(self, happened: Callable[[], bool]) -> list[Received]:
        """Wait until what came makes `happened` true, and return it."""
        with anyio.fail_after(BOUND_S):
            while not happened():
                self._more = anyio.Event()
                await self._more.wait()
        return self.received

    async def take(self, request: Request) -> Response:
        """Take one notification."""
        one = Received(headers=dict(request.headers), body=await request.body())
        self.received.append(one)
        self._more.set()
        if self.blocked is not None:
            await self.blocked.wait()
        return self.answer(one)


@asynccontextmanager
async def receiver(*, tls: TlsFiles | None = None) -> AsyncGenerator[Receiver]:
    """Run a webhook on this machine until the block ends; over TLS if it is given a certificate."""
    hook = Receiver()
    app = Starlette(routes=[Route("/{path:path}", hook.take, methods=["POST"])])
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        hook.url = f"http{'s' if tls else ''}://127.0.0.1:{listening.getsockname()[1]}/hook"
        async with serving(app, listening, tls=tls):
            yield hook


def loopback(world: World) -> World:
    """Return the same world, in which webhooks may be on this machine."""
    return dataclasses.replace(world, settings=dataclasses.replace(world.settings, outbound_loopback="on"))


@asynccontextmanager
async def couriers(world: World, base: str, *, processes: int = 1, pace: Pace = QUICK) -> AsyncGenerator[None]:
    """Run the couriers of so many worker processes, with a database pool and a listener of their own each."""
    assert world.settings.worker_database_url is not None
    settings = dataclasses.replace(world.settings, database_url=world.settings.worker_database_url, a2a_public_url=base)
    async with anyio.create_task_group() as group:

        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            async with (
                open_runtime(
                    settings, audience=Audience.A2A, application="test-courier", claims=True, embeds=False
                ) as runtime,
                listener(runtime.database.dsn, [PUSH_CHANNEL], application="test-courier-listen") as wakeups,
            ):
                task_status.started()
                await run_courier(runtime, wakeups, pace=pace)

        for _ in range(processes):
            await group.start(run)
        yield
        group.cancel_scope.cancel()


async def verified(one: Received, *, base: str, audience: str) -> dict[str, Any]:
    """Return the claims of a notification whose signature a receiver has checked, with keys that it fetched itself."""
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        published = (await http.get(f"{base}/.well-known/jwks.json")).raise_for_status().json()
    token = one.headers["x-a2a-notification-signature"]
    keys = jwt.PyJWKSet.from_dict(published)
    claims: dict[str, Any] = jwt.decode(
        token,
        keys[jwt.get_unverified_header(token)["kid"]],
        algorithms=["ES256"],
        issuer=base,
        audience=audience,
        options={"require": ["iss", "aud", "iat", "exp", "jti"]},
    )
    assert claims["request_body_sha256"] == hashlib.sha256(one.body).hexdigest()
    assert f"{claims['taskId']}/{claims['seq']}" == one.event_id
    return claims
