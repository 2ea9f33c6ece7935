"""What a run tells the world, across workers: told once, and an answer begun anew is never mixed with the old one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from rag.tasks import leases
from rag.tasks.fold import fold_artifacts
from rag.tasks.values import EventKind
from tests.support import tasks
from tests.support.world import World
from workflows.journal import Journal, Step
from workflows.workflow import CostBound

pytestmark = pytest.mark.anyio
BOUND = CostBound(calls=10, tokens=1_000)
STEP = Step(id="generate", try_number=1)


async def _write(journal: Journal, *pieces: str) -> None:
    async def produce(emit: Callable[[str], Awaitable[None]]) -> None:
        for piece in pieces:
            await emit(piece)

    await journal.stream(STEP, "answer", produce)


@pytest.mark.parametrize("drained", [True, False], ids=["handed back", "lost"])
async def test_whoever_takes_a_run_over_starts_its_artifact_anew(world: World, drained: bool) -> None:
    ada = world.principal(await world.tenant("acme"))
    async with world.database(claims=True) as database:
        task_id = await tasks.accept(database, ada)
        first = await tasks.claim(database, lease_s=60.0 if drained else 0.0)
        await _write(
            Journal(database=database, principal=ada, task_id=task_id, fence=first.fence, bound=BOUND), "the ", "old"
        )
        if drained:  # which is not counted as an attempt
            await leases.release_runs(database, worker="worker-a", held=[first])
        second = await tasks.claim(database, worker="worker-b")
        await _write(
            Journal(database=database, principal=ada, task_id=task_id, fence=second.fence, bound=BOUND),
            "a ",
            "new text",
        )
        log = await tasks.events(database, ada, task_id)
    assert [event.payload["append"] for event in log if event.kind is EventKind.ARTIFACT] == [False, False]
    (artifact,) = fold_artifacts(log)
    assert artifact.parts == ({"text": "a new text"},)


async def test_a_step_that_is_replayed_by_another_worker_tells_nothing_twice(world: World) -> None:
    ada = world.principal(await world.tenant("acme"))
    async with world.database(claims=True) as database:
        task_id = await tasks.accept(database, ada)
        for worker in ("worker-a", "worker-b"):
            claim = await tasks.claim(database, worker=worker, lease_s=0.0)
            journal = Journal(database=database, principal=ada, task_id=task_id, fence=claim.fence, bound=BOUND)
            await journal.progress(STEP, "begin", "searching…")
            await journal.artifact(STEP, "answer", [{"text": "whole"}])
        assert [event.seq for event in await tasks.events(database, ada, task_id)] == [1, 2, 3]
