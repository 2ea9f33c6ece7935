"""Real processes, real signals: a streamed task outlives the worker that runs it, and its readers lose nothing."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from rag.clients.a2a import Ended, Event, Progress, Result, Text, a2a_client
from rag.identity.scopes import Audience
from rag.settings import Settings
from rag.tenants.operator import Tenant
from tests.support.agents import Rpc, SseEvent, message
from tests.support.documents import put_raw_document
from tests.support.gated_model import GatedModel, gated_model
from tests.support.processes import Started, fleet_settings, started
from tests.support.served import served_at
from tests.support.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.faults]
BOUND_S = 60.0
LEASE_S = 2.0
TEXT = "It shall be unlawful for any person to use any manipulative or deceptive device in the sale of any security."
PIECES = ("It shall be ", "unlawful for ", "any person to use ", "any manipulative ", "or deceptive device [1].")
ANSWER = "".join(PIECES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Both servers up; workers are started by the test."""

    settings: Settings
    logs: Path
    model: GatedModel
    rpc: Rpc
    world: World
    acme: Tenant

    @asynccontextmanager
    async def worker(self, **changes: Any) -> AsyncGenerator[Started]:
        """Run one more worker process."""
        async with started("workflows", replace(self.settings, **changes), self.logs) as process:
            yield process

    async def log(self, task_id: str) -> list[SseEvent]:
        """Return the whole log of a task that has ended."""
        async with self.rpc.stream("SubscribeToTask", {"id": task_id}, last_event_id="0") as events:
            return [event async for event in events]


@pytest.fixture(name="fleet")
async def fleet_fixture(world: World, tmp_path: Path) -> AsyncGenerator[Fleet]:
    """An MCP server and an A2A server as processes, one document, a model under the test's control."""
    acme = await world.tenant("acme")
    async with world.database() as database, database.tenant(world.principal(acme)) as session:
        await put_raw_document(session, title="Law", text=TEXT)
    async with gated_model(*PIECES) as model:
        settings = fleet_settings(world.settings, lease_s=LEASE_S, **served_at(model.base_url, "tiny"))
        async with (
            started("mcp_server", settings, tmp_path),
            started("a2a_server", settings, tmp_path),
            httpx.AsyncClient(timeout=BOUND_S) as http,
        ):
            token = world.token(acme, audience=Audience.A2A)
            rpc = Rpc(base=settings.a2a_url, token=token, http=http)
            yield Fleet(settings=settings, logs=tmp_path, model=model, rpc=rpc, world=world, acme=acme)


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What a reader had before it was cut off."""

    task_id: str
    events: list[SseEvent]

    @property
    def last(self) -> int:
        """The id of its last event."""
        assert self.events[-1].id is not None
        return self.events[-1].id


async def _read_until_written(fleet: Fleet, text: str, *, request: int = 0) -> Read:
    """Start a task, let its first worker write `text`, read that, and drop the connection."""
    seen: list[SseEvent] = []
    async with fleet.rpc.stream("SendStreamingMessage", message("Is a deceptive device unlawful?")) as events:
        answer = await fleet.model.answer(request)
        answer.allow(next(n for n in range(len(PIECES)) if "".join(PIECES[:n]) == text))
        written = ""
        async for event in events:
            seen.append(event)
            written += _text(event)
            if written == text:
                break
    return Read(task_id=seen[0].result["task"]["id"], events=seen)


async def _rest(fleet: Fleet, read: Read) -> list[SseEvent]:
    params = {"id": read.task_id}
    async with fleet.rpc.stream("SubscribeToTask", params, last_event_id=str(read.last)) as events:
        return [event async for event in events]


def _text(event: SseEvent) -> str:
    artifact = event.result.get("artifactUpdate", {}).get("artifact", {})
    return "".join(part.get("text", "") for part in artifact.get("parts", []))


def _assert_whole(log: list[SseEvent], *parts: list[SseEvent]) -> None:
    """The parts that readers got are the log: in order, each event once, no number missing, ending well."""
    joined = [event for part in parts for event in part]
    assert [event.id for event in joined] == list(range(1, len(log) + 1))
    assert [event.result for event in joined[1:]] == [event.result for event in log[1:]]
    assert joined[-1].result["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"


async def test_a_task_whose_worker_is_killed_completes_and_its_reader_misses_and_repeats_nothing(fleet: Fleet) -> None:
    async with fleet.worker() as first:
        read = await _read_until_written(fleet, "".join(PIECES[:3]))
        first.signal(signal.SIGKILL)
        assert await first.wait() == -signal.SIGKILL
    async with fleet.worker():
        (await fleet.model.answer(1)).allow(len(PIECES))
        rest = await _rest(fleet, read)
    log = await fleet.log(read.task_id)
    _assert_whole(log, read.events, rest)
    # the new attempt starts the artifact again under its id, and the searches before it are not repeated
    starts = [event for event in rest if _text(event) and not event.result["artifactUpdate"].get("append")]
    assert starts[0].result["artifactUpdate"]["artifact"]["artifactId"] == "answer"
    assert _text(log[-3]) == ANSWER
    texts = [
        event.result["statusUpdate"]["status"]["message"]["parts"][0]["text"]
        for event in log[1:-1]
        if "statusUpdate" in event.result
    ]
    assert len(texts) == len(set(texts))
    task = await fleet.rpc.call("GetTask", {"id": read.task_id})
    assert task["artifacts"][0]["parts"][0]["text"] == ANSWER
    (citation,) = task["artifacts"][0]["parts"][1]["data"]["citations"]
    assert TEXT[int(citation["start"]) : int(citation["end"])] == citation["quote"]


async def test_a_worker_that_slept_past_its_lease_writes_nothing_when_it_wakes(fleet: Fleet) -> None:
    async with AsyncExitStack() as stack:
        sleeper = await stack.enter_async_context(fleet.worker())
        read = await _read_until_written(fleet, "".join(PIECES[:2]))
        sleeper.signal(signal.SIGSTOP)
        await stack.enter_async_context(fleet.worker())
        (await fleet.model.answer(1)).allow(len(PIECES))
        rest = await _rest(fleet, read)
        before = await fleet.log(read.task_id)
        stale = await fleet.model.answer(0)
        stale.allow(len(PIECES))  # waits in the sleeper's socket: it wakes to a finished answer
        sleeper.signal(signal.SIGCONT)
        await stale.left.wait()
        await sleeper.logged("is lost or canceled; it stops")
        after = await fleet.log(read.task_id)
    _assert_whole(before, read.events, rest)
    assert [event.data for event in after] == [event.data for event in before]


async def test_a_worker_that_is_told_to_stop_hands_its_run_over_at_once(fleet: Fleet) -> None:
    long_lease = 3600.0
    async with fleet.worker(lease_s=long_lease) as first:
        read = await _read_until_written(fleet, "".join(PIECES[:1]))
        started_at = anyio.current_time()
        first.signal(signal.SIGTERM)
        assert await first.wait() == 0
        took = anyio.current_time() - started_at
    assert took < 5.0, f"SIGTERM took {took:.1f} s"
    print(f"hand-over: {took:.2f} s from SIGTERM to exit")
    async with fleet.worker(lease_s=long_lease):  # could wait for a lease of an hour, and need not
        (await fleet.model.answer(1)).allow(len(PIECES))
        rest = await _rest(fleet, read)
    _assert_whole(await fleet.log(read.task_id), read.events, rest)


async def test_a_replica_that_is_told_to_stop_lets_its_readers_go_on_elsewhere(fleet: Fleet) -> None:
    other = fleet_settings(fleet.settings)
    async with fleet.worker(), started("a2a_server", other, fleet.logs) as replica:
        there = replace(fleet, rpc=replace(fleet.rpc, base=other.a2a_url))
        seen: list[SseEvent] = []
        stopped_at = 0.0
        told: list[SseEvent] = []
        async with there.rpc.stream("SendStreamingMessage", message("Is it unlawful?")) as events:
            (await fleet.model.answer(0)).allow(1)
            async for event in events:
                (told if event.event == "error" else seen).append(event)
                if event.event != "error" and _text(event):
                    replica.signal(signal.SIGTERM)
                    stopped_at = anyio.current_time()
        # the stream ends with a word: nobody can take it for the end of the task
        assert [event.data["error"]["data"][0]["metadata"]["code"] for event in told] == ["unavailable"]
        assert await replica.wait() == 0
        took = anyio.current_time() - stopped_at
        assert took < 5.0, f"SIGTERM took {took:.1f} s with a stream open"
        print(f"drain of a replica: {took:.2f} s from SIGTERM to exit, with a stream open")
        (await fleet.model.answer(0)).allow(len(PIECES))
        rest = await _rest(fleet, Read(task_id=seen[0].result["task"]["id"], events=seen))
    _assert_whole(await fleet.log(seen[0].result["task"]["id"]), seen, rest)


async def test_a_replica_that_is_told_to_stop_tells_a_waiting_caller_its_task(fleet: Fleet) -> None:
    """Nobody has seen the id of that task yet: an answer of 500 would be the end of it for its caller."""
    settings = fleet_settings(fleet.settings)
    answers: list[httpx.Response] = []
    async with started("a2a_server", settings, fleet.logs) as replica:
        rpc = replace(fleet.rpc, base=settings.a2a_url)

        async def ask() -> None:
            answers.append(await rpc.raw("SendMessage", message("Is it unlawful?")))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            while not (await fleet.rpc.call("ListTasks", {}))["tasks"]:
                await anyio.lowlevel.checkpoint()
            replica.signal(signal.SIGTERM)
        assert await replica.wait() == 0
    task = answers[0].json()["result"]["task"]
    assert task["status"]["state"] == "TASK_STATE_SUBMITTED"
    async with fleet.worker():
        (await fleet.model.answer(0)).allow(len(PIECES))
        (*_, last) = await fleet.log(task["id"])
    assert last.result["statusUpdate"]["status"]["state"] == "TASK_STATE_COMPLETED"


async def test_our_own_client_goes_on_by_itself_when_the_server_was_restarted(fleet: Fleet) -> None:
    settings = fleet_settings(fleet.settings)
    seen: list[Event] = []
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(fleet.worker())
        server = await stack.enter_async_context(started("a2a_server", settings, fleet.logs))
        http = await stack.enter_async_context(httpx.AsyncClient())
        client = await stack.enter_async_context(a2a_client(settings.a2a_url, fleet.rpc.token, http=http))
        restarted = False
        with anyio.fail_after(BOUND_S):
            async with aclosing(client.ask("Is it unlawful?")) as events:
                async for event in events:
                    seen.append(event)
                    if isinstance(event, Progress) and event.metadata.get("step") == "generate":
                        (await fleet.model.answer(0)).allow(1)
                    elif isinstance(event, Text) and not restarted:
                        restarted = True
                        server.signal(signal.SIGTERM)
                        assert await server.wait() == 0
                        await stack.enter_async_context(started("a2a_server", settings, fleet.logs))
                        (await fleet.model.answer(0)).allow(len(PIECES))
    assert restarted
    assert "".join(event.text for event in seen if isinstance(event, Text)) == ANSWER
    assert [event.text for event in seen if isinstance(event, Result)] == [ANSWER]
    assert seen[-1] == Ended(state="completed", reason=None)
