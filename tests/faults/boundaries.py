"""A worker that dies, stands still or loses its database at one exact place: `python -m tests.faults.boundaries`.

It is the real worker process. Its places are all boundaries of a run with the outside: before and after each statement,
commit and pipeline of both database drivers, and before and after each HTTP request. A place is a driver's verb, who
asked for it, and the how-many-eth time it is within the run. FAULT says as JSON which is meant, and what happens there:

    {"record": "places.txt"}            write down every place that a run passes
    {"place": "before Connection.fetchval for store.append 3", "do": "kill"}
                                        kill: SIGKILL; stop: SIGSTOP; wait: until there is a file of the name "resume"
    {..., "over": "over"}               make this file when a run is over, however it came to its end
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

import asyncpg
import httpx
import httpx2
import psycopg
from psycopg import AsyncPipeline
from psycopg.transaction import AsyncTransaction

import workflows.worker
from workflows.__main__ import main

__all__: list[str] = []

RESUME_BOUND_S = 30.0
_in_run: ContextVar[bool] = ContextVar("in_run", default=False)
_seen: Counter[str] = Counter()
_plan: dict[str, Any] = {}
Call = Callable[..., Awaitable[Any]]


def _asker() -> str:
    """Name the function on whose behalf the driver is called: the nearest of ours, or of the checkpoint saver."""
    frame: FrameType | None = inspect.currentframe()  # how a profiler does it
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(("rag.", "workflows.", "langgraph.checkpoint.postgres.aio")) and not module.startswith(
            ("rag.db.", "workflows.checkpoints")
        ):
            return f"{module.rpartition('.')[2]}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "driver"


def _pass(when: str, asker: str) -> None:
    if not _in_run.get():
        return
    kind = f"{when} {asker}"
    _seen[kind] += 1
    place = f"{kind} {_seen[kind]}"
    if "record" in _plan:
        with Path(_plan["record"]).open("a", encoding="utf-8") as file:
            file.write(place + "\n")
    if _plan.get("place") != place:
        return
    match _plan["do"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case _:
            # the process stands still, as it would in a long collection of garbage, while its database is taken away
            Path(_plan["reached"]).touch()
            until = time.monotonic() + RESUME_BOUND_S
            while not Path(_plan["resume"]).exists() and time.monotonic() < until:
                time.sleep(0.01)  # noqa: TID251  # it is meant to block everything


def _sign_off() -> None:
    if "over" in _plan:
        Path(_plan["over"]).touch()


def _bounded(verb: Call, name: str) -> Call:
    @functools.wraps(verb)
    async def passing(*args: Any, **kwargs: Any) -> Any:
        asker = f"{name} for {_asker()}"
        _pass("before", asker)
        try:
            return await verb(*args, **kwargs)
        finally:
            _pass("after", asker)

    return passing


def _install() -> None:
    for owner, verbs in (
        (asyncpg.Connection, ("fetch", "fetchrow", "fetchval", "execute", "executemany")),
        (psycopg.AsyncCursor, ("execute", "executemany")),
        (AsyncTransaction, ("__aexit__",)),
        (AsyncPipeline, ("__aexit__",)),
        (httpx.AsyncHTTPTransport, ("handle_async_request",)),
        (httpx2.AsyncHTTPTransport, ("handle_async_request",)),
    ):
        for verb in verbs:
            name = f"{owner.__name__}.{verb}"
            setattr(owner, verb, _bounded(getattr(owner, verb), name))
    run = workflows.worker.run

    async def noted(*args: Any) -> None:
        _in_run.set(True)
        _seen.clear()
        try:
            _pass("before", "run")
            await run(*args)
            _pass("after", "run")
        finally:
            _in_run.set(False)
            _sign_off()

    workflows.worker.run = noted  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    _plan.update(json.loads(os.environ["FAULT"]))  # noqa: TID251  # a test's own process
    _install()
    main()
