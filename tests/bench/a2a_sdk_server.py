"""The other side: a2a-sdk's own DefaultRequestHandler in its cluster mode, with the same agent, on the same PostgreSQL.

    python -m tests.bench.a2a_sdk_server '{"port", "dsn", "jwks", "issuer", "audience"}'

Runs in a virtual environment of its own (`make bench-a2a`), where nothing of ours but `a2a_work` can be imported. Set
up as the SDK's documentation says, with what made it slow by itself taken away: a pool of 20 and 40 connections, where
10 and 10 ran dry at 200 streams, and a poll every 0.2 s, where 0.5 is the default.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import asyncpg
import httpx
import jwt
import uvicorn
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.cluster import DatabaseTaskEventStream, VersionedDatabaseTaskStore
from a2a.server.context import ServerCallContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes
from a2a.server.routes.common import DefaultServerCallContextBuilder
from a2a.server.tasks import BasePushNotificationSender, DatabasePushNotificationConfigStore, TaskUpdater
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, Part, Task, TaskState, TaskStatus
from jwt.algorithms import RSAAlgorithm
from sqlalchemy.ext.asyncio import create_async_engine  # pyright: ignore[reportMissingImports]  # not in our environment
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.bench.a2a_work import ARTIFACT, Work, clocked, note

__all__: list[str] = []

POLL_S = 0.2
LARGE_S = 30.0


class Agent(AgentExecutor):
    """Does what it is told."""

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Do the work; see `Work.kind`."""
        assert context.task_id is not None
        assert context.context_id is not None
        updater = TaskUpdater(event_queue, context.task_id, context.context_id)
        text = context.get_user_input()
        if context.current_task is None:
            submitted = TaskStatus(state=TaskState.TASK_STATE_SUBMITTED)
            task = Task(id=context.task_id, context_id=context.context_id, status=submitted)
            if context.message is not None:
                task.history.append(context.message)
            await event_queue.enqueue_event(task)
        if not text.startswith("{"):
            await self._told(text, context, updater)
            return
        work = Work.of(text)
        match work.kind:
            case "ticks":
                for number in range(work.count):
                    await asyncio.sleep(work.interval_s)  # noqa: TID251  # the agent's work is to wait
                    await _say(updater, clocked(number))
            case "chunks":
                for number in range(work.count):
                    await updater.add_artifact(
                        [Part(text="x" * work.size)],
                        artifact_id=ARTIFACT,
                        append=number > 0,
                        last_chunk=number == work.count - 1,
                    )
            case "silent":
                await _say(updater, "working")
                note(work, "began")
                try:
                    await asyncio.sleep(work.interval_s)  # noqa: TID251
                except BaseException:
                    note(work, "stopped")
                    raise
                note(work, "stopped")
            case "ask":
                await updater.requires_input(updater.new_agent_message([Part(text="What else?")]))
                return
            case _:
                pass
        await updater.complete()

    async def _told(self, text: str, context: RequestContext, updater: TaskUpdater) -> None:
        """Take a further message to the task."""
        await _say(updater, f"got: {text}")
        await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Say that it is over."""
        assert context.task_id is not None
        assert context.context_id is not None
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


async def _say(updater: TaskUpdater, text: str) -> None:
    await updater.update_status(TaskState.TASK_STATE_WORKING, message=updater.new_agent_message([Part(text=text)]))


class Bearer(AuthenticationBackend):
    """Verifies the token of every request."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        """Read the keys."""
        keys = json.loads(Path(job["jwks"]).read_text(encoding="utf-8"))["keys"]
        self._keys = {key["kid"]: RSAAlgorithm.from_jwk(key) for key in keys}
        self._job = job

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        """Return who calls."""
        if conn.url.path == "/readyz":
            return None
        token = conn.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            claims = jwt.decode(
                token,
                cast("Any", self._keys[jwt.get_unverified_header(token)["kid"]]),
                algorithms=["RS256"],
                audience=self._job["audience"],
                issuer=self._job["issuer"],
            )
        except (jwt.PyJWTError, KeyError) as exc:
            raise AuthenticationError("invalid token") from exc
        return AuthCredentials(["authenticated"]), SimpleUser(f"{claims['tenant_id']}:{claims['sub']}")


class Context(DefaultServerCallContextBuilder):
    """Hands on who calls."""

    def build(self, request: Request) -> ServerCallContext:
        """Return the call's context."""
        context = super().build(request)
        context.state["owner"] = request.user.username
        return context


def _owner(context: ServerCallContext) -> str:
    return context.state["owner"]


def _app(job: Mapping[str, Any]) -> Starlette:
    async def connect() -> Any:
        return await asyncpg.connect(job["dsn"])

    engine: Any = create_async_engine("postgresql+asyncpg://", async_creator=connect, pool_size=20, max_overflow=40)
    store = VersionedDatabaseTaskStore(engine, owner_resolver=_owner)
    events = DatabaseTaskEventStream(engine, poll_interval_s=POLL_S)
    configs = DatabasePushNotificationConfigStore(engine, owner_resolver=_owner)
    http = httpx.AsyncClient(timeout=LARGE_S)
    capabilities = AgentCapabilities(streaming=True, push_notifications=True)
    handler = DefaultRequestHandler(
        agent_executor=Agent(),
        task_store=store,
        agent_card=AgentCard(name="bench", description="bench", version="1", capabilities=capabilities),
        event_stream=events,
        push_config_store=configs,
        push_sender=BasePushNotificationSender(http, configs),
    )

    async def ready(_: Request) -> Response:
        return JSONResponse({"status": "ready"})

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncGenerator[None]:
        for part in (store, events, configs):
            await part.initialize()
        yield
        await http.aclose()
        await engine.dispose()

    return Starlette(
        routes=[
            Route("/readyz", ready),
            *create_jsonrpc_routes(handler, "/a2a/jsonrpc", context_builder=Context()),
        ],
        middleware=[Middleware(AuthenticationMiddleware, backend=Bearer(job))],
        lifespan=life,
    )


def main() -> None:
    """Serve until SIGTERM."""
    job = json.loads(sys.argv[1])
    uvicorn.run(
        _app(job),
        host="127.0.0.1",
        port=job["port"],
        loop="asyncio",
        http="httptools",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=3,
    )


if __name__ == "__main__":
    main()
