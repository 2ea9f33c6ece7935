"""The tool `task_status`: where a task stands, now or as soon as there is news."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field

from mcp_server.call import Call
from mcp_server.tools import tasks
from mcp_server.tools.tasks import MAX_WAIT_S, WAIT_TIMEOUT_S, TaskOutput
from mcp_server.tools.tool import Arguments, Tool
from rag.identity.scopes import Scope
from rag.tasks.values import TERMINAL

__all__ = ["TASK_STATUS"]

MAX_VERSION = 2**53


class StatusArguments(Arguments):
    """Arguments of `task_status`."""

    task_id: Annotated[UUID, Field(strict=False, description="As delegate_task returned it.")]
    wait_s: Annotated[
        int, Field(ge=0, le=MAX_WAIT_S, description="Wait up to so many seconds for the task to finish.")
    ] = 0
    after_version: Annotated[
        Annotated[int, Field(ge=0, le=MAX_VERSION)] | None,
        Field(description="With wait_s: return as soon as there is a status later than this version."),
    ] = None


async def run(call: Call, arguments: StatusArguments) -> TaskOutput:
    """Read from the caller's tenant."""
    found = await tasks.summary(call, arguments.task_id)
    if arguments.wait_s and found.task.state not in TERMINAL:
        after, first_news = arguments.after_version, True
        if after is None:
            after, first_news = found.task.version, False
        await tasks.watch(call, arguments.task_id, after=after, wait_s=arguments.wait_s, first_news=first_news)
        found = await tasks.summary(call, arguments.task_id)
    return TaskOutput(**tasks.shown(found))


TASK_STATUS = Tool(
    name="task_status",
    title="Follow a task",
    description=(
        "Where a task stands: its state, what it did last, and what it has made so far. Pass wait_s rather than asking "
        "again and again: the call then returns when the task has finished, or with after_version at the next news. "
        "Read what a finished task made with task_result."
    ),
    scope=Scope.TASKS_RUN,
    arguments=StatusArguments,
    output=TaskOutput,
    run=run,
    read_only=True,
    timeout_s=WAIT_TIMEOUT_S,
    waits=True,
)
