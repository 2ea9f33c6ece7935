"""The tool `delegate_task`: work that takes longer than a call, done by a durable task of the A2A server's kind."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import uuid4

from pydantic import Field

from mcp_server.call import Call
from mcp_server.tools import tasks
from mcp_server.tools.tasks import MAX_WAIT_S, WAIT_TIMEOUT_S, ArtifactOutput, TaskOutput
from mcp_server.tools.tool import Arguments, Tool
from rag.corpus.metadata import fault_of
from rag.errors import InvalidInput
from rag.identity.scopes import Scope
from rag.tasks.messages import FILES
from rag.tasks.values import TERMINAL
from workflows.accept import Asked, accept
from workflows.registry import WORKFLOWS
from workflows.workflow import Workflow

__all__ = ["DELEGATE_TASK"]

MAX_MESSAGE_CHARS = 20_000
MAX_CONTEXT_CHARS = 256
MAX_KEY_CHARS = 128
_NAMES = [workflow.name for workflow in WORKFLOWS]


def _options(workflow: Workflow) -> list[str]:
    """Return the names of what the workflow takes, each with its choices or its kind where a word says it."""
    named: list[str] = []
    for name, schema in workflow.options.get("properties", {}).items():
        if name == FILES:
            continue
        forms = schema.get("anyOf", [schema])
        choices = [str(choice) for form in forms for choice in form.get("enum", ())]
        kind = "|".join(choices) or "|".join(str(form["type"]) for form in forms if form.get("type", "null") != "null")
        named.append(f"{name} ({kind})" if kind else name)
    return named


class DelegateArguments(Arguments):
    """Arguments of `delegate_task`."""

    message: Annotated[
        str,
        Field(min_length=1, max_length=MAX_MESSAGE_CHARS, description="What to do: a question or an order, in full."),
    ]
    workflow: Annotated[
        str | None,
        Field(
            max_length=64,
            description=" ".join(f"{workflow.name}: {workflow.description}" for workflow in WORKFLOWS)
            + f" Default: {_NAMES[0]}.",
        ),
    ] = None
    options: Annotated[
        dict[str, Any] | None,
        Field(
            description="What the workflow takes besides the message. "
            + " ".join(f"{workflow.name}: {', '.join(_options(workflow))}." for workflow in WORKFLOWS)
        ),
    ] = None
    context_id: Annotated[
        Annotated[str, Field(min_length=1, max_length=MAX_CONTEXT_CHARS)] | None,
        Field(description="Of an earlier task that this one belongs to. Default: a context of its own."),
    ] = None
    idempotency_key: Annotated[
        Annotated[str, Field(min_length=1, max_length=MAX_KEY_CHARS)] | None,
        Field(description="Your own name for this order: the same again returns its task and starts no second one."),
    ] = None
    wait_s: Annotated[
        int,
        Field(
            ge=0, le=MAX_WAIT_S, description="Wait up to so many seconds for the end, and return the result with it."
        ),
    ] = 0


class DelegateOutput(TaskOutput):
    """Result of `delegate_task`."""

    started: Annotated[bool, Field(description="false: an earlier call with this idempotency_key had started it.")]
    result: Annotated[
        list[ArtifactOutput] | None,
        Field(description="What the task made; null until it has finished. task_result reads the rest of a long one."),
    ]

    def documents_used(self) -> tuple[str, ...]:
        """See `Output.documents_used`."""
        return tasks.documents_of(self.result or [])


async def run(call: Call, arguments: DelegateArguments) -> DelegateOutput:
    """Accept a task for the caller; from then on it runs, whether anybody waits for it or not."""
    for name in ("message", "context_id", "idempotency_key"):
        value: str = getattr(arguments, name) or ""
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise InvalidInput(f"{name} has NUL characters or lone surrogates, which no text here can hold")
    options = arguments.options or {}
    if FILES in options:
        raise InvalidInput(f"options.{FILES}: files are sent over A2A, as parts with a filename")
    fault = fault_of(options)
    if fault is not None:
        raise InvalidInput(f"the options object {fault}")
    # as it would have come over A2A
    parts: list[dict[str, Any]] = [{"text": arguments.message}, *([{"data": options}] if options else ())]
    message = {"message_id": str(uuid4()), "parts": parts, "metadata": {}}
    asked = Asked(
        text=arguments.message,
        options=options,
        workflow=arguments.workflow,
        context_id=arguments.context_id,
        message=message,
        idempotency_key=arguments.idempotency_key,
    )
    accepted = await accept(call.runtime.database, call.principal, asked)
    if arguments.wait_s:
        await tasks.watch(call, accepted.task_id, after=1, wait_s=arguments.wait_s, first_news=False)
    found = await tasks.summary(call, accepted.task_id)
    finished = found.task.state in TERMINAL
    result = await tasks.read_artifacts(call, accepted.task_id) if finished else None
    return DelegateOutput(**tasks.shown(found), started=accepted.created, result=result)


DELEGATE_TASK = Tool(
    name="delegate_task",
    title="Delegate a task",
    description=(
        "Have work done that takes longer than a call: it goes on when this returns, survives restarts, and answers "
        f"with checked citations. Workflows: {', '.join(_NAMES)}. Use it for a question that deserves a written, cited "
        "answer; use hybrid_search for the passages themselves. With wait_s the result comes along if the task ends in "
        "time; else follow it with task_status and read it with task_result. Each call starts a task of its own, "
        "unless it repeats an idempotency_key."
    ),
    scope=Scope.TASKS_RUN,
    arguments=DelegateArguments,
    output=DelegateOutput,
    run=run,
    read_only=False,
    idempotent=False,
    cost=5,
    timeout_s=WAIT_TIMEOUT_S,
    waits=True,
)
