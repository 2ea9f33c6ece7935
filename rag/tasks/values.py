"""What a task is, without any protocol: the state, the grant it runs under and the events of its log.

Above: `store`, `fold`, the workflows and the A2A face. Below: identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from rag.identity.principal import Principal
from rag.identity.scopes import Scope

__all__ = [
    "TERMINAL",
    "Artifact",
    "Claim",
    "Created",
    "EventKind",
    "Grant",
    "NewTask",
    "Task",
    "TaskCount",
    "TaskEvent",
    "TaskFilter",
    "TaskState",
    "TaskSummary",
]


class TaskState(StrEnum):
    """Where a task stands; the same names as in the database and, upper-cased, in A2A 1.0 section 4.1.3."""

    SUBMITTED = "submitted"
    WORKING = "working"
    INPUT_REQUIRED = "input-required"
    AUTH_REQUIRED = "auth-required"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    REJECTED = "rejected"


TERMINAL = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELED, TaskState.REJECTED})
"""Nothing follows these."""


class EventKind(StrEnum):
    """What an event of the log tells."""

    TASK = "task"
    """The first event. Payload: {"message": the caller's message}."""
    STATUS = "status"
    """Payload: {"state", "message": text or None, "metadata"}."""
    ARTIFACT = "artifact"
    """Payload: {"artifact_id", "name", "parts": [{"text"} or {"data"}], "append", "last_chunk"}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What the caller's token said when the task was accepted: a run acts under this and never under a stored token."""

    subject: str
    scopes: frozenset[Scope]
    groups: tuple[str, ...]
    team: str | None
    token_ids: tuple[str, ...]
    """Revoking any of them ends the run."""
    issued_at: float

    @classmethod
    def of(cls, principal: Principal) -> Grant:
        """Return the grant that `principal` can give."""
        return cls(
            subject=principal.subject,
            scopes=principal.scopes,
            groups=principal.groups,
            team=principal.team,
            token_ids=principal.token_ids,
            issued_at=principal.issued_at,
        )

    def principal(self, tenant_id: UUID, *, expires_at: float) -> Principal:
        """Return the principal that a run acts as. The database checks its revocation again at every session."""
        return Principal(
            tenant_id=tenant_id,
            subject=self.subject,
            scopes=self.scopes,
            groups=self.groups,
            team=self.team,
            token_ids=self.token_ids,
            issued_at=self.issued_at,
            expires_at=expires_at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """A task to accept."""

    task_id: UUID
    context_id: str
    workflow: str
    input: Mapping[str, Any]
    message: Mapping[str, Any]
    """The caller's message: {"message_id", "parts": [{"text"}], "metadata"}."""
    traceparent: str | None = None
    idempotency_key: str | None = None
    """The caller's own name for what it wants done: a second task under it is not accepted, the first one is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """The task that stands for a NewTask."""

    task_id: UUID
    context_id: str
    created: bool
    """False: it was there already, under the same key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task's latest state. `version` is the seq of its last event; seqs start at 1 and have no gap."""

    tenant_id: UUID
    task_id: UUID
    context_id: str
    workflow: str
    state: TaskState
    version: int
    input: Mapping[str, Any]
    grant: Grant
    traceparent: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent:
    """One entry of a task's log; see EventKind for the payloads."""

    seq: int
    kind: EventKind
    payload: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A result, folded from its events."""

    artifact_id: str
    name: str
    parts: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSummary:
    """A task as somebody who follows it from time to time wants it told."""

    task: Task
    message: str | None
    """Of its latest status."""
    artifacts: tuple[str, ...]
    """Names, in the order of their first appearance; before the task's end their contents may still change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCount:
    """How many tasks there are."""

    tasks: int
    this_month: int
    """Those of them that were started in this calendar month, UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A leased run. Writes carry `fence`; a later claim of the same task outdates it."""

    task_id: UUID
    fence: int
    attempt: int
    """1 for the first run; a run handed back by a drained worker is not counted."""
    seal: str
    """Opens the task's tenant for ten minutes, as the system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Which tasks to list; None does not filter."""

    context_id: str | None = None
    state: TaskState | None = None
    since: datetime | None = None
    """Only tasks that changed at or after this moment."""
