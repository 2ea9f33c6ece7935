"""A run's calls to the outside: each has one result, whichever attempt brought it; a task makes no more than it may.

docs/adr/0013-recorded-calls.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from rag.db.pool import Database
from rag.errors import CostReached, FenceLost, Unavailable
from rag.identity.principal import Principal
from rag.tasks import calls, store
from rag.tasks.values import CallKind, Claim, Usage
from tests.support import tasks
from tests.support.world import World
from workflows.journal import Called, Journal, Step
from workflows.workflow import CostBound

pytestmark = pytest.mark.anyio
STEP = Step(id="generate", try_number=1)
BOUND = CostBound(calls=3, tokens=1_000)


@dataclass(slots=True, kw_only=True)
class Outside:
    """What is called: it counts, and fails when it is told to."""

    made: int = 0
    fails: int = 0

    async def answer(self) -> Called:
        """Say how many calls there were."""
        self.made += 1
        if self.fails:
            self.fails -= 1
            raise Unavailable
        return Called(result={"call": self.made}, prompt_tokens=100, completion_tokens=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One task of Ada's, and those who claim it one after the other."""

    database: Database
    ada: Principal
    bob: Principal
    task_id: UUID
    outside: Outside = field(default_factory=Outside)

    async def claim(self) -> Claim:
        """Take the run over, for no time: the next one may."""
        return await tasks.claim(self.database, lease_s=0.0)

    def journal(self, claim: Claim, bound: CostBound = BOUND) -> Journal:
        """Return what that run writes."""
        return Journal(database=self.database, principal=self.ada, task_id=self.task_id, fence=claim.fence, bound=bound)

    async def call(self, journal: Journal, name: str) -> dict[str, Any]:
        """Make a call."""
        return await journal.call(STEP, name, self.outside.answer, kind=CallKind.MODEL)


@pytest.fixture(name="scene")
async def scene_fixture(world: World) -> AsyncGenerator[Scene]:
    """A task that waits."""
    acme = await world.tenant("acme")
    ada, bob = world.principal(acme), world.principal(acme, user="bob")
    async with world.database(claims=True) as database:
        yield Scene(database=database, ada=ada, bob=bob, task_id=await tasks.accept(database, ada))


async def test_a_replayed_step_is_given_what_it_was_given_before(scene: Scene) -> None:
    first = await scene.call(scene.journal(await scene.claim()), "answer")
    journal = scene.journal(await scene.claim())
    assert await scene.call(journal, "answer") == first == {"call": 1}
    assert await scene.call(journal, "answer:2") == {"call": 2}
    assert journal.tally.usage == Usage(calls=2, repeated=0, prompt_tokens=200, completion_tokens=20)


async def test_a_call_without_a_result_is_made_again_and_the_log_says_so(scene: Scene) -> None:
    scene.outside.fails = 1
    with pytest.raises(Unavailable):
        await scene.call(scene.journal(await scene.claim()), "answer:x")
    journal = scene.journal(await scene.claim())
    assert await scene.call(journal, "answer:x") == {"call": 2}
    assert journal.tally.usage == Usage(calls=1, repeated=1, prompt_tokens=100, completion_tokens=10)
    last = (await tasks.events(scene.database, scene.ada, scene.task_id))[-1].payload
    assert last["message"] == "calling answer again: attempt 1 brought no result"
    assert (last["metadata"]["call"], last["metadata"]["attempt"]) == ("answer", 2)


async def test_a_run_that_was_overtaken_records_nothing_more(scene: Scene) -> None:
    """It was under way when the other one took over: of two results the one under the fence stands."""
    slow = scene.journal(await scene.claim())
    others: list[dict[str, Any]] = []

    async def overtaken() -> Called:
        others.append(await scene.call(scene.journal(await scene.claim()), "answer"))
        return Called(result={"call": "late"})

    with pytest.raises(FenceLost):
        await slow.call(STEP, "answer", overtaken, kind=CallKind.MODEL)
    assert await scene.call(scene.journal(await scene.claim()), "answer") == others[0] == {"call": 1}


async def test_a_task_makes_no_more_calls_than_it_may_and_a_raised_bound_lets_it_go_on(scene: Scene) -> None:
    claim = await scene.claim()
    journal = scene.journal(claim)
    for number in range(BOUND.calls):
        await scene.call(journal, f"answer:{number}")
    with pytest.raises(CostReached):
        await scene.call(journal, "answer:more")
    assert scene.outside.made == BOUND.calls
    # what is recorded costs nothing
    assert await scene.call(journal, "answer:0") == {"call": 1}
    raised = scene.journal(claim, CostBound(calls=2 * BOUND.calls, tokens=BOUND.tokens))
    assert await scene.call(raised, "answer:more") == {"call": BOUND.calls + 1}


async def test_a_task_begins_no_call_once_it_has_used_its_tokens(scene: Scene) -> None:
    claim = await scene.claim()
    narrow = scene.journal(claim, CostBound(calls=100, tokens=110))
    await scene.call(narrow, "answer")
    with pytest.raises(CostReached):
        await scene.call(narrow, "answer:more")
    assert scene.outside.made == 1


async def test_results_are_the_subjects_own_and_go_with_the_task(scene: Scene) -> None:
    await scene.call(scene.journal(await scene.claim()), "answer")
    async with scene.database.tenant(scene.ada) as session:
        assert (await calls.usage_of(session, scene.task_id)).calls == 1
    # he sees the task, which has no groups, and nothing of what it was given
    async with scene.database.tenant(scene.bob) as session:
        await store.get_task(session, scene.task_id)
        assert (await calls.usage_of(session, scene.task_id)).calls == 0
