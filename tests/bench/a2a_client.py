"""A load generator for an A2A server, a process of its own: `python -m tests.bench.a2a_client < job.json`.

The job: {"host", "port", "token", "kind", ...}; the result, on standard output, has "cpu_s" and:

    send     {"concurrency", "seconds", "lead_s"}: SendMessage of a trivial task, over and over, each waits for its end.
             {"latencies_ms", "seconds"}
    create   the same, not waiting for the end, beside as many connections that read a task with GetTask.
             {"latencies_ms", "read_latencies_ms", "seconds"}
    streams  {"streams", "ticks", "interval_s"}: so many SendStreamingMessage at once. {"events", "lags_ms", "seconds"}
    fanout   the same, of one task that all subscribe to
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from tests.bench.a2a_wire import BROKEN, Stream, ask, encoded, opened, sending, task_of
from tests.bench.a2a_work import Work, said_at

BOUND_S = 60.0
HEAD_START_S = 2.0
"""A task that many subscribe to says nothing before they have."""


@dataclass(slots=True, kw_only=True)
class _Tally:
    latencies_ms: list[float] = field(default_factory=list[float])
    read_latencies_ms: list[float] = field(default_factory=list[float])
    lags_ms: list[float] = field(default_factory=list[float])
    events: int = 0
    failed: int = 0
    first_failure: str = ""

    def fail(self, exc: Exception) -> None:
        self.failed += 1
        self.first_failure = self.first_failure or f"{type(exc).__name__}: {exc}"


async def _keep_sending(job: Mapping[str, Any], began: float, tally: _Tally, wait: bool) -> None:
    trivial = Work(kind="trivial")
    async with opened(job["host"], job["port"]) as connection:
        while (now := time.perf_counter()) < began + job["seconds"]:
            request = encoded(job["token"], "SendMessage", sending(trivial, wait=wait))
            with anyio.fail_after(BOUND_S):
                await ask(connection, request)
            if now >= began:
                tally.latencies_ms.append((time.perf_counter() - now) * 1000)


async def _keep_reading(job: Mapping[str, Any], began: float, tally: _Tally, task_id: str) -> None:
    request = encoded(job["token"], "GetTask", {"id": task_id})
    async with opened(job["host"], job["port"]) as connection:
        while (now := time.perf_counter()) < began + job["seconds"]:
            with anyio.fail_after(BOUND_S):
                await ask(connection, request)
            if now >= began:
                tally.read_latencies_ms.append((time.perf_counter() - now) * 1000)


async def _watch(job: Mapping[str, Any], request: bytes, tally: _Tally, begun: anyio.Event | None = None) -> None:
    try:
        async with opened(job["host"], job["port"]) as connection:
            stream = Stream(connection=connection)
            await stream.begin(request)
            if begun is not None:
                begun.set()
            with anyio.fail_after(BOUND_S):
                while events := await stream.next():
                    now = time.time()
                    tally.events += len(events)
                    tally.lags_ms += [(now - said) * 1000 for event in events if (said := said_at(event))]
    except (ValueError, *BROKEN) as exc:
        tally.fail(exc)
        if begun is not None:
            begun.set()


async def _first_task(job: Mapping[str, Any], work: Work) -> str:
    async with opened(job["host"], job["port"]) as connection:
        return task_of(await ask(connection, encoded(job["token"], "SendMessage", sending(work, wait=False))))


async def _drive(job: Mapping[str, Any]) -> dict[str, Any]:
    tally = _Tally()
    cpu, began = time.process_time(), time.perf_counter()
    async with anyio.create_task_group() as group:
        if job["kind"] in {"send", "create"}:
            began += job["lead_s"]
            for _ in range(job["concurrency"]):
                group.start_soon(_keep_sending, job, began, tally, job["kind"] == "send")
            if job["kind"] == "create":
                task_id = await _first_task(job, Work(kind="trivial"))
                for _ in range(job["concurrency"]):
                    group.start_soon(_keep_reading, job, began, tally, task_id)
        elif job["kind"] == "streams":
            work = Work(kind="ticks", count=job["ticks"], interval_s=job["interval_s"])
            for _ in range(job["streams"]):
                group.start_soon(_watch, job, encoded(job["token"], "SendStreamingMessage", sending(work)), tally)
        else:
            task_id = await _first_task(job, Work(kind="ticks", count=job["ticks"], interval_s=job["interval_s"]))
            request = encoded(job["token"], "SubscribeToTask", {"id": task_id})
            for _ in range(job["streams"]):
                group.start_soon(_watch, job, request, tally)
    return {
        "latencies_ms": tally.latencies_ms,
        "read_latencies_ms": tally.read_latencies_ms,
        "lags_ms": tally.lags_ms,
        "events": tally.events,
        "failed": tally.failed,
        "first_failure": tally.first_failure,
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
    }


def main() -> None:
    """Read the job, run it, write the result."""
    result = anyio.run(_drive, json.load(sys.stdin), backend_options={"use_uvloop": True})
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
