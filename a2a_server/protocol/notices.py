"""What a webhook is told, in bytes: a StreamResponse in JSON (A2A 1.0, section 4.3.3). Pure.

Above: the worker process, which hands this to `rag.push.courier`. Below: `outgoing`, so that a webhook is told what a
stream shows, to the letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import orjson
from a2a.utils.proto_utils import to_stream_response
from google.protobuf.json_format import MessageToDict

from a2a_server.protocol import outgoing
from rag.tasks.fold import last_status
from rag.tasks.values import Task, TaskEvent, TaskState

__all__ = ["event_notice", "snapshot_notice"]


def event_notice(task: Task, event: TaskEvent) -> bytes:
    """Return one event of the log as a webhook is told it."""
    return _json(outgoing.event_message(task, event))


def snapshot_notice(task: Task, events: Sequence[TaskEvent]) -> bytes:
    """Return the task as it stood at the last of `events`, which are its log from the first one on."""
    last, status = events[-1], last_status(events)
    state = TaskState(status.payload["state"]) if status is not None else TaskState.SUBMITTED
    then = replace(task, version=last.seq, state=state, updated_at=last.created_at)
    return _json(outgoing.task_message(then, events))


def _json(message: outgoing.StreamEvent) -> bytes:
    return orjson.dumps(MessageToDict(to_stream_response(message)))
