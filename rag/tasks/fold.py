"""From a task's log to what it says now: artifacts and conversation. Pure.

Above: the A2A face's snapshots. Below: `values`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rag.tasks.values import Artifact, EventKind, TaskEvent

__all__ = ["fold_artifacts", "last_status"]


def fold_artifacts(events: Iterable[TaskEvent]) -> tuple[Artifact, ...]:
    """Return the artifacts in the order of their first appearance.

    An event with `append` adds its parts to the artifact of that id, one without starts it anew. Neighbouring texts
    become one part, so that an answer streamed in a thousand pieces reads as one.
    """
    names: dict[str, str] = {}
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.kind is not EventKind.ARTIFACT:
            continue
        artifact_id = str(event.payload["artifact_id"])
        names[artifact_id] = str(event.payload["name"])
        if not event.payload["append"] or artifact_id not in parts:
            parts[artifact_id] = []
        _extend(parts[artifact_id], event.payload["parts"])
    return tuple(Artifact(artifact_id=key, name=names[key], parts=tuple(parts[key])) for key in names)


def last_status(events: Iterable[TaskEvent]) -> TaskEvent | None:
    """Return the latest status event, or None while there is none."""
    found: TaskEvent | None = None
    for event in events:
        if event.kind is EventKind.STATUS:
            found = event
    return found


def _extend(parts: list[Mapping[str, Any]], more: Iterable[Mapping[str, Any]]) -> None:
    for part in more:
        if "text" in part and parts and {**parts[-1], "text": ""} == {**part, "text": ""}:
            parts[-1] = {**part, "text": parts[-1]["text"] + part["text"]}
        else:
            parts.append(part)
