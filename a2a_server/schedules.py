"""The door for recurring tasks: plain JSON over HTTP beside the A2A bindings, since A2A has no word for them.

Above: `app`, which mounts `schedule_routes` behind the same door as everything else: a token, its tenant's rate, a
bounded body. Below: `workflows.schedules`, `rag.schedules`. A caller sees and changes its own and nobody else's.

    GET    /schedules               all of the caller's
    PUT    /schedules/{name}        make one; the same again is the same, another under that name is a conflict
    GET    /schedules/{name}
    DELETE /schedules/{name}
    POST   /schedules/{name}/pause
    POST   /schedules/{name}/resume  under the grant of this request's token from now on
    POST   /schedules/{name}/run     a task now, once per Idempotency-Key
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from a2a_server.auth import PRINCIPAL
from a2a_server.errors import TABLE
from a2a_server.protocol.idempotency import header_key
from rag.clock import Clock
from rag.db.pool import Database
from rag.errors import BulkheadError, Conflict, InvalidInput, NotFound
from rag.identity.principal import Principal
from rag.schedules import store
from rag.schedules.timing import timing
from rag.schedules.values import Missed, Schedule
from workflows.schedules import Ordered, order, resume, run_now

__all__ = ["SCHEDULES_PATH", "schedule_routes"]

_log = logging.getLogger(__name__)
SCHEDULES_PATH = "/schedules"
MAX_REQUEST_CHARS = 20_000
M = TypeVar("M", bound=BaseModel)
Answer = tuple[int, Any]


class OrderBody(BaseModel):
    """Body of PUT."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    request: Annotated[str, Field(min_length=1, max_length=MAX_REQUEST_CHARS)]
    workflow: str | None = None
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    cron: str | None = None
    time_zone: str | None = None
    every_s: float | None = None
    missed: Annotated[Missed, Field(strict=False)] = Missed.ONCE
    until: Annotated[AwareDatetime, Field(strict=False)] | None = None


class ResumeBody(BaseModel):
    """Body of POST .../resume; may be missing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    until: Annotated[AwareDatetime, Field(strict=False)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedules:
    """What the endpoints work with."""

    database: Database
    clock: Clock

    async def listed(self, principal: Principal, _: Request) -> Answer:
        """GET /schedules."""
        async with self.database.tenant(principal) as session:
            found = await store.list_schedules(session)
        return 200, {"schedules": [_shown(one) for one in found]}

    async def put(self, principal: Principal, request: Request) -> Answer:
        """PUT /schedules/{name}."""
        body = await _body(request, OrderBody)
        ordered = Ordered(
            name=request.path_params["name"],
            text=body.request,
            workflow=body.workflow,
            options=body.options,
            timing=timing(cron=body.cron, time_zone=body.time_zone, every_s=body.every_s),
            missed=body.missed,
            until=body.until,
        )
        made, new = await order(self.database, principal, ordered, clock=self.clock)
        return 201 if new else 200, _shown(made)

    async def get(self, principal: Principal, request: Request) -> Answer:
        """GET /schedules/{name}."""
        async with self.database.tenant(principal) as session:
            return 200, _shown(await store.find(session, request.path_params["name"]))

    async def remove(self, principal: Principal, request: Request) -> Answer:
        """DELETE /schedules/{name}: what it has started goes on."""
        async with self.database.tenant(principal) as session:
            return 200, _shown(await store.remove(session, request.path_params["name"]))

    async def pause(self, principal: Principal, request: Request) -> Answer:
        """POST /schedules/{name}/pause."""
        async with self.database.tenant(principal) as session:
            return 200, _shown(await store.pause(session, request.path_params["name"]))

    async def resume(self, principal: Principal, request: Request) -> Answer:
        """POST /schedules/{name}/resume."""
        body = await _body(request, ResumeBody)
        name = request.path_params["name"]
        return 200, _shown(await resume(self.database, principal, name, until=body.until, clock=self.clock))

    async def run(self, principal: Principal, request: Request) -> Answer:
        """POST /schedules/{name}/run."""
        key = header_key(request.headers)
        name = request.path_params["name"]
        task_id = await run_now(self.database, principal, name, key=key, clock=self.clock)
        return 200, {"task_id": str(task_id)}


def schedule_routes(database: Database, *, clock: Clock) -> list[Route]:
    """Return the routes, for an application whose door puts the verified caller into the scope."""
    serve = Schedules(database=database, clock=clock)
    one = SCHEDULES_PATH + "/{name}"
    table: list[tuple[str, str, Callable[[Principal, Request], Awaitable[Answer]]]] = [
        ("GET", SCHEDULES_PATH, serve.listed),
        ("PUT", one, serve.put),
        ("GET", one, serve.get),
        ("DELETE", one, serve.remove),
        ("POST", one + "/pause", serve.pause),
        ("POST", one + "/resume", serve.resume),
        ("POST", one + "/run", serve.run),
    ]
    return [Route(path, _endpoint(act), methods=[verb]) for verb, path, act in table]


def _endpoint(act: Callable[[Principal, Request], Awaitable[Answer]]) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        try:
            status, value = await act(request.scope[PRINCIPAL], request)
        except BulkheadError as exc:
            return _refused(exc)
        except HTTPException:
            raise
        except Exception:  # noqa: BLE001  # what is not ours to tell becomes an error without a text
            _log.exception("a request about schedules failed")
            return _refused(BulkheadError())
        return _json(status, value)

    return serve


async def _body(request: Request, model: type[M]) -> M:
    sent = await request.body()
    try:
        return model.model_validate(orjson.loads(sent) if sent else {})
    except orjson.JSONDecodeError as exc:
        raise InvalidInput("the body is not JSON") from exc
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise InvalidInput(f"{where}: {first['msg']}") from None


def _refused(exc: BulkheadError) -> Response:
    mapped = TABLE[exc.code]
    status = mapped.status
    if status == 200:
        ours = {InvalidInput: 400, NotFound: 404, Conflict: 409}
        status = next((code for kind, code in ours.items() if isinstance(exc, kind)), 500)
    told = exc if mapped.told else BulkheadError()
    return _json(status, {"error": told.code, "message": told.message})


def _json(status: int, value: Any) -> Response:
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")


def _shown(one: Schedule) -> Mapping[str, Any]:
    return {
        "name": one.name,
        "schedule_id": str(one.schedule_id),
        "workflow": one.workflow,
        "request": one.request,
        "options": one.options,
        "cron": one.timing.cron,
        "time_zone": one.timing.time_zone,
        "every_s": one.timing.every_s,
        "missed": one.missed.value,
        "until": one.until,
        "state": one.state.value,
        "reason": one.reason,
        "next_at": one.next_at,
        "last_at": one.last_at,
        "last_task_id": str(one.last_task_id) if one.last_task_id else None,
        "fired": one.fired,
        "skipped": one.skipped,
        "groups": one.grant.groups,
        "created_at": one.created_at,
    }
