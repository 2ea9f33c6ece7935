"""One run: from a lease to a terminal event, or to nothing at all when the lease is lost on the way.

Above: `worker`. Below: LangGraph, `checkpoints`, `journal`, the registry. What a run has done is in the log and in the
checkpoints; a run that starts looks there, so that the next attempt goes on where the last one died.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from langchain_core.runnables import RunnableConfig
from opentelemetry import trace

from rag.answering import OpenChat
from rag.budgets.usage import task_cost
from rag.clock import Clock
from rag.db.pool import Database
from rag.errors import BulkheadError, CostReached, FenceLost, RateLimited, Revoked, TaskNotCancelable, Unavailable
from rag.external.client import ExternalClient
from rag.identity.principal import Principal
from rag.identity.scopes import Audience
from rag.identity.tokens import TokenIssuer
from rag.llm.gateway import Meter
from rag.tasks import calls, conversations, store
from rag.tasks.values import INTERRUPTED, TERMINAL, Claim, EventKind, Exchange, Task, TaskState
from rag.telemetry import carried_from, log_fields
from workflows.cancellation import cancelled_once
from workflows.checkpoints import CheckpointPool, RunContext, TenantPostgresSaver
from workflows.forms import Approval, Pending, read_form, read_reply
from workflows.graphs import graph_of
from workflows.journal import Journal, Tally
from workflows.nodes import Tools, WorkflowContext
from workflows.registry import EVERY, find_workflow
from workflows.workflow import CostBound, Workflow

__all__ = ["MAX_ATTEMPTS", "Runner", "run"]

_log = logging.getLogger(__name__)
_tracer = trace.get_tracer("bulkhead.workflows")
_BOUND = "run:bound:"
"""Begins the key of the questions whether a task's bound may be raised."""
FIRST_FENCE = 1
"""Nobody has run the task before: there is nothing of it to look for."""
MAX_ATTEMPTS = 5
"""A task that has killed so many workers is not given to another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """What all runs of one worker share."""

    database: Database
    checkpoints: CheckpointPool
    issuer: TokenIssuer
    open_tools: Callable[[str], AbstractAsyncContextManager[Tools]]
    """Takes a bearer token for the MCP server."""
    open_external: Callable[[Principal], Awaitable[Sequence[ExternalClient]]]
    """Returns clients of the external servers on the list of the principal's tenant, as it is now."""
    open_chat: OpenChat
    input_timeout_s: float
    """How long a task waits for an answer before it fails."""
    clock: Clock


async def run(runner: Runner, claim: Claim) -> None:
    """Run the claimed task to its end, or until the run is lost. Raises nothing: a run that breaks off without an end
    is offered again when its lease runs out.
    """
    try:
        task = await store.read_claimed(runner.database, claim)
        if task.state in TERMINAL:
            _log.info("task %s has already ended; nothing of it is left to run", claim.task_id)
            return
        headers = {"traceparent": task.traceparent} if task.traceparent else {}
        with (
            carried_from(headers),
            _tracer.start_as_current_span(
                f"run {task.workflow}",
                kind=trace.SpanKind.CONSUMER,
                record_exception=False,
                set_status_on_exception=False,
            ),
            log_fields(tenant=str(task.tenant_id), task=str(task.task_id)),
        ):
            trace.get_current_span().set_attribute("bulkhead.attempt", claim.attempt)
            _log.info("attempt %d of a %s task begins", claim.attempt, task.workflow)
            await _run_task(runner, claim, task)
            _log.info("attempt %d ended", claim.attempt)
    except (FenceLost, TaskNotCancelable):
        _log.info("the run of task %s is lost or canceled; it stops", claim.task_id)
    except Exception:  # noqa: BLE001  # the worker outlives every run
        _log.warning("the run of task %s broke off; its lease will offer it again", claim.task_id, exc_info=True)


async def _run_task(runner: Runner, claim: Claim, task: Task) -> None:
    if claim.attempt > MAX_ATTEMPTS:
        await _fail(runner, claim, f"gave up after {MAX_ATTEMPTS} attempts")
        return
    if task.state in INTERRUPTED:
        # a run that waits for an answer is offered once nobody waits any longer
        await _fail(runner, claim, "nobody answered in the time that the task waits for it")
        return
    try:
        workflow = find_workflow(task.workflow, EVERY)
        with anyio.fail_after(workflow.time_limit_s):
            await _execute(runner, claim, task, workflow)
    except (FenceLost, TaskNotCancelable):
        raise
    except TimeoutError:
        await _fail(runner, claim, "the task ran into its time limit")
    except Revoked:
        await _fail(runner, claim, "the token that this task was started with has been revoked")
    except (Unavailable, RateLimited) as exc:
        if claim.attempt < MAX_ATTEMPTS:
            await _postpone(runner, claim, exc.message)
        else:
            await _fail(runner, claim, exc.message)
    except BulkheadError as exc:
        await _fail(runner, claim, exc.message)
    except Exception:  # noqa: BLE001  # whatever broke, the task must not stay working; its caller is told nothing
        _log.exception("task %s failed", claim.task_id)
        await _fail(runner, claim, "the task failed inside the server")


async def _execute(runner: Runner, claim: Claim, task: Task, workflow: Workflow) -> None:
    principal = task.grant.principal(task.tenant_id, expires_at=runner.clock() + workflow.time_limit_s)
    exchanges, tally = await _so_far(runner, principal, task)
    raised = [_approved(one) for one in exchanges if one.key.startswith(_BOUND)]
    if raised and not raised[-1]:
        await _fail(runner, claim, "the task has used what it may, and its bound was not raised")
        return
    times = 1 + len(raised)
    journal = Journal(
        database=runner.database,
        principal=principal,
        task_id=task.task_id,
        fence=claim.fence,
        bound=CostBound(calls=workflow.bound.calls * times, tokens=workflow.bound.tokens * times),
        tally=tally,
    )
    context = WorkflowContext(
        input=task.input,
        journal=journal,
        open_tools=lambda: _tools(runner, principal, workflow),
        open_external=lambda: runner.open_external(principal),
        chat=await runner.open_chat(principal, task.task_id, workflow.name, tally.meter),
        exchanges={one.key: one for one in exchanges},
    )
    saver = TenantPostgresSaver(
        runner.checkpoints,
        RunContext(seal=lambda: runner.database.seal(principal), task_id=task.task_id, fence=claim.fence),
    )
    try:
        await _walk(runner, workflow, context, saver)
    except CostReached:
        await _ask_for_more(runner, journal, workflow, number=times)


async def _walk(runner: Runner, workflow: Workflow, context: WorkflowContext, saver: TenantPostgresSaver) -> None:
    """Take the graph from where its checkpoints stand to its end, or to a question."""
    journal = context.journal
    graph = graph_of(workflow.name).copy(update={"checkpointer": saver})
    config: RunnableConfig = {"configurable": {"thread_id": str(journal.task_id)}}
    start: Any = dict(context.input)
    state: dict[str, Any] = {}
    finished = False
    if journal.fence > FIRST_FENCE:
        snapshot = await graph.aget_state(config)
        state = dict(snapshot.values)
        # A checkpoint with steps that come after it is gone on with; none at all is a first start.
        # NOTE: `tasks`, not `next`, which leaves out a step whose result is stored already: a worker that dies between
        # that and the next checkpoint would leave a task that looks finished.
        start = None if snapshot.tasks else start
        finished = bool(snapshot.values) and not snapshot.tasks
    while True:
        if not finished:
            state = await cancelled_once(graph.ainvoke(start, config, context=context, durability="sync"))
        for one in state.get("__interrupt__", ()):
            asked: dict[str, Any] = one.value
            await journal.ask(
                asked["ask"], asked["form"], asked["text"], auth=asked["auth"], wait_s=runner.input_timeout_s
            )
            return
        read = int(state.get("read", 0))
        if await journal.complete(read=read):
            return
        # somebody said something more just before the end: the graph hears it, from its start
        unread = await journal.inbox(read)
        start, finished = {"woken": unread[-1].seq}, False


async def _so_far(runner: Runner, principal: Principal, task: Task) -> tuple[list[Exchange], Tally]:
    """Return what was asked and answered, and what was used, by the attempts before this one."""
    if task.version == 1:
        return [], Tally()
    async with runner.database.tenant(principal) as session:
        exchanges, _ = await conversations.read_conversation(session, task.task_id)
        usage, cost = await calls.usage_of(session, task.task_id), await task_cost(session, task.task_id)
        return exchanges, Tally(usage=usage, meter=Meter(cost))


def _approved(exchange: Exchange) -> bool:
    return exchange.answer is not None and read_reply(read_form(exchange.form), exchange.answer.message).approved


async def _ask_for_more(runner: Runner, journal: Journal, workflow: Workflow, *, number: int) -> None:
    usage, bound = journal.tally.usage, workflow.bound
    form = Approval(
        id=f"{_BOUND}{number}",
        hint=(
            f"This task has made {usage.calls} calls and used {usage.prompt_tokens + usage.completion_tokens} tokens, "
            f"as much as it may. May it go on, for up to {bound.calls} calls and {bound.tokens} tokens more?"
        ),
        tools=(Pending(id="raise", name="raise_bound", args={"calls": bound.calls, "tokens": bound.tokens}),),
    )
    await journal.ask(form.id, form.to_wire(), form.text, auth=False, wait_s=runner.input_timeout_s)


@asynccontextmanager
async def _tools(runner: Runner, principal: Principal, workflow: Workflow) -> AsyncGenerator[Tools]:
    """Open the MCP server's tools with a fresh token for its audience, narrowed to what the workflow may do."""
    scopes = workflow.scopes | workflow.optional_scopes
    token = runner.issuer.exchange(principal, actor=Audience.A2A.value, audience=Audience.MCP, scopes=scopes)
    async with runner.open_tools(token) as tools:
        yield tools


async def _fail(runner: Runner, claim: Claim, reason: str) -> None:
    _log.warning("task %s failed: %s", claim.task_id, reason)
    await _tell(runner, claim, TaskState.FAILED, reason, key="run:end")


async def _postpone(runner: Runner, claim: Claim, reason: str) -> None:
    """Say why nothing moves. The lease is left to run out, which is the pause before the next attempt."""
    _log.warning("attempt %d of task %s stopped: %s", claim.attempt, claim.task_id, reason)
    text = f"{reason}; attempt {claim.attempt + 1} of {MAX_ATTEMPTS} follows"
    await _tell(runner, claim, TaskState.WORKING, text, key=f"run:postponed:{claim.fence}")


async def _tell(runner: Runner, claim: Claim, state: TaskState, text: str, *, key: str) -> None:
    """Append a status under the claim's own seal: the caller's grant may be what has failed."""
    payload = store.status_payload(state, text)
    async with runner.database.sealed(claim.seal) as session:
        await store.append(session, claim.task_id, EventKind.STATUS, payload, fence=claim.fence, key=key, state=state)
