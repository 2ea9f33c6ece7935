"""A task against a model of it, over random interleavings of workers that run, crash and wake late, of a caller who
answers, tells more and cancels, and of time that runs out: on a real PostgreSQL, through what the two processes call.

What a task may do is written down here a second time, in the plainest way; the database has to agree at every step.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from rag.db.pool import Database
from rag.errors import FenceLost, TaskBusy, TaskNotCancelable
from rag.identity.principal import Principal
from rag.tasks import conversations, leases, store
from rag.tasks.values import INTERRUPTED, TERMINAL, Claim, EventKind, TaskState
from tests.support import tasks
from tests.support.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
WORKERS = ("a", "b")
FORM = {"type": "ask_user_request", "id": "q", "questions": [{"question": "?", "choices": [], "multiple": False}]}
PLAY = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
BY_WORKERS = ("progress", "say again", "read", "ask", "ask briefly", "hand back", "complete", "claim")
BY_CALLER = ("tell", "tell again", "tell the deaf", "answer", "answer the last")
LAST = ("complete", "fail", "cancel")
"""Rarely: little can be tried after the end."""
RARELY = 0.04
MOVES = 40


@dataclass(slots=True, kw_only=True)
class Model:
    """What must be so."""

    state: TaskState = TaskState.SUBMITTED
    version: int = 1
    fence: int | None = None
    """The one that may write; None: nobody may."""
    waiting: bool = False
    """Whether the run is parked until somebody answers."""
    asked: int | None = None
    inbox: int = 0
    told: list[str] = field(default_factory=list[str])
    """Every message that was taken, in order."""
    last_question: int | None = None
    said: int = 0

    def works(self) -> None:
        """Tell a step."""
        self.state, self.version, self.asked = TaskState.WORKING, self.version + 1, None

    def ends(self, state: TaskState) -> None:
        """Move to the end."""
        self.state, self.version, self.fence, self.waiting, self.asked = state, self.version + 1, None, False, None


@dataclass(slots=True, kw_only=True)
class Held:
    """What a worker believes: it crashed and woke, or was overtaken, and does not know."""

    claim: Claim | None = None
    read: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """One task, the workers and the model."""

    database: Database
    ada: Principal
    task_id: UUID
    model: Model = field(default_factory=Model)
    held: dict[str, Held] = field(default_factory=lambda: {name: Held() for name in WORKERS})

    def moves(self) -> list[tuple[str, ...]]:
        """What may be tried now. Whoever has claimed once goes on trying, whether or not it still holds the run."""
        holding = [name for name in WORKERS if self.held[name].claim is not None]
        if not holding:
            return [("claim", "a"), ("tell",), ("tell the deaf",)]
        return [
            *((step, name) for step in BY_WORKERS for name in (holding if step != "claim" else WORKERS)),
            *((step,) for step in BY_CALLER * 2),
        ]

    async def play(self, step: str, *by: str) -> None:
        """Make one move, in the database and in the model."""
        await getattr(self, "_" + step.replace(" ", "_"))(*by)

    async def _claim(self, worker: str) -> None:
        # a lease of no time: so every claim may be followed by another one, which is what a crash and a stop look like
        claims = await leases.claim_runs(self.database, worker=worker, wanted=1, lease_s=0.0)
        mine = [claim for claim in claims if claim.task_id == self.task_id]
        offered = self.model.state not in TERMINAL and not self.model.waiting
        assert bool(mine) == offered
        if mine:
            assert self.model.fence is None or mine[0].fence > self.model.fence
            self.model.fence = mine[0].fence
            self.held[worker] = Held(claim=mine[0])
        self._no_other(claims)

    def _no_other(self, claims: list[Claim]) -> None:
        assert all(claim.task_id == self.task_id for claim in claims)

    async def _progress(self, worker: str) -> None:
        fence = self._fence(worker)
        done = await self._written(
            tasks.progress(self.database, self.ada, self.task_id, "on it", fence=fence, key=None), fence
        )
        if done:
            self.model.works()

    async def _say_again(self, worker: str) -> None:
        """A replayed step, with the key that the log holds from the first time on."""
        fence = self._fence(worker)
        before = self.model.version
        writing = tasks.progress(self.database, self.ada, self.task_id, "once", fence=fence, key="step:once")
        if await self._written(writing, fence):
            first = self.model.said == 0
            self.model.said = self.model.said or before + 1
            if first:
                self.model.works()

    async def _complete(self, worker: str) -> None:
        held, fence = self.held[worker], self._fence(worker)

        async def write() -> bool:
            payload = store.status_payload(TaskState.COMPLETED, None)
            return await store.complete(
                self.database, self.ada, self.task_id, payload, fence=fence, key="run:end", read=held.read
            )

        done = await self._written(write(), fence)
        if done is not None:
            # nothing that was told is left unheard by a task that completes
            assert done == (self.model.inbox <= held.read)
            if done:
                self.model.ends(TaskState.COMPLETED)

    async def _read(self, worker: str) -> None:
        held = self.held[worker]
        async with self.database.tenant(self.ada) as session:
            _, told = await conversations.read_conversation(session, self.task_id, after=held.read)
        if told:
            held.read = told[-1].seq

    async def _fail(self, worker: str) -> None:
        fence = self._fence(worker)
        writing = tasks.status(
            self.database, self.ada, self.task_id, TaskState.FAILED, "no", fence=fence, key="run:end"
        )
        if await self._written(writing, fence):
            self.model.ends(TaskState.FAILED)

    async def _ask(self, worker: str) -> None:
        await self._asked(worker, wait_s=3600.0)

    async def _ask_briefly(self, worker: str) -> None:
        """A question whose time is over at once: its run is offered again, with the question unanswered."""
        await self._asked(worker, wait_s=0.0)

    async def _asked(self, worker: str, *, wait_s: float) -> None:
        fence = self._fence(worker)

        async def write() -> int:
            payload = store.status_payload(TaskState.INPUT_REQUIRED, "?") | {"ask": "k", "form": FORM}
            async with self.database.tenant(self.ada) as session:
                return await conversations.ask(
                    session, self.task_id, TaskState.INPUT_REQUIRED, payload, fence=fence, wait_s=wait_s
                )

        # somebody who claimed a run whose question nobody answered finds it asking, and asks nothing on top
        allowed = self.model.state not in INTERRUPTED
        seq = await self._written(write(), fence, allowed=allowed)
        if seq is not None:
            self.model.version += 1
            assert seq == self.model.version
            self.model.state, self.model.asked, self.model.last_question = TaskState.INPUT_REQUIRED, seq, seq
            self.model.fence, self.model.waiting = None, wait_s > 0

    async def _tell(self) -> None:
        await self._receive(f"m{self.model.version}", answers=None, takes=True)

    async def _tell_the_deaf(self) -> None:
        await self._receive("unheard", answers=None, takes=False)

    async def _tell_again(self) -> None:
        """The same message under the same key: taken once."""
        known = "twice" in self.model.told
        await self._receive("twice", answers=None, takes=True, key="again", known=known)

    async def _answer(self) -> None:
        if self.model.asked is not None:
            await self._receive(f"a{self.model.asked}", answers=self.model.asked, takes=False)

    async def _answer_the_last(self) -> None:
        """An answer to a question that may have been answered, or have run out, meanwhile."""
        if self.model.last_question is not None:
            await self._receive("late", answers=self.model.last_question, takes=True)

    async def _receive(
        self, text: str, *, answers: int | None, takes: bool, key: str | None = None, known: bool = False
    ) -> None:
        message = {"message_id": text, "parts": [{"text": text}], "metadata": {}}
        model = self.model
        try:
            async with self.database.tenant(self.ada) as session:
                seq = await conversations.receive(
                    session, self.task_id, message, answers=answers, takes=takes, idempotency_key=key
                )
        except TaskNotCancelable:
            assert model.state in TERMINAL
            return
        except TaskBusy:
            assert answers != model.asked or (answers is None and not takes)
            return
        if known:
            return
        assert model.state not in TERMINAL
        assert answers == model.asked
        model.version += 1
        assert seq == model.version
        model.told.append(text)
        if answers is None:
            model.inbox = seq
        else:
            model.state, model.asked, model.waiting, model.fence = TaskState.WORKING, None, False, None

    async def _cancel(self) -> None:
        async def write() -> bool:
            await store.cancel(self.database, self.ada, self.task_id)
            return True

        try:
            await write()
        except TaskNotCancelable:
            assert self.model.state in TERMINAL
        else:
            assert self.model.state not in TERMINAL
            self.model.ends(TaskState.CANCELED)

    async def _hand_back(self, worker: str) -> None:
        claim = self.held[worker].claim
        assert claim is not None
        released = await leases.release_runs(self.database, worker=worker, held=[claim])
        assert released == (claim.fence == self.model.fence)
        if released:
            self.model.fence = None

    def _fence(self, worker: str) -> int:
        claim = self.held[worker].claim
        assert claim is not None
        return claim.fence

    async def _written(self, writing: Any, fence: int, *, allowed: bool = True) -> Any:
        """Return what a fenced write returns, which only the holder of the last fence gets; None when it is refused."""
        try:
            done = await writing
        except FenceLost:
            assert fence != self.model.fence
            return None
        except TaskNotCancelable:
            assert not allowed
            return None
        assert fence == self.model.fence
        assert allowed
        return done

    async def agree(self) -> None:
        """The log, the row and the model are one."""
        task = await tasks.read(self.database, self.ada, self.task_id)
        log = await tasks.events(self.database, self.ada, self.task_id)
        assert (task.state, task.version, task.asked) == (self.model.state, self.model.version, self.model.asked)
        assert [one.seq for one in log] == list(range(1, task.version + 1))
        states = [TaskState(one.payload["state"]) for one in log if one.kind is EventKind.STATUS]
        assert (states or [TaskState.SUBMITTED])[-1] == task.state
        assert not any(state in TERMINAL for state in states[:-1])
        received = [one.payload["received"]["message_id"] for one in log if "received" in one.payload]
        assert received == self.model.told


@pytest.fixture(name="place")
async def place_fixture(world: World) -> AsyncGenerator[tuple[Database, Principal]]:
    """A database, and Ada of acme."""
    ada = world.principal(await world.tenant("acme"))
    async with world.database(pool_size=2, claims=True) as database:
        yield database, ada


@PLAY
@given(chance=st.randoms(use_true_random=True))
async def test_whatever_happens_in_whatever_order_the_task_is_what_its_model_says(
    place: tuple[Database, Principal], chance: Random
) -> None:
    database, ada = place
    game = Game(database=database, ada=ada, task_id=await tasks.accept(database, ada))
    for _ in range(MOVES):
        step, *by = chance.choice(game.moves())
        if chance.random() < RARELY:
            step = chance.choice(LAST)
            by = by[:1] if step != "cancel" else []
            if step != "cancel" and (not by or game.held[by[0]].claim is None):
                continue
        note(f"{step} {by}")
        await game.play(step, *by)
        await game.agree()
        event(step)
    event(f"ended as {game.model.state}")
    if game.model.state not in TERMINAL:
        await game.play("cancel")
    await game.agree()
