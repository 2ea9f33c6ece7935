"""What a run tells the world: events appended to its task's log, once each, under the run's fence.

Above: the graphs and `runner`. Below: `rag.tasks.store`. A step's events are keyed by (LangGraph task id, name): a
step that is replayed after a crash finds them and appends nothing. Pieces of an artifact are keyed with the fence as
well: whoever takes the run over starts the artifact again under the same id.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from uuid import UUID

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from rag.db.pool import Database
from rag.errors import BulkheadError, CostReached
from rag.identity.principal import Principal
from rag.llm.gateway import Meter
from rag.tasks import calls, conversations, store
from rag.tasks.values import CallKind, EventKind, Received, TaskState, Usage
from workflows.workflow import CostBound

__all__ = ["Called", "Journal", "Step", "Tally"]

T = TypeVar("T")
BATCH_S = 0.03
"""Pieces that come within this time share an event (a2a.md 6: 20 to 50 ms)."""
MAX_WAITING_PIECES = 256
"""A model faster than the database waits for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One execution of a graph's node."""

    id: str
    """LangGraph's task id: the same when the step is replayed from its checkpoint."""
    try_number: int
    """Counts the node's own retries within one attempt of the run, from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """What a call to the outside came to."""

    result: Mapping[str, Any]
    """JSON values."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the task has used so far, as far as this run knows."""

    usage: Usage = field(default_factory=Usage)
    meter: Meter = field(default_factory=Meter)
    """What calls of models have cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """Appends for one run.

    Every method raises FenceLost or TaskNotCancelable once the run is no longer this worker's.
    """

    database: Database
    principal: Principal
    task_id: UUID
    fence: int
    bound: CostBound
    tally: Tally = field(default_factory=Tally)

    async def progress(self, step: Step, name: str, text: str, /, **metadata: Any) -> None:
        """Tell how far the run is, and what it has used; `name` is unique within the step."""
        payload = store.status_payload(TaskState.WORKING, text, {**metadata, "usage": _used(self.tally)})
        await self._append(EventKind.STATUS, payload, key=f"{step.id}:{name}", state=TaskState.WORKING)

    async def end(self, state: TaskState, text: str) -> None:
        """End the task from within a node, in `state`. The run stops with the next thing that it writes."""
        payload = store.status_payload(state, text, {"usage": _used(self.tally)})
        await self._append(EventKind.STATUS, payload, key="run:end", state=state)

    async def complete(self, *, read: int) -> bool:
        """Complete the task; or return False while it has a message later than the one with the seq `read`."""
        payload = store.status_payload(TaskState.COMPLETED, None, {"usage": _used(self.tally)})
        return await store.complete(
            self.database, self.principal, self.task_id, payload, fence=self.fence, key="run:end", read=read
        )

    async def ask(self, key: str, form: Mapping[str, Any], text: str, *, auth: bool, wait_s: float) -> None:
        """Have the task ask, and give the run back until somebody answers: nothing can be appended after this."""
        state = TaskState.AUTH_REQUIRED if auth else TaskState.INPUT_REQUIRED
        payload = store.status_payload(state, text, {"usage": _used(self.tally)})
        payload |= {"ask": key, "form": dict(form)}
        async with self.database.tenant(self.principal) as session:
            await conversations.ask(session, self.task_id, state, payload, fence=self.fence, wait_s=wait_s)

    async def inbox(self, after: int) -> list[Received]:
        """Return the messages that came after a position while the task worked."""
        async with self.database.tenant(self.principal) as session:
            _, told = await conversations.read_conversation(session, self.task_id, after=after)
        return told

    async def call(
        self, step: Step, name: str, perform: Callable[[], Awaitable[Called]], *, kind: CallKind
    ) -> dict[str, Any]:
        """Return the recorded result of the call `name` of this step; `perform` is awaited only if there is none.

        A call that was begun and brought no result is made again, and the log says so.

        Raises:
            CostReached: The task has made as many calls, or used as many tokens, as it may.
        """
        key = f"{step.id}:{name}"
        begun = await calls.begin_call(
            self.database,
            self.principal,
            self.task_id,
            key,
            fence=self.fence,
            kind=kind,
            name=name.partition(":")[0],
            max_calls=self.bound.calls,
            max_tokens=self.bound.tokens,
        )
        self.tally.usage = begun.usage
        if begun.refused:
            raise CostReached
        if begun.result is not None:
            return dict(begun.result)
        if begun.attempt > 1:
            what = name.partition(":")[0]
            text = f"calling {what} again: attempt {begun.attempt - 1} brought no result"
            await self.progress(step, f"again:{name}:{begun.attempt}", text, call=what, attempt=begun.attempt)
        called = await perform()
        await calls.finish_call(
            self.database,
            self.principal,
            self.task_id,
            key,
            called.result,
            fence=self.fence,
            prompt_tokens=called.prompt_tokens,
            completion_tokens=called.completion_tokens,
        )
        usage = self.tally.usage
        self.tally.usage = replace(
            usage,
            prompt_tokens=usage.prompt_tokens + called.prompt_tokens,
            completion_tokens=usage.completion_tokens + called.completion_tokens,
        )
        return dict(called.result)

    async def artifact(self, step: Step, artifact_id: str, parts: Sequence[Mapping[str, Any]]) -> None:
        """Set the artifact, whole and final, in place of whatever was streamed under its id."""
        key = f"{step.id}:{artifact_id}:whole"
        payload = _artifact_payload(artifact_id, parts, append=False, last_chunk=True)
        await self._append(EventKind.ARTIFACT, payload, key=key, state=None)

    async def piece(
        self, step: Step, artifact_id: str, parts: Sequence[Mapping[str, Any]], *, number: int, last: bool
    ) -> None:
        """Append the piece `number`, counted from 0, of an artifact that is not text alone; `last` completes it."""
        key = f"{step.id}:{artifact_id}:{self.fence}.{step.try_number}:{number}"
        payload = _artifact_payload(artifact_id, parts, append=number > 0, last_chunk=last)
        await self._append(EventKind.ARTIFACT, payload, key=key, state=None)

    async def stream(
        self, step: Step, artifact_id: str, produce: Callable[[Callable[[str], Awaitable[None]]], Awaitable[T]]
    ) -> T:
        """Run `produce(emit)` and append what it emits to the artifact, as it comes. Returns what `produce` returns."""
        into, out = anyio.create_memory_object_stream[str](MAX_WAITING_PIECES)
        results: list[T] = []
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._append_pieces, step, artifact_id, out)
                async with into:
                    results.append(await produce(into.send))
        except BaseExceptionGroup as group:
            raise _first(group) from group
        return results[0]

    async def _append_pieces(self, step: Step, artifact_id: str, pieces: MemoryObjectReceiveStream[str]) -> None:
        number = 0
        async with pieces:
            async for piece in pieces:
                text = piece
                await anyio.sleep(BATCH_S)
                while pieces.statistics().current_buffer_used:
                    text += pieces.receive_nowait()
                key = f"{step.id}:{artifact_id}:{self.fence}.{step.try_number}:{number}"
                payload = _artifact_payload(artifact_id, [{"text": text}], append=number > 0, last_chunk=False)
                await self._append(EventKind.ARTIFACT, payload, key=key, state=None)
                number += 1

    async def _append(self, kind: EventKind, payload: Mapping[str, Any], *, key: str, state: TaskState | None) -> None:
        await store.append_alone(
            self.database, self.principal, self.task_id, kind, payload, fence=self.fence, key=key, state=state
        )


def _artifact_payload(
    artifact_id: str, parts: Sequence[Mapping[str, Any]], *, append: bool, last_chunk: bool
) -> dict[str, Any]:
    return {
        "artifact_id": artifact_id,
        "name": artifact_id,
        "parts": [dict(part) for part in parts],
        "append": append,
        "last_chunk": last_chunk,
    }


def _used(tally: Tally) -> dict[str, Any]:
    usage = tally.usage
    used: dict[str, Any] = {
        "calls": usage.calls,
        "repeated": usage.repeated,
        "promptTokens": usage.prompt_tokens,
        "completionTokens": usage.completion_tokens,
    }
    if tally.meter.cost is not None:
        used["cost"] = f"{tally.meter.cost.normalize():f}"
    return used


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what made the group fail: an error of ours before anything else, since that is what callers catch."""
    leaves = [_first(exc) if isinstance(exc, BaseExceptionGroup) else exc for exc in group.exceptions]
    return next((leaf for leaf in leaves if isinstance(leaf, BulkheadError)), leaves[0])
