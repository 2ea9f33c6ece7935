"""What the nodes of a graph work with: the run's context, which step they are, and a span around each.

Above: the graphs, `graphs`, `runner`. Below: LangGraph, `cancellation`, `journal` and the ports that nodes use.
Whatever a node does to the outside goes through here and is recorded: a step that is replayed after a crash is given
what it was given before.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

import anyio
import orjson
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from opentelemetry import trace

from rag.errors import BulkheadError, Conflict, DocumentRefused, Forbidden, InvalidInput, NotFound
from rag.external.client import ExternalClient
from rag.llm.chat import Answer, Completion, Passage, Served, Usage, answer_of
from rag.llm.ports import Chat, Emit
from rag.tasks.values import CallKind, Exchange, Received
from workflows.cancellation import cancelled_by_scope
from workflows.forms import Form, Reply, read_reply
from workflows.journal import Called, Journal, Step

__all__ = ["Tools", "WorkflowContext", "step_of", "traced"]

P = ParamSpec("P")
R = TypeVar("R")
_tracer = trace.get_tracer("bulkhead.workflows")
_DEFINITE: Mapping[str, type[BulkheadError]] = {
    kind.code: kind for kind in (Conflict, DocumentRefused, Forbidden, InvalidInput, NotFound)
}
"""What a tool refuses for good is its result. Anything else may go well the next time."""


class Tools(Protocol):
    """The MCP server's tools, as the task's caller may use them."""

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tool's structured result.

        Raises:
            BulkheadError: What the tool refused or could not do.
        """
        ...

    async def declared(self) -> list[dict[str, Any]]:
        """Return {"name", "description", "input_schema", "read_only", "destructive"} of each tool the token covers.

        Raises:
            BulkheadError: As `call`.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowContext:
    """What the nodes of one run work with; nothing of it is stored."""

    input: Mapping[str, Any]
    """The task's input, as its workflow parsed it."""
    journal: Journal
    open_tools: Callable[[], AbstractAsyncContextManager[Tools]]
    """Opens a connection to the MCP server under a fresh token of its own (tenancy.md 5)."""
    open_external: Callable[[], Awaitable[Sequence[ExternalClient]]]
    """Returns clients of the servers that the tenant allows, as its list is now. Their calls are recorded by `call`."""
    chat: Chat
    """Answers at the expense of the task's caller."""
    exchanges: Mapping[str, Exchange] = field(default_factory=dict[str, Exchange])
    """What the task has asked so far, by the question's key."""
    _occurrences: Counter[str] = field(default_factory=Counter[str])

    @property
    def has_model(self) -> bool:
        """Whether something here can write; else answers are extracted."""
        return self.chat.model is not None

    @asynccontextmanager
    async def tools(self, step: Step) -> AsyncGenerator[Tools]:
        """Yield the MCP server's tools, whose calls are recorded; the connection is made by the first that is not."""
        async with AsyncExitStack() as stack:
            yield _RecordedTools(self, step, stack)

    async def call(
        self, step: Step, name: str, perform: Callable[[], Awaitable[Called]], *, kind: CallKind
    ) -> dict[str, Any]:
        """Return the result of `perform`, which is called only if no result of this call is recorded.

        A call is the same one when step and name are the same; calls of one name within a step are told apart by their
        order, so they are made one after the other.

        Raises:
            CostReached: The task may make no further call; nothing was called.
            BulkheadError: What `perform` raises; then there is no result, and the next time it is called again.
        """
        self._occurrences[f"{step.id}:{step.try_number}:{name}"] += 1
        number = self._occurrences[f"{step.id}:{step.try_number}:{name}"]
        return await self.journal.call(step, name if number == 1 else f"{name}#{number}", perform, kind=kind)

    async def answer(self, step: Step, artifact_id: str | None, question: str, passages: Sequence[Passage]) -> Answer:
        """Return the answerer's answer from `passages`; with an artifact its text is streamed into it as it comes.

        Raises:
            CostReached: As `call`.
            BudgetExceeded, PriceUnknown, Unavailable: As `Chat.answer`.
        """
        name = f"answer:{artifact_id or _digest(question)}"

        async def answered(emit: Emit) -> Answer:
            return await self.chat.answer(question, passages, emit=emit, key=self._key(step, name))

        async def perform() -> Called:
            made = (
                await answered(_nowhere)
                if artifact_id is None
                else await self.journal.stream(step, artifact_id, answered)
            )
            await self._label(step, name, made.served)
            return _called(asdict(made), made)

        kind = CallKind.MODEL if self.has_model else CallKind.TOOL
        return answer_of(await self.call(step, name, perform, kind=kind))

    async def complete(
        self,
        step: Step,
        name: str,
        system: str,
        user: str,
        *,
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """Return what the model writes to a prompt; nobody has checked it.

        Raises:
            CostReached: As `call`.
            BudgetExceeded, PriceUnknown, Unavailable: There is no model, or as `Chat.complete`.
        """
        call = f"complete:{name}"

        async def perform() -> Called:
            made = await self.chat.complete(
                system,
                user,
                max_tokens=max_tokens,
                schema=schema,
                key=self._key(step, call),
                step=name.partition(":")[0],
            )
            await self._label(step, call, made.served)
            return _called({"text": made.text}, made)

        return str((await self.call(step, call, perform, kind=CallKind.MODEL))["text"])

    async def _label(self, step: Step, name: str, served: Served | None) -> None:
        """Tell whoever follows the task where another model wrote than the first choice."""
        if served is None or not (served.fallback or served.downgraded):
            return
        why = "a smaller model than the rules ask for" if served.downgraded else "the first choice did not answer"
        await self.journal.progress(
            step,
            f"served:{name}:{self.journal.fence}",
            f"written by {served.model}: {why}",
            model=served.model,
            tier=served.tier,
            required=served.required,
            fallback=served.fallback,
            downgraded=served.downgraded,
        )

    def _key(self, step: Step, name: str) -> str:
        """Return what the ledger calls a call that is made now: made again by another attempt, it is another one."""
        number = self._occurrences[f"{step.id}:{step.try_number}:{name}"]
        return f"{step.id}:{name}#{number}:{self.journal.fence}.{step.try_number}"

    def ask(self, step: Step, form: Form) -> Reply:
        """Return what the task's caller answers to `form`.

        The run stops here until there is an answer, days perhaps; then the node begins anew, with its calls recorded,
        and finds the answer. LangGraph's interrupt, with the answer in the task's log and not in a checkpoint.
        """
        key = f"{step.id}:{form.id}"
        exchange = self.exchanges.get(key)
        if exchange is not None and exchange.answer is not None:
            return read_reply(form, exchange.answer.message)
        interrupt({"ask": key, "form": form.to_wire(), "text": form.text, "auth": form.auth})
        raise AssertionError("an interrupt does not return")  # the run is never resumed by a value

    async def inbox(self, after: int) -> list[Received]:
        """Return the messages that came after the one with the seq `after` while the task worked; 0: all of them."""
        return await self.journal.inbox(after)


def step_of(runtime: Runtime[WorkflowContext]) -> Step:
    """Return which step of the run this node is executing."""
    info = runtime.execution_info
    assert info is not None
    return Step(id=info.task_id, try_number=info.node_attempt)


def traced(node: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Awaitable[R]]:
    """Put each execution of a graph's node into a span of its own, without the text of what it raises.

    LangGraph may cancel it: that reaches the node as the cancellation of an anyio scope.
    """

    @wraps(node)
    async def within_span(*args: P.args, **kwargs: P.kwargs) -> R:
        name = f"node {node.__name__}"
        with _tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False):
            return await cancelled_by_scope(node(*args, **kwargs))

    return within_span


class _RecordedTools:
    def __init__(self, context: WorkflowContext, step: Step, stack: AsyncExitStack) -> None:
        self._context = context
        self._step = step
        self._stack = stack
        self._opening = anyio.Lock()
        self._tools: Tools | None = None

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        async def perform() -> Called:
            tools = await self._opened()
            try:
                return Called(result={"result": await tools.call(tool, arguments)})
            except tuple(_DEFINITE.values()) as exc:
                if type(exc) not in _DEFINITE.values():
                    raise
                return Called(result={"refused": exc.code, "message": exc.message})

        name = f"{tool}:{_digest(orjson.dumps(dict(arguments), option=orjson.OPT_SORT_KEYS, default=str).decode())}"
        made = await self._context.call(self._step, name, perform, kind=CallKind.TOOL)
        if "refused" in made:
            raise _DEFINITE[made["refused"]](made["message"])
        return made["result"]

    async def declared(self) -> list[dict[str, Any]]:
        async def perform() -> Called:
            return Called(result={"tools": await (await self._opened()).declared()})

        made = await self._context.call(self._step, "tools/list", perform, kind=CallKind.TOOL)
        return made["tools"]

    async def _opened(self) -> Tools:
        async with self._opening:
            if self._tools is None:
                self._tools = await self._stack.enter_async_context(self._context.open_tools())
            return self._tools


async def _nowhere(piece: str) -> None:
    del piece


def _called(result: dict[str, Any], made: Answer | Completion) -> Called:
    used = made.usage or Usage(prompt_tokens=0, completion_tokens=0)
    return Called(result=result, prompt_tokens=used.prompt_tokens, completion_tokens=used.completion_tokens)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
