"""The tool `cancel_task`: end a task that is no longer wanted."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated
from uuid import UUID

from pydantic import Field

from mcp_server.call import Call
from mcp_server.tools import tasks
from mcp_server.tools.tasks import TaskOutput
from mcp_server.tools.tool import Arguments, Tool
from rag.errors import TaskNotCancelable
from rag.identity.scopes import Scope
from rag.tasks import store
from rag.tasks.values import TaskState

__all__ = ["CANCEL_TASK"]


class CancelArguments(Arguments):
    """Arguments of `cancel_task`."""

    task_id: Annotated[UUID, Field(strict=False, description="As delegate_task returned it.")]


async def run(call: Call, arguments: CancelArguments) -> TaskOutput:
    """End the task in the caller's tenant; its worker stops within moments."""
    with suppress(TaskNotCancelable):
        await store.cancel(call.runtime.database, call.principal, arguments.task_id)
    found = await tasks.summary(call, arguments.task_id)
    if found.task.state is not TaskState.CANCELED:
        raise TaskNotCancelable(f"the task has already ended: it is {found.task.state.value}")
    return TaskOutput(**tasks.shown(found))


CANCEL_TASK = Tool(
    name="cancel_task",
    title="Cancel a task",
    description=(
        "End a task that is no longer wanted. It is canceled for good when this returns, and what it had made so far "
        "is incomplete. A task that has already ended otherwise is left as it is, with an error that says so."
    ),
    scope=Scope.TASKS_RUN,
    arguments=CancelArguments,
    output=TaskOutput,
    run=run,
    read_only=False,
    destructive=True,
)
