"""What two replicas make of one task, ours and a2a-sdk's own handler in one run. Printed only; run by `make bench-a2a`.

Each row is a thing that an agent's users do while a balancer sends every request elsewhere: A and B are two replicas on
one PostgreSQL. The agent does the same on both sides (`a2a_work`).
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest

from tests.bench import report
from tests.bench.a2a_sides import SDK_PYTHON, Side, our_side, sdk_side
from tests.bench.a2a_wire import sending, task_of
from tests.bench.a2a_work import Work
from tests.bench.conftest import Plan
from tests.bench.place import Place, open_world
from tests.support.agents import Rpc, SseEvent

pytestmark = [pytest.mark.anyio, pytest.mark.bench, pytest.mark.timeout(1800)]
BOUND_S = 15.0
"""Whatever has not come by then does not come."""
LAG_TICKS = 60
SILENT_S = 7.5
PAIRINGS = ("AA", "AB", "BA", "BB")
CHUNKS, CHUNK_BYTES = 600, 4096
COUNTED, AT = 50, (100, 200, 400, 600)
SLOW_S = 2.0
STEPS = Work(kind="ticks", count=60, interval_s=0.1, steps=True)
_ENDED = ("COMPLETED", "FAILED", "CANCELED", "REJECTED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One side with clients of both replicas."""

    side: Side
    a: Rpc
    b: Rpc
    folder: Path

    def at(self, name: str) -> Rpc:
        """The client of A or B."""
        return self.a if name == "A" else self.b


async def test_one_task_on_two_replicas_ours_and_the_sdks_handler(place: Place, plan: Plan, tmp_path: Path) -> None:
    world, _ = await open_world(place, "a2a", "replicas")
    tenant = await world.tenant("bench")
    openers: dict[str, Callable[[], Any]] = {"ours": lambda: our_side(world, tenant, tmp_path, workers=4)}
    if SDK_PYTHON.exists():
        openers["sdk"] = lambda: sdk_side(place, world, tenant, tmp_path)
    found: dict[str, dict[str, str]] = {}
    loads: list[str] = []
    for name, opened in openers.items():
        found[name] = {}
        async with _scene(opened, tmp_path) as scene:
            for row, measure in ROWS.items():
                loads.append(f"{os.getloadavg()[0]:.1f}")
                found[name][row] = await _measured(measure, scene)
                print(f"\n{name}: {row}: {found[name][row]}", flush=True)
        for row, signals in HANDOVERS.items():
            # the SDK's owner is a replica, and is gone afterwards
            async with _scene(opened, tmp_path) as scene:
                found[name][row] = await _measured(lambda on, how=signals: _handed_over(on, how), scene)
                print(f"\n{name}: {row}: {found[name][row]}", flush=True)
    print(f"\nload over time: {' '.join(loads)}")
    for row in (*ROWS, *HANDOVERS):
        print(f"{row}\n" + "".join(f"    {name:6} {rows[row]}\n" for name, rows in found.items()), end="")
    machine = await report.machine(world.superuser_url)
    print(machine)
    report.save(plan.results, "a2a-replicas", {"machine": machine, "rows": found})


@asynccontextmanager
async def _scene(opened: Callable[[], Any], folder: Path) -> AsyncGenerator[Scene]:
    async with opened() as side, httpx.AsyncClient(timeout=60.0) as http:
        a, b = (Rpc(base=one.base, token=side.token, http=http) for one in side.replicas)
        await a.call("SendMessage", sending(Work(kind="trivial")))
        yield Scene(side=side, a=a, b=b, folder=folder)


async def _measured(measure: Callable[[Scene], Awaitable[str]], scene: Scene) -> str:
    try:
        with anyio.fail_after(6 * BOUND_S):
            return await measure(scene)
    except (AssertionError, TimeoutError, httpx.HTTPError, KeyError) as exc:
        return f"failed: {type(exc).__name__} {str(exc)[:200]}"


def _text(event: SseEvent) -> str:
    message = event.data.get("result", {}).get("statusUpdate", {}).get("status", {}).get("message") or {}
    return "".join(part.get("text", "") for part in message.get("parts", ()))


def _tick(event: SseEvent) -> tuple[float, int] | None:
    """Return when a tick was said, and by which process."""
    said = _text(event).split()
    return (float(said[1]), int(said[2])) if len(said) == 3 and said[0].isdigit() else None


def _ends(event: SseEvent) -> bool:
    result = event.data.get("result", {})
    status = (result.get("statusUpdate") or result.get("task") or {}).get("status", {})
    return str(status.get("state", "")).endswith(_ENDED)


async def _send(rpc: Rpc, work: Work, *, wait: bool = False, **fields: Any) -> str:
    return task_of(await rpc.call("SendMessage", sending(work, wait=wait, **fields)))


async def _state(rpc: Rpc, task_id: str) -> str:
    return str((await rpc.call("GetTask", {"id": task_id}))["status"]["state"]).removeprefix("TASK_STATE_")


def _reply(task_id: str, text: str, **fields: Any) -> dict[str, Any]:
    params = sending(Work(kind="trivial"), wait=False, taskId=task_id, **fields)
    params["message"]["parts"] = [{"text": text}]
    return params


async def _lag(scene: Scene) -> str:
    task_id = await _send(scene.a, Work(kind="ticks", count=LAG_TICKS, interval_s=0.1))
    lags: list[float] = []
    async with scene.b.stream("SubscribeToTask", {"id": task_id}) as events:
        async for event in events:
            if (tick := _tick(event)) is not None:
                lags.append((time.time() - tick[0]) * 1000)
            if _ends(event):
                break
    lags.sort()
    return f"median {statistics.median(lags):.1f} ms, p95 {lags[len(lags) * 95 // 100]:.1f} ms ({len(lags)} events)"


async def _cancel(scene: Scene) -> str:
    file = scene.folder / f"{scene.side.name}-note"
    file.write_text("", encoding="utf-8")
    task_id = await _send(scene.a, Work(kind="silent", interval_s=SILENT_S, note=str(file)))
    await _noted(file, "began")
    began = time.time()
    await scene.b.call("CancelTask", {"id": task_id})
    answered = time.time()
    stopped = await _noted(file, "stopped")
    return f"{(stopped - began) * 1000:.0f} ms (CancelTask took {(answered - began) * 1000:.0f} ms)"


async def _noted(file: Path, what: str) -> float:
    with anyio.fail_after(BOUND_S):
        while True:
            for line in (await anyio.Path(file).read_text(encoding="utf-8")).splitlines():
                name, _, at = line.partition(" ")
                if name == what:
                    return float(at)
            await anyio.sleep(0.002)


async def _pairings(scene: Scene) -> str:
    done: list[str] = []
    for pairing in PAIRINGS:
        asked = (await scene.a.call("SendMessage", sending(Work(kind="ask"))))["task"]
        task_id, context_id = asked["id"], asked["contextId"]
        with anyio.move_on_after(BOUND_S / 2):
            async with scene.at(pairing[0]).stream("SubscribeToTask", {"id": task_id}) as events:
                await anext(events)
                await scene.at(pairing[1]).call("SendMessage", _reply(task_id, "more", contextId=context_id))
                async for event in events:
                    if _ends(event):
                        done.append(pairing)
                        break
    return f"{len(done)} of {len(PAIRINGS)} (subscribed, answered at: {', '.join(done) or 'none'})"


async def _message_while_working(scene: Scene) -> str:
    said: list[str] = []
    for skill in ("bench", "bench-listens") if scene.side.workers else ("bench",):
        work = sending(replace(STEPS, count=20, interval_s=0.2), wait=False, skill=skill)
        task = (await scene.a.call("SendMessage", work))["task"]
        task_id, context_id = task["id"], task["contextId"]
        texts: list[str] = []
        answer: Mapping[str, Any] = {}
        with anyio.move_on_after(BOUND_S):
            async with scene.a.stream("SubscribeToTask", {"id": task_id}) as events:
                async for event in events:
                    texts.append(_text(event))
                    if len(texts) == 5:
                        reply = _reply(task_id, "hello", contextId=context_id)
                        answer = (await scene.b.raw("SendMessage", reply)).json()
                    if _ends(event):
                        break
        heard = next((place for place, text in enumerate(texts) if "hello" in text), None)
        told = f"refused ({answer['error']['code']})" if "error" in answer else "taken"
        ticks = sum(text[:1].isdigit() for text in texts[heard or 0 :])
        outcome = "not heard" if heard is None else f"heard, {ticks} ticks after it"
        said.append(f"{skill}: {told}, {outcome}, then {await _state(scene.b, task_id)}")
    return "; ".join(said)


async def _follow_up(scene: Scene) -> str:
    task_id = await _send(scene.a, Work(kind="ask"), wait=True)
    answer = (await scene.b.raw("SendMessage", _reply(task_id, "more"))).json()
    told = f"refused ({answer['error']['code']})" if "error" in answer else "taken"
    state = await _state(scene.b, task_id)
    with anyio.move_on_after(BOUND_S / 3):
        while not state.endswith(_ENDED):
            await anyio.sleep(0.05)
            state = await _state(scene.b, task_id)
    return f"{told}, task then {state}"


async def _webhook(scene: Scene) -> str:
    async with _slow_webhook() as url:
        params = sending(Work(kind="ticks", count=6, interval_s=0.01))
        params["configuration"] = {"taskPushNotificationConfig": {"url": url}}
        times: list[float] = []
        with anyio.move_on_after(2 * BOUND_S):
            async with scene.a.stream("SendStreamingMessage", params) as events:
                times.extend([time.perf_counter() async for _ in events])
    return f"{len(times)} events in {times[-1] - times[0]:.2f} s"


@asynccontextmanager
async def _slow_webhook() -> AsyncGenerator[str]:
    async def take(connection: anyio.abc.SocketStream) -> None:
        async with connection:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await connection.receive()
                await anyio.sleep(SLOW_S)
                await connection.send(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0) as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, take)
        port = int(listener.extra(anyio.abc.SocketAttribute.local_port))  # noqa: S610
        yield f"http://127.0.0.1:{port}/hook"
        tasks.cancel_scope.cancel()


async def _chunks(scene: Scene) -> str:
    times: list[float] = []
    async with scene.a.stream(
        "SendStreamingMessage", sending(Work(kind="chunks", count=CHUNKS, size=CHUNK_BYTES))
    ) as events:
        times.extend([time.perf_counter() async for event in events if "artifactUpdate" in event.data["result"]])
    each = [f"{(times[at - 1] - times[at - 1 - COUNTED]) / COUNTED * 1000:.1f}" for at in AT if at <= len(times)]
    return f"{' / '.join(each)} ms each ({len(times)} chunks)"


async def _handed_over(scene: Scene, signals: tuple[signal.Signals, ...]) -> str:
    """Take the process that runs a task away, and see when the task goes on, from B."""
    took: list[str] = []
    for number in signals[: 1 if not scene.side.workers else None]:
        task_id = await _send(scene.a, STEPS)
        owner: anyio.abc.Process | None = None
        gone = 0.0
        seen = 0
        with anyio.move_on_after(BOUND_S + 5.0):
            async with scene.b.stream("SubscribeToTask", {"id": task_id}) as events:
                async for event in events:
                    tick = _tick(event)
                    seen += tick is not None
                    if owner is None and seen == 10:
                        owner = await scene.side.owner(task_id)
                        gone = time.time()
                        owner.send_signal(number)
                    elif owner is not None and tick is not None and tick[1] != owner.pid:
                        took.append(f"{tick[0] - gone:.2f} s")
                        break
        if not took:
            return f"nothing within {BOUND_S:.0f} s; task {await _state(scene.b, task_id)}"
    return ", ".join(took)


ROWS: Mapping[str, Callable[[Scene], Awaitable[str]]] = {
    "event lag, agent on A, subscriber on B": _lag,
    "cancel on B reaches the agent on A": _cancel,
    "ask on A; subscribe x answer on {A,B}: the stream delivers the rest": _pairings,
    "message to a working task, on the other replica": _message_while_working,
    "follow-up with only taskId, other replica": _follow_up,
    "a webhook that takes 2 s": _webhook,
    "artifact of 600 chunks x 4 kB, last 50 at 100/200/400/600": _chunks,
}
HANDOVERS: Mapping[str, tuple[signal.Signals, ...]] = {
    "kill -9 of the owner: the task goes on after": (signal.SIGKILL,) * 3,
    "SIGTERM of the owner: the task goes on after": (signal.SIGTERM,) * 3,
}
