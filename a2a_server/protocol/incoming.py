"""What callers send, checked and turned into domain values (A2A 1.0, sections 3.1 to 3.4). Pure.

Above: the handler. Below: the SDK's protobuf types. Lengths are bounded here, before anything is stored.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, cast
from uuid import UUID

from a2a.types.a2a_pb2 import (
    ListTasksRequest,
    Message,
    Part,
    Role,
    SendMessageRequest,
    TaskPushNotificationConfig,
    TaskState,
)
from a2a.utils.errors import ContentTypeNotSupportedError
from google.protobuf.json_format import MessageToDict

from rag.errors import InvalidInput, NotFound
from rag.tasks import values
from rag.tasks.messages import options_of, text_of

__all__ = [
    "INPUT_MODES",
    "OUTPUT_MODES",
    "Sent",
    "check_status_name",
    "history_length_of",
    "json_of",
    "last_event_id_of",
    "list_filter_of",
    "page_size_of",
    "sent_message",
    "task_id_of",
]

MAX_ID_CHARS = 256
MAX_METADATA_CHARS = 4_096
MAX_DEPTH = 24
"""Of objects and arrays in each other. An object costs three levels of protobuf, which reads 100 of them."""
MAX_EXACT = 2**53
"""Whole numbers below it are exact as doubles."""
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 100
"""Both from A2A 1.0, section 3.1.4."""
INPUT_MODES = ("text/plain", "text/markdown", "application/json")
"""Of what a message says. Its files, which have names, come as whatever the workflow reads that takes files."""
OUTPUT_MODES = ("text/plain", "application/json")
_STATES = {TaskState.Value(f"TASK_STATE_{state.name}"): state for state in values.TaskState}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A message as received."""

    text: str
    options: Mapping[str, Any]
    """Both as `rag.tasks.messages` reads them out of the message."""
    skill: str | None
    """Which workflow is asked for: `metadata.skillId` of the message or of the request."""
    task_id: UUID | None
    context_id: str | None
    message: Mapping[str, Any]
    """As stored in the task's log."""
    wait: bool
    """Whether SendMessage is to return only when the task has ended."""
    history_length: int | None
    push: TaskPushNotificationConfig | None
    """The webhook that is to be told about the task."""


def sent_message(request: SendMessageRequest) -> Sent:
    """Read SendMessage and SendStreamingMessage.

    Raises:
        InvalidInput: An id is too long, the role is not the caller's, or there is no text.
        NotFound: The taskId cannot be the id of a task.
        ContentTypeNotSupportedError: A part is none of ours, or no output mode of ours is accepted.
    """
    message, configuration = request.message, request.configuration
    for name, value in (("messageId", message.message_id), ("contextId", message.context_id)):
        if len(value) > MAX_ID_CHARS:
            raise InvalidInput(f"{name} is longer than {MAX_ID_CHARS} characters")
    if message.role != Role.ROLE_USER:
        raise InvalidInput("a message to an agent has the role ROLE_USER")
    accepted = configuration.accepted_output_modes
    if accepted and not {*accepted} & {*OUTPUT_MODES, "text/*", "*/*"}:
        raise ContentTypeNotSupportedError(f"answers come as {' and '.join(OUTPUT_MODES)}")
    metadata = json_of(message.metadata)
    if len(repr(metadata)) > MAX_METADATA_CHARS:
        raise InvalidInput(f"message metadata is larger than {MAX_METADATA_CHARS} characters")
    skill = metadata.get("skillId", json_of(request.metadata).get("skillId"))
    stored = {
        "message_id": message.message_id,
        "parts": [_part(part) for part in _parts(message)],
        "metadata": metadata,
    }
    webhook = configuration.HasField("task_push_notification_config")
    return Sent(
        text=text_of(stored),
        options=options_of(stored),
        skill=str(skill) if skill is not None else None,
        task_id=task_id_of(message.task_id) if message.task_id else None,
        context_id=message.context_id or None,
        message=stored,
        wait=not configuration.return_immediately,
        history_length=history_length_of(configuration),
        push=configuration.task_push_notification_config if webhook else None,
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


def check_status_name(asked: Mapping[str, Any]) -> None:
    """Refuse a ListTasks, as JSON or a query, whose status has a name that no state has.

    The SDK reads such a name as UNSPECIFIED, which filters nothing: whoever asks for one would be told of all tasks.

    Raises:
        InvalidInput: It has.
    """
    name = asked.get("status")
    if isinstance(name, str) and name and name not in TaskState.keys() and not name.isdecimal():  # noqa: SIM118
        raise InvalidInput("status is not the state of a task")


def list_filter_of(request: ListTasksRequest) -> values.TaskFilter:
    """Return which tasks are wanted.

    Raises:
        InvalidInput: The contextId is too long, the status is none of ours, or the time is none.
    """
    if len(request.context_id) > MAX_ID_CHARS:
        raise InvalidInput(f"contextId is longer than {MAX_ID_CHARS} characters")
    if request.status and request.status not in _STATES:
        raise InvalidInput("status is not the state of a task")
    since = None
    if request.HasField("status_timestamp_after"):
        try:
            since = request.status_timestamp_after.ToDatetime(tzinfo=UTC)
        except (ValueError, OverflowError):
            raise InvalidInput("statusTimestampAfter is no time of the years 1 to 9999") from None
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


def json_of(message: Any) -> Any:
    """Return what a Struct or a Value holds as JSON.

    Raises:
        InvalidInput: It holds a number that is none to JSON, which gRPC can send, or is nested too deep for some
            binding's answer to repeat it: a task could be made that its readers cannot read.
    """
    try:
        value = MessageToDict(message)
    except ValueError:
        raise InvalidInput("numbers are finite: JSON has no NaN and no Infinity") from None
    inner, depth = [value], 0
    while inner:
        if depth > MAX_DEPTH:
            raise InvalidInput(f"data and metadata are at most {MAX_DEPTH} levels deep")
        inner, depth = [child for one in inner for child in _children(one)], depth + 1
    return value


def _children(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).values()
    return cast("list[Any]", value) if isinstance(value, list) else ()


def _parts(message: Message) -> Sequence[Part]:
    if not message.parts:
        raise InvalidInput("a message has at least one part")
    return message.parts


def _part(part: Part) -> dict[str, Any]:
    json_of(part.metadata)  # kept by nobody, but a part of what an idempotency key stands for
    content = part.WhichOneof("content")
    if content in {"text", "raw"} and part.filename:
        if len(part.filename) > MAX_ID_CHARS or len(part.media_type) > MAX_ID_CHARS:
            raise InvalidInput(f"a file's name and media type are at most {MAX_ID_CHARS} characters long")
        held = {"text": part.text} if content == "text" else {"raw": base64.b64encode(part.raw).decode()}
        return {"filename": part.filename, "media_type": part.media_type, **held}
    if content == "raw":
        raise InvalidInput("a file part has a filename")
    if content == "data" and part.media_type in {"", "application/json"}:
        return {"data": _with_integers(json_of(part.data))}
    if content == "text" and part.media_type in {"", "text/plain", "text/markdown"}:
        return {"text": part.text}
    raise ContentTypeNotSupportedError(f"a message's parts are {', '.join(INPUT_MODES)}, or files with a filename")


def _with_integers(value: Any) -> Any:
    """Return the JSON value with its whole numbers as they were written: protobuf's has doubles only."""
    if isinstance(value, float) and value.is_integer() and abs(value) < MAX_EXACT:
        return int(value)
    if isinstance(value, list):
        return [_with_integers(one) for one in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {name: _with_integers(one) for name, one in cast("dict[str, Any]", value).items()}
    return value
