"""What a run tells the world: events appended to its task's log, once each, under the run's fence.

Above: the graphs and `runner`. Below: `rag.tasks.store`. A step's events are keyed by (LangGraph task id, name): a
step that is replayed after a crash finds them and appends nothing. Pieces of an artifact are keyed with the fence as
well: whoever takes the run over starts the artifact again under the same id.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from rag.db.pool import Database
from rag.errors import BulkheadError
from rag.identity.principal import Principal
from rag.tasks import store
from rag.tasks.values import EventKind, TaskState

__all__ = ["Journal", "Step"]

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
class Journal:
    """Appends for one run.

    Every method raises FenceLost or TaskNotCancelable once the run is no longer this worker's.
    """

    database: Database
    principal: Principal
    task_id: UUID
    fence: int

    async def progress(self, step: Step, name: str, text: str, /, **metadata: Any) -> None:
        """Tell how far the run is; `name` is unique within the step."""
        payload = store.status_payload(TaskState.WORKING, text, metadata)
        await self._append(EventKind.STATUS, payload, key=f"{step.id}:{name}", state=TaskState.WORKING)

    async def end(self, state: TaskState, text: str | None, /, **metadata: Any) -> None:
        """Move the task to its terminal state."""
        payload = store.status_payload(state, text, metadata)
        await self._append(EventKind.STATUS, payload, key="run:end", state=state)

    async def artifact(self, step: Step, artifact_id: str, parts: Sequence[Mapping[str, Any]]) -> None:
        """Set the artifact, whole and final, in place of whatever was streamed under its id."""
        key = f"{step.id}:{artifact_id}:whole"
        payload = _artifact_payload(artifact_id, parts, append=False, last_chunk=True)
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
        async with self.database.tenant(self.principal) as session:
            await store.append(session, self.task_id, kind, payload, fence=self.fence, key=key, state=state)


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


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what made the group fail: an error of ours before anything else, since that is what callers catch."""
    leaves = [_first(exc) if isinstance(exc, BaseExceptionGroup) else exc for exc in group.exceptions]
    return next((leaf for leaf in leaves if isinstance(leaf, BulkheadError)), leaves[0])
