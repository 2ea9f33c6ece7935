"""A task whose worker is killed, frozen or cut off from its database at any boundary that it has with the outside.

First the task runs undisturbed, and its boundaries are written down. Then it runs again and again, each time with one
fault at one of them, drawn by a seed so that kinds of places that were not hit yet come first. Whatever happens: it
completes with the same report, a reader that follows from the first event on is told each event once, each logical
call has one result, and a worker that wakes up late writes nothing.

    make faults                               40 runs, as CI does
    make test-heavy                           200 runs
    pytest -m faults --fault-runs 5 --fault-seed 7 -n 0 -s tests/faults
    pytest -m faults --fault-runs 1 --fault-at "stop before run 1" -n 0 -s tests/faults
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import UUID

import anyio
import anyio.abc
import asyncpg
import httpx
import psutil
import pytest

from rag.db.pool import Database, Row, Session
from rag.errors import Unavailable
from rag.identity.principal import Principal
from rag.identity.scopes import Audience
from rag.settings import Settings
from rag.tasks import store
from rag.tasks.fold import fold_artifacts
from rag.tasks.values import TERMINAL, EventKind, TaskEvent, TaskState
from sql import Query
from tests.support.agents import Rpc, SseEvent, message
from tests.support.documents import put_raw_document
from tests.support.processes import Started, fleet_settings, started
from tests.support.world import Cluster, World, cluster, world

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.timeout(3600)]
T = TypeVar("T")
ROOT = Path(__file__).parent.parent.parent
WORKFLOW = "research"
QUESTION = "What is unlawful in the sale of securities, and what may the Commission do about it?"
LEASE_S = 2.0
BOUND_S = 90.0
POLL_S = 0.05
_CALLS = Query(
    name="calls",
    description="A task's calls.",
    text="""
    select name, attempts, result is not null as done
    from rag.task_call
    where task_id = $1
    order by started_at
    """,
    parameters=("task_id",),
)
_CHECKPOINTS = Query(
    name="checkpoints",
    description="How much a run has stored of itself.",
    text="""
    select (select count(*) from checkpoint.checkpoints where thread_id = $1)
        + (select count(*) from checkpoint.checkpoint_writes where thread_id = $1)
    """,
    parameters=("thread_id",),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens, and where."""

    place: str
    do: str
    """kill, stop or wait (for a database that is taken away meanwhile)."""

    @property
    def kind(self) -> str:
        """The place without its number."""
        return self.place.rpartition(" ")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to."""

    fault: Fault
    reached: bool
    resumed_s: float | None
    """From the fault to the next event of the log; None if the task had nothing more to tell, or was not disturbed."""
    repeated: int
    """Physical calls beyond the first of each."""


@dataclass(slots=True, kw_only=True)
class Reader:
    """Follows one task from its first event on, over the wire, and comes back whenever it is cut off."""

    rpc: Rpc
    task_id: str
    seen: list[int] = field(default_factory=list[int])
    cuts: int = 0

    async def follow(self) -> None:
        """Return once the task has ended."""
        while not await self._once():
            self.cuts += 1
            await anyio.sleep(POLL_S)

    async def _once(self) -> bool:
        last = self.seen[-1] if self.seen else 0
        with suppress(httpx.TransportError, AssertionError):
            async with self.rpc.stream("SubscribeToTask", {"id": self.task_id}, last_event_id=str(last)) as events:
                async for event in events:
                    if event.event == "error":
                        return False
                    assert event.id is not None
                    self.seen.append(event.id)
                    if _ends(event):
                        return True
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The servers, a worker that is kept still until it is needed, and the database behind them."""

    settings: Settings
    folder: Path
    rpc: Rpc
    database: Database
    ada: Principal
    superuser_url: str
    spare: Started

    @asynccontextmanager
    async def faulty(self, **fault: Any) -> AsyncGenerator[anyio.abc.Process]:
        """Run the worker that breaks."""
        env = {
            "PATH": os.environ["PATH"],  # noqa: TID251  # what a child needs to start at all
            "FAULT": json.dumps(fault),
            **self.settings.to_env(),
        }
        with (self.folder / "faulty.log").open("ab") as log:
            process = await anyio.open_process(
                [sys.executable, "-m", "tests.faults.boundaries"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=env,
                cwd=ROOT,
            )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            with anyio.CancelScope(shield=True):
                await process.wait()
                await process.aclose()

    async def ask(self) -> str:
        """Have a task accepted, and return its id."""
        params = {**message(QUESTION, metadata={"skillId": WORKFLOW}), "configuration": {"returnImmediately": True}}
        return str((await self.rpc.call("SendMessage", params))["task"]["id"])

    async def log(self, task_id: str) -> list[TaskEvent]:
        """Return the task's log."""
        return await self._read(lambda session: store.events_after(session, UUID(task_id), 0))

    async def calls(self, task_id: str) -> list[Row]:
        """Return the task's calls."""
        return await self._read(lambda session: session.fetch(_CALLS, task_id=UUID(task_id)))

    async def left(self, task_id: str) -> tuple[int, int, int]:
        """Return how much there is of a task: events, calls, checkpoints."""
        stored = await self._read(lambda session: session.fetch_value(_CHECKPOINTS, thread_id=task_id))
        calls = await self.calls(task_id)
        return len(await self.log(task_id)), sum(call["attempts"] for call in calls), int(stored)

    async def _read(self, read: Callable[[Session], Awaitable[T]]) -> T:
        # the database that is crashed is this test's as well
        found: list[T] = []

        async def tried() -> bool:
            with suppress(Unavailable):
                async with self.database.tenant(self.ada) as session:
                    found.append(await read(session))
            return bool(found)

        await _until(tried)
        return found[-1]

    async def crash_database(self) -> None:
        """Kill one of the database's processes: the server throws all sessions out and recovers from its log."""
        connection = await asyncpg.connect(self.superuser_url)
        os.kill(_pid(connection), signal.SIGKILL)

        async def back() -> bool:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                again = await asyncpg.connect(self.superuser_url, timeout=2)
                await again.close()
                return True
            return False

        await _until(back)


@pytest.fixture(scope="module", name="mortal")
def mortal_fixture() -> Iterator[Cluster]:
    """A database server of its own, since it is killed."""
    with cluster(ROOT / ".cache" / "fault-cluster") as own:
        yield own


@pytest.fixture(name="scene")
async def scene_fixture(mortal: Cluster, tmp_path: Path) -> AsyncGenerator[Scene]:
    """Two servers, and a spare worker."""
    async with AsyncExitStack() as stack:
        own: World = await stack.enter_async_context(world(mortal))
        acme = await own.tenant("acme")
        ada = own.principal(acme)
        database = await stack.enter_async_context(own.database(pool_size=2))
        await _library(database, ada)
        settings = fleet_settings(own.settings, lease_s=LEASE_S, request_limit_per_minute=1_000_000)
        await stack.enter_async_context(started("mcp_server", settings, tmp_path))
        await stack.enter_async_context(started("a2a_server", settings, tmp_path))
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=BOUND_S))
        token = own.token(acme, audience=Audience.A2A, lifetime_s=7_200.0)
        yield Scene(
            settings=settings,
            folder=tmp_path,
            rpc=Rpc(base=settings.a2a_url, token=token, http=http),
            database=database,
            ada=ada,
            superuser_url=own.superuser_url,
            spare=await stack.enter_async_context(started("workflows", settings, tmp_path)),
        )


async def test_a_task_survives_a_fault_at_any_boundary(scene: Scene, pytestconfig: pytest.Config) -> None:
    runs: Any = pytestconfig.getoption("--fault-runs")
    seed: Any = pytestconfig.getoption("--fault-seed")
    only: Any = pytestconfig.getoption("--fault-at")
    chance = random.Random(seed)  # a draw that can be repeated, no secret
    places, reference = await _undisturbed(scene)
    kinds = Counter(place.rpartition(" ")[0] for place in places)
    outcomes: list[Outcome] = []
    for number in range(runs):
        fault = _parse(only) if only else _draw(chance, places, outcomes)
        print(f"{number + 1}/{runs} {fault.do:4} {fault.place}", flush=True)
        outcomes.append(await _run(scene, reference, fault))
    _tell(outcomes, kinds, seed)
    assert sum(outcome.reached for outcome in outcomes) >= 0.8 * runs


async def _undisturbed(scene: Scene) -> tuple[list[str], Reference]:
    """Run the task once for its boundaries, and once by the spare worker: both must come to the same."""
    first = await scene.ask()
    await _ended(scene, first)
    places = scene.folder / "places"
    scene.spare.signal(signal.SIGSTOP)
    async with scene.faulty(record=str(places)):
        second = await scene.ask()
        await _ended(scene, second)
    reference = await _told(scene, first)
    assert await _told(scene, second) == reference
    return (await anyio.Path(places).read_text(encoding="utf-8")).splitlines(), reference


def _parse(text: str) -> Fault:
    do, _, place = text.partition(" ")
    return Fault(place=place, do=do)


def _draw(chance: random.Random, places: list[str], before: list[Outcome]) -> Fault:
    hit = Counter(outcome.fault.kind for outcome in before)
    fewest = min(hit[place.rpartition(" ")[0]] for place in places)
    place = chance.choice([place for place in places if hit[place.rpartition(" ")[0]] == fewest])
    return Fault(place=place, do=chance.choices(["kill", "stop", "wait"], [6, 2, 2])[0])


async def _run(scene: Scene, reference: Reference, fault: Fault) -> Outcome:
    signs = {name: anyio.Path(scene.folder / name) for name in ("reached", "resume", "over")}
    for sign in signs.values():
        await sign.unlink(missing_ok=True)
    plan = {"place": fault.place, "do": fault.do, **{name: str(sign) for name, sign in signs.items()}}
    async with scene.faulty(**plan) as process:
        task_id = await scene.ask()
        reader = Reader(rpc=scene.rpc, task_id=task_id)
        struck: float | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader.follow)
            struck = await _struck(scene, process, fault, signs["reached"], task_id)
            if fault.do == "wait" and struck is not None:
                await scene.crash_database()
                await signs["resume"].touch()
            scene.spare.signal(signal.SIGCONT)
            await _ended(scene, task_id)
            if fault.do == "stop" and struck is not None:
                await _wakes_to_nothing(scene, process, signs["over"], task_id)
    scene.spare.signal(signal.SIGSTOP)
    log = await scene.log(task_id)
    assert log[-1].payload["state"] == "completed", (fault, log[-1].payload["message"])
    assert await _told(scene, task_id) == reference, fault
    assert reader.seen == [event.seq for event in log] == list(range(1, len(log) + 1)), fault
    return Outcome(
        fault=fault,
        reached=struck is not None,
        resumed_s=None if struck is None else _resumed(log, struck),
        repeated=await _repeated(scene, task_id, log),
    )


async def _struck(
    scene: Scene, process: anyio.abc.Process, fault: Fault, reached: anyio.Path, task_id: str
) -> float | None:
    """Return when the fault happened; None if the task ended without ever being at that place."""
    watched = psutil.Process(process.pid)

    async def there() -> bool:
        match fault.do:
            case "kill":
                return process.returncode is not None
            case "stop":
                return watched.status() == psutil.STATUS_STOPPED
            case _:
                return await reached.exists()

    async def there_or_ended() -> bool:
        return await there() or _has_ended(await scene.log(task_id))

    await _until(there_or_ended)
    # the last places come after the last event
    with suppress(TimeoutError):
        await _until(there, bound_s=2.0)
        return time.time()
    return None


async def _wakes_to_nothing(scene: Scene, process: anyio.abc.Process, over: anyio.Path, task_id: str) -> None:
    """A worker that stood still past its lease goes on until its run is over: whatever it tries, nothing is stored."""
    before = await scene.left(task_id)
    process.send_signal(signal.SIGCONT)
    await _until(over.exists)
    assert await scene.left(task_id) == before


async def _ended(scene: Scene, task_id: str) -> None:
    async def ended() -> bool:
        return _has_ended(await scene.log(task_id))

    await _until(ended)


async def _until(condition: Callable[[], Awaitable[bool]], *, bound_s: float = BOUND_S) -> None:
    """Look until it is so: what is watched are other processes, which notify nobody."""
    with anyio.fail_after(bound_s):
        while not await condition():  # noqa: ASYNC110
            await anyio.sleep(POLL_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a run comes to, of what does not depend on when and how often it was tried."""

    state: str
    artifacts: tuple[tuple[str, str], ...]
    steps: tuple[tuple[str, str], ...]
    """Each thing that was told of a step, in a fixed order: steps that run side by side end in any."""
    calls: tuple[tuple[str, int], ...]
    """Logical calls by name."""


async def _told(scene: Scene, task_id: str) -> Reference:
    log = await scene.log(task_id)
    calls = await scene.calls(task_id)
    assert all(call["done"] for call in calls)
    told = [event.payload for event in log if event.kind is EventKind.STATUS]
    return Reference(
        state=str(log[-1].payload["state"]),
        artifacts=tuple(
            (artifact.artifact_id, "\n".join(str(part["text"]) for part in artifact.parts if "text" in part))
            for artifact in fold_artifacts(log)
        ),
        steps=tuple(
            sorted(
                (str(payload["metadata"].get("step")), str(payload["message"]))
                for payload in told
                if "call" not in payload["metadata"] and "step" in payload["metadata"]
            )
        ),
        calls=tuple(sorted(Counter(str(call["name"]) for call in calls).items())),
    )


async def _repeated(scene: Scene, task_id: str, log: list[TaskEvent]) -> int:
    """Return how many calls were made again; the log tells of each."""
    calls = await scene.calls(task_id)
    again = Counter((call["name"], call["attempts"]) for call in calls if call["attempts"] > 1)
    told = Counter((e.payload["metadata"]["call"], e.payload["metadata"]["attempt"]) for e in log if _is_again(e))
    assert all(told[one] >= count for one, count in again.items())
    return sum(call["attempts"] - 1 for call in calls)


def _has_ended(log: list[TaskEvent]) -> bool:
    return log[-1].payload.get("state") in TERMINAL


def _is_again(event: TaskEvent) -> bool:
    return event.kind is EventKind.STATUS and "call" in event.payload["metadata"]


def _resumed(log: list[TaskEvent], struck: float) -> float | None:
    later = [event.created_at.timestamp() for event in log if event.created_at.timestamp() > struck]
    return later[0] - struck if later else None


def _pid(connection: asyncpg.Connection) -> int:
    return cast("Any", connection).get_server_pid()


def _ends(event: SseEvent) -> bool:
    update = event.result.get("statusUpdate")
    if update is None:
        return False
    return TaskState(str(update["status"]["state"]).removeprefix("TASK_STATE_").lower().replace("_", "-")) in TERMINAL


def _tell(outcomes: list[Outcome], kinds: Counter[str], seed: int) -> None:
    hit = {outcome.fault.kind for outcome in outcomes if outcome.reached}
    resumed = sorted(outcome.resumed_s for outcome in outcomes if outcome.resumed_s is not None)
    by_deed = Counter(outcome.fault.do for outcome in outcomes if outcome.reached)
    lines = [
        f"seed {seed}: {len(outcomes)} runs, {sum(o.reached for o in outcomes)} faults ({dict(by_deed)})",
        f"boundaries of a run: {sum(kinds.values())} of {len(kinds)} kinds; {len(hit)} kinds were hit "
        f"({100 * len(hit) / len(kinds):.0f} %)",
        f"calls made again: {sum(outcome.repeated for outcome in outcomes)}, each told in its log",
    ]
    if resumed:
        lines.append(
            f"from the fault to the next event: median {statistics.median(resumed):.1f} s, longest {resumed[-1]:.1f} s"
        )
    print("\n".join(lines), flush=True)


async def _library(database: Database, ada: Principal) -> None:
    for title, text in DOCUMENTS.items():
        async with database.tenant(ada) as session:
            await put_raw_document(session, title=title, text=text)


DOCUMENTS = {
    "Manipulative devices": (
        "It shall be unlawful for any person to use any manipulative or deceptive device in the sale of any security. "
        "The Commission may prescribe rules as necessary in the public interest for the protection of investors."
    ),
    "Penalties": (
        "Any person who willfully violates any provision on the sale of securities shall upon conviction be fined. "
        "The Commission may bring an action in a district court to enjoin acts that are unlawful in the sale of "
        "securities, and the court may order the return of gains."
    ),
    "Definitions": (
        "The term security means any note, stock, bond or investment contract that is offered for sale. "
        "The term Commission means the Securities and Exchange Commission."
    ),
}
