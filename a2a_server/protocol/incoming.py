"""What callers send, checked and turned into domain values (A2A 1.0, sections 3.1 to 3.4). Pure.

Above: the handler. Below: the SDK's protobuf types. Lengths are bounded here, before anything is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any
from uuid import UUID

from a2a.types.a2a_pb2 import ListTasksRequest, Message, Role, SendMessageRequest, TaskState
from a2a.utils.errors import ContentTypeNotSupportedError, PushNotificationNotSupportedError
from google.protobuf.json_format import MessageToDict

from rag.errors import InvalidInput, NotFound
from rag.tasks import values

__all__ = [
    "INPUT_MODES",
    "OUTPUT_MODES",
    "Sent",
    "history_length_of",
    "last_event_id_of",
    "list_filter_of",
    "page_size_of",
    "sent_message",
    "task_id_of",
]

MAX_ID_CHARS = 256
MAX_METADATA_CHARS = 4_096
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 100
"""Both from A2A 1.0, section 3.1.4."""
INPUT_MODES = ("text/plain", "text/markdown")
OUTPUT_MODES = ("text/plain", "application/json")
_STATES = {TaskState.Value(f"TASK_STATE_{state.name}"): state for state in values.TaskState}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A message as received."""

    text: str
    """Its text parts, joined by newlines."""
    skill: str | None
    """Which workflow is asked for: `metadata.skillId` of the message or of the request."""
    task_id: UUID | None
    context_id: str | None
    message: Mapping[str, Any]
    """As stored in the task's log."""
    wait: bool
    """Whether SendMessage is to return only when the task has ended."""
    history_length: int | None


def sent_message(request: SendMessageRequest) -> Sent:
    """Read SendMessage and SendStreamingMessage.

    Raises:
        InvalidInput: An id is too long, the role is not the caller's, or there is no text.
        NotFound: The taskId cannot be the id of a task.
        ContentTypeNotSupportedError: A part is not text, or no output mode of ours is accepted.
        PushNotificationNotSupportedError: A webhook is asked for.
    """
    message, configuration = request.message, request.configuration
    for name, value in (("messageId", message.message_id), ("contextId", message.context_id)):
        if len(value) > MAX_ID_CHARS:
            raise InvalidInput(f"{name} is longer than {MAX_ID_CHARS} characters")
    if message.role != Role.ROLE_USER:
        raise InvalidInput("a message to an agent has the role ROLE_USER")
    if configuration.HasField("task_push_notification_config"):
        raise PushNotificationNotSupportedError
    accepted = configuration.accepted_output_modes
    if accepted and not {*accepted} & {*OUTPUT_MODES, "text/*", "*/*"}:
        raise ContentTypeNotSupportedError(f"answers come as {' and '.join(OUTPUT_MODES)}")
    texts = _texts(message)
    metadata = MessageToDict(message.metadata)
    if len(repr(metadata)) > MAX_METADATA_CHARS:
        raise InvalidInput(f"message metadata is larger than {MAX_METADATA_CHARS} characters")
    skill = metadata.get("skillId", MessageToDict(request.metadata).get("skillId"))
    return Sent(
        text="\n".join(texts),
        skill=str(skill) if skill is not None else None,
        task_id=task_id_of(message.task_id) if message.task_id else None,
        context_id=message.context_id or None,
        message={
            "message_id": message.message_id,
            "parts": [{"text": text} for text in texts],
            "metadata": metadata,
        },
        wait=not configuration.return_immediately,
        history_length=history_length_of(configuration),
    )


def task_id_of(text: str) -> UUID:
    """Return the id of a task.

    Raises:
        NotFound: No task of ours has an id of that form.
    """
    try:
        value = UUID(text)
    except ValueError as exc:
        raise NotFound("there is no such task") from exc
    if str(value) != text:
        raise NotFound("there is no such task")
    return value


def history_length_of(request: Any) -> int | None:
    """Return how many messages of history are wanted; None for all.

    Raises:
        InvalidInput: Fewer than none.
    """
    if not request.HasField("history_length"):
        return None
    if request.history_length < 0:
        raise InvalidInput("historyLength must not be negative")
    return int(request.history_length)


def page_size_of(request: ListTasksRequest) -> int:
    """Return the page size.

    Raises:
        InvalidInput: It is not 1 to 100.
    """
    size = request.page_size if request.HasField("page_size") else DEFAULT_PAGE_SIZE
    if not 1 <= size <= MAX_PAGE_SIZE:
        raise InvalidInput(f"pageSize is 1 to {MAX_PAGE_SIZE}")
    return size


def list_filter_of(request: ListTasksRequest) -> values.TaskFilter:
    """Return which tasks are wanted.

    Raises:
        InvalidInput: The contextId is too long, or the status is none of ours.
    """
    if len(request.context_id) > MAX_ID_CHARS:
        raise InvalidInput(f"contextId is longer than {MAX_ID_CHARS} characters")
    # NOTE: a name that is unknown never gets here: the SDK reads it as UNSPECIFIED, which filters nothing.
    if request.status and request.status not in _STATES:
        raise InvalidInput("status is not the state of a task")
    since = None
    if request.HasField("status_timestamp_after"):
        since = request.status_timestamp_after.ToDatetime(tzinfo=UTC)
    return values.TaskFilter(context_id=request.context_id or None, state=_STATES.get(request.status), since=since)


def last_event_id_of(text: str | None, *, version: int) -> int | None:
    """Return the position that a reconnecting client has reached; None when it sends none.

    Raises:
        InvalidInput: It is not a number that this task's stream has sent.
    """
    text = (text or "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) <= version):
        raise InvalidInput("Last-Event-ID is not an id of this task's stream")
    return int(text)


def _texts(message: Message) -> list[str]:
    texts: list[str] = []
    for part in message.parts:
        if part.WhichOneof("content") != "text" or part.media_type not in {"", *INPUT_MODES}:
            raise ContentTypeNotSupportedError(f"a message's parts are text: {' or '.join(INPUT_MODES)}")
        texts.append(part.text)
    if not texts:
        raise InvalidInput("a message has at least one part")
    return texts
