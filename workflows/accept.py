"""Accepting a task: which workflow is asked for, whether the caller may have it run, and the row that makes it durable.

Above: both faces, whose protocols call it SendMessage and delegate_task. Below: `registry`, `rag.tasks.store`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from rag.db.pool import Database
from rag.identity.principal import Principal, require
from rag.tasks import store
from rag.tasks.values import Created, NewTask
from rag.telemetry import carrier, log_fields
from workflows.registry import find_workflow

__all__ = ["Asked", "accept"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a caller wants done."""

    text: str
    workflow: str | None = None
    """None: the first of the registry."""
    context_id: str | None = None
    """Groups tasks of one conversation; None: one of its own."""
    message: Mapping[str, Any]
    """The caller's message as the log keeps it; see `rag.tasks.values.NewTask`."""
    idempotency_key: str | None = None
    """See `rag.tasks.values.NewTask`."""


async def accept(database: Database, principal: Principal, asked: Asked) -> Created:
    """Store a new task for what is asked, which then runs to its end whatever becomes of the caller; or store nothing.

    Raises:
        InvalidInput: There is no such workflow, or it cannot make anything of the text.
        Forbidden: The caller lacks a scope that the workflow needs.
        Conflict: The caller's key stands for another task.
        SealRefused, Revoked, Unavailable: The database does not take it.
    """
    workflow = find_workflow(asked.workflow)
    for scope in sorted(workflow.scopes):
        require(principal, scope)
    new = NewTask(
        task_id=uuid4(),
        context_id=asked.context_id or str(uuid4()),
        workflow=workflow.name,
        input=workflow.parse(asked.text),
        message=asked.message,
        traceparent=carrier().get("traceparent"),
        idempotency_key=asked.idempotency_key,
    )
    async with database.tenant(principal) as session:
        made = await store.create_task(session, principal, new)
    with log_fields(task=str(made.task_id)):
        _log.info("accepted a task for %s%s", workflow.name, "" if made.created else ", again")
    return made
