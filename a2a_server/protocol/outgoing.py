"""Domain values as A2A messages (A2A 1.0, section 4.1). Pure.

Above: the handler. Below: `rag.tasks` values and the SDK's protobuf types. Everything here is a function of the log, so
two replicas say the same about one task, to the byte.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from a2a.types.a2a_pb2 import (
    Artifact,
    Message,
    Part,
    Role,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value

from rag.tasks import fold, values
from workflows.forms import HITL_EXTENSION

__all__ = ["RESUME_EXTENSION", "event_message", "task_message"]

RESUME_EXTENSION = "urn:bulkhead:a2a:resume:v1"
"""Every message about a task carries `metadata[RESUME_EXTENSION].seq`, which is also its SSE id: a client that sends it
back as `Last-Event-ID` with SubscribeToTask gets what follows, each event once."""

_STATES: Mapping[values.TaskState, Any] = {
    state: TaskState.Value(f"TASK_STATE_{state.name}") for state in values.TaskState
}

StreamEvent = Task | TaskStatusUpdateEvent | TaskArtifactUpdateEvent


def task_message(
    task: values.Task,
    events: Sequence[values.TaskEvent],
    *,
    history_length: int | None = None,
    artifacts: bool = True,
) -> Task:
    """Return the snapshot of `task` at its version; later events in `events` are left out.

    Args:
        task: The task's row.
        events: Its log, from the first event on.
        history_length: None for the whole conversation, else its last so many messages.
        artifacts: Whether results are folded in.
    """
    log = [event for event in events if event.seq <= task.version]
    message = Task(id=str(task.task_id), context_id=task.context_id, status=_status(task, fold.last_status(log)))
    message.status.timestamp.FromDatetime(task.updated_at)
    history = _history(task, log)
    if history_length is not None:
        history = history[-history_length:] if history_length else []
    message.history.extend(history)
    if artifacts:
        message.artifacts.extend(
            Artifact(artifact_id=one.artifact_id, name=one.name, parts=_parts(one.parts))
            for one in fold.fold_artifacts(log)
        )
    message.metadata.update({RESUME_EXTENSION: {"seq": task.version}, "skillId": task.workflow})
    return message


def event_message(task: values.Task, event: values.TaskEvent) -> StreamEvent:
    """Return one event of the log as a subscriber sees it."""
    ids: Mapping[str, Any] = {"task_id": str(task.task_id), "context_id": task.context_id}
    metadata = {RESUME_EXTENSION: {"seq": event.seq}}
    match event.kind:
        case values.EventKind.TASK:
            return _accepted(task, event)
        case values.EventKind.STATUS:
            update = TaskStatusUpdateEvent(**ids, status=_status(task, event))
            update.metadata.update({**event.payload["metadata"], **_answered(event), **metadata})
            return update
        case values.EventKind.ARTIFACT:
            payload = event.payload
            artifact = Artifact(
                artifact_id=payload["artifact_id"], name=payload["name"], parts=_parts(payload["parts"])
            )
            chunk = TaskArtifactUpdateEvent(
                **ids, artifact=artifact, append=payload["append"], last_chunk=payload["last_chunk"]
            )
            chunk.metadata.update(metadata)
            return chunk


def _accepted(task: values.Task, event: values.TaskEvent) -> Task:
    status = TaskStatus(state=_STATES[values.TaskState.SUBMITTED])
    status.timestamp.FromDatetime(event.created_at)
    message = Task(
        id=str(task.task_id),
        context_id=task.context_id,
        status=status,
        history=[_user_message(task, event.payload["message"])],
    )
    message.metadata.update({RESUME_EXTENSION: {"seq": event.seq}, "skillId": task.workflow})
    return message


def _status(task: values.Task, event: values.TaskEvent | None) -> TaskStatus:
    if event is None:
        return TaskStatus(state=_STATES[task.state])
    status = TaskStatus(state=_STATES[values.TaskState(event.payload["state"])])
    status.timestamp.FromDatetime(event.created_at)
    if event.payload["message"] is not None:
        status.message.CopyFrom(_agent_message(task, event))
    return status


def _answered(event: values.TaskEvent) -> dict[str, Any]:
    """Say of a status that a message of the caller brought about, which message it was."""
    received = event.payload.get("received")
    return {} if received is None else {"receivedMessageId": received["message_id"]}


def _history(task: values.Task, log: Iterable[values.TaskEvent]) -> list[Message]:
    """Return the conversation: the caller's messages, and each status message that a later status replaced."""
    history: list[Message] = []
    current: Message | None = None
    for event in log:
        if event.kind is values.EventKind.TASK:
            history.append(_user_message(task, event.payload["message"]))
        elif event.kind is values.EventKind.STATUS:
            if current is not None:
                history.append(current)
            current = _agent_message(task, event) if event.payload["message"] is not None else None
            if "received" in event.payload:
                history.append(_user_message(task, event.payload["received"]))
    return history


def _agent_message(task: values.Task, event: values.TaskEvent) -> Message:
    message = Message(
        message_id=f"{task.task_id}-{event.seq}",
        task_id=str(task.task_id),
        context_id=task.context_id,
        role=Role.ROLE_AGENT,
        parts=[Part(text=event.payload["message"])],
    )
    if "form" in event.payload:
        message.extensions.append(HITL_EXTENSION)
        message.metadata.update({HITL_EXTENSION: event.payload["form"]})
    return message


def _user_message(task: values.Task, stored: Mapping[str, Any]) -> Message:
    message = Message(
        message_id=stored["message_id"],
        task_id=str(task.task_id),
        context_id=task.context_id,
        role=Role.ROLE_USER,
        parts=_parts(stored["parts"]),
    )
    if stored.get("metadata"):
        message.metadata.update(stored["metadata"])
    return message


def _parts(parts: Iterable[Mapping[str, Any]]) -> list[Part]:
    return [_part(part) for part in parts]


def _part(part: Mapping[str, Any]) -> Part:
    if "data" in part:
        return Part(data=ParseDict(part["data"], Value()), media_type="application/json")
    named = {"media_type": part.get("media_type", "text/plain"), "filename": part.get("filename", "")}
    if "raw" in part:
        return Part(raw=base64.b64decode(part["raw"]), **named)
    if "url" in part:
        return Part(url=part["url"], **named)
    return Part(text=part["text"], **named)
