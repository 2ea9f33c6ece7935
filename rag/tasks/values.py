"""What a task is, without any protocol: the state, the grant it runs under and the events of its log.

Above: `store`, `fold`, the workflows and the A2A face. Below: identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from rag.identity.principal import Principal
from rag.identity.scopes import Scope
from rag.tasks.messages import options_of, text_of

__all__ = [
    "INTERRUPTED",
    "TERMINAL",
    "Artifact",
    "Begun",
    "CallKind",
    "Claim",
    "Created",
    "EventKind",
    "Exchange",
    "Grant",
    "NewTask",
    "Received",
    "Task",
    "TaskCount",
    "TaskEvent",
    "TaskFilter",
    "TaskState",
    "TaskSummary",
    "Usage",
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
INTERRUPTED = frozenset({TaskState.INPUT_REQUIRED, TaskState.AUTH_REQUIRED})
"""The task waits for an answer of whoever started it (A2A 1.0, section 4.1.3)."""


class EventKind(StrEnum):
    """What an event of the log tells."""

    TASK = "task"
    """The first event. Payload: {"message": the caller's message}."""
    STATUS = "status"
    """Payload: {"state", "message": text or None, "metadata"}. One that asks has "form" as well (see `workflows.forms`)
    and "ask", the question's key; one that tells of a message from the caller has "received": the message, and
    "answers": the seq of the question that it answers, or None."""
    ARTIFACT = "artifact"
    """Payload: {"artifact_id", "name", "parts", "append", "last_chunk"}. A part is one of {"text", "media_type"?},
    {"data"}, {"raw": base64, "media_type", "filename"} and {"url", "media_type", "filename"}."""


class CallKind(StrEnum):
    """What a run calls."""

    MODEL = "model"
    TOOL = "tool"
    """Of our own MCP server."""
    EXTERNAL = "external"
    """Of somebody else's."""


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
    """The caller's message: {"message_id", "parts", "metadata"}. A part is {"text"} or {"data"}, or a file:
    {"filename", "media_type"} with "text" or "raw" (base64)."""
    traceparent: str | None = None
    idempotency_key: str | None = None
    """The caller's own name for what it wants done: a second task under it is not accepted, the first one is told."""
    request_hash: bytes | None = None
    """SHA-256 of what is asked for under the key, as the door it came by digests it. None: workflow and input are."""


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
    asked: int | None = None
    """Seq of the status that asks, while the task waits for an answer."""
    answer_by: datetime | None = None
    """When it stops waiting."""
    compacted_to: int = 0
    """Of the events up to this seq, pieces of artifacts that later ones replace are gone (`rag.tasks.retention`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent:
    """One entry of a task's log; see EventKind for the payloads."""

    seq: int
    kind: EventKind
    payload: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message that a task was sent after it had been accepted."""

    seq: int
    message: Mapping[str, Any]
    """As `NewTask.message`."""

    @property
    def text(self) -> str:
        """What it says."""
        return text_of(self.message)

    @property
    def data(self) -> Mapping[str, Any]:
        """What it says besides, as `options_of`."""
        return options_of(self.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A question that a run has asked, and what it was answered."""

    seq: int
    key: str
    """Of the question: the same when the step that asks is replayed."""
    form: Mapping[str, Any]
    answer: Received | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a task's calls come to."""

    calls: int = 0
    """Logical ones: a call that was lost with its worker and made again is one."""
    repeated: int = 0
    """Physical calls beyond the first of each."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Both as the model server counted them, of calls that have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A call, as it stands in the record when it is begun."""

    refused: bool
    """The task may make no further call: nothing was begun."""
    result: Mapping[str, Any] | None
    """What it came to before; then it is not made again."""
    attempt: int
    usage: Usage


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
    seal: str = field(repr=False)
    """Opens the task's tenant for ten minutes, as the system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Which tasks to list; None does not filter."""

    context_id: str | None = None
    state: TaskState | None = None
    since: datetime | None = None
    """Only tasks that changed at or after this moment."""
