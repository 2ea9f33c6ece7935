"""The tool `task_result`: what a finished task made."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field

from mcp_server.call import Call
from mcp_server.tools import tasks
from mcp_server.tools.tasks import MAX_TEXT_CHARS, ArtifactOutput, TaskOutput
from mcp_server.tools.tool import Arguments, Tool
from rag.errors import InvalidInput, NotFound
from rag.identity.scopes import Scope
from rag.tasks.values import TERMINAL

__all__ = ["TASK_RESULT"]

MAX_NAME_CHARS = 256
MAX_POSITION = 2**53


class ResultArguments(Arguments):
    """Arguments of `task_result`."""

    task_id: Annotated[UUID, Field(strict=False, description="As delegate_task returned it.")]
    artifact: Annotated[
        Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)] | None,
        Field(description="Name of the one artifact to read. Default: all."),
    ] = None
    start: Annotated[
        int, Field(ge=0, le=MAX_POSITION, description="With artifact: where to go on, its next_start.")
    ] = 0


class ResultOutput(TaskOutput):
    """Result of `task_result`."""

    result: Annotated[
        list[ArtifactOutput] | None,
        Field(description="What the task made. null: it has not finished; call task_status with wait_s."),
    ]

    def documents_used(self) -> tuple[str, ...]:
        """See `Output.documents_used`."""
        return tasks.documents_of(self.result or [])


async def run(call: Call, arguments: ResultArguments) -> ResultOutput:
    """Read from the caller's tenant."""
    if arguments.start and arguments.artifact is None:
        raise InvalidInput("start goes with artifact: name the one to go on reading")
    found = await tasks.summary(call, arguments.task_id)
    if found.task.state not in TERMINAL:
        return ResultOutput(**tasks.shown(found), result=None)
    made = await tasks.read_artifacts(call, arguments.task_id, name=arguments.artifact, start=arguments.start)
    if arguments.artifact is not None and not made:
        raise NotFound("the task has no artifact of that name; leave artifact out to see all")
    return ResultOutput(**tasks.shown(found), result=made)


TASK_RESULT = Tool(
    name="task_result",
    title="Read a task's result",
    description=(
        "What a finished task made: texts, and data such as citations that were checked against the documents. A "
        "failed task's message says why. For a task that still runs the result is null; wait with task_status. At most "
        f"{MAX_TEXT_CHARS} characters come back at a time; pass artifact and next_start for the rest."
    ),
    scope=Scope.TASKS_RUN,
    arguments=ResultArguments,
    output=ResultOutput,
    run=run,
    read_only=True,
)
