"""The tool `usage`: what the caller may ask for, what of it is left, and what it has stored and started."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mcp_server.call import Call
from mcp_server.tools.tool import Arguments, Output, Tool
from rag.corpus.collection import collection
from rag.identity.scopes import Scope
from rag.limits.values import Standing
from rag.tasks import store

__all__ = ["USAGE"]


class UsageArguments(Arguments):
    """Arguments of `usage`: none."""


class StandingOutput(Output):
    """An allowance, and what of it is left."""

    per_minute: Annotated[int, Field(description="Units of cost a minute, in the long run; most calls cost one.")]
    burst: Annotated[int, Field(description="Units at once after a pause.")]
    remaining: Annotated[int, Field(description="Units that would be let in now.")]
    running: Annotated[int, Field(description="Calls that run now, this one among them.")]
    concurrency: Annotated[int, Field(description="Calls that may run at a time.")]


class StoredOutput(Output):
    """What is stored, as far as the caller may read it."""

    documents: int
    chunks: int
    text_bytes: Annotated[int, Field(description="Length of all texts together, as UTF-8.")]


class OwnTasksOutput(Output):
    """The tasks that the caller has started."""

    by_state: Annotated[dict[str, int], Field(description="How many are in each state.")]
    started_this_month: Annotated[int, Field(description="In this calendar month, UTC.")]


class UsageOutput(Output):
    """Result of `usage`."""

    tier: Annotated[str, Field(description="Of your organisation; its limits come from it.")]
    organisation: Annotated[StandingOutput, Field(description="What all users of your organisation share.")]
    user: Annotated[StandingOutput, Field(description="What you may ask for within that.")]
    stored: Annotated[StoredOutput, Field(description="What you may read of your organisation's collection.")]
    tasks: Annotated[OwnTasksOutput, Field(description="Those that you have started.")]
    spend: Annotated[
        None, Field(description="Always null: this server does not meter tokens and money yet. Not zero: unknown.")
    ] = None


async def run(call: Call, arguments: UsageArguments) -> UsageOutput:
    """Ask the limiter and the caller's tenant."""
    del arguments
    runtime, principal = call.runtime, call.principal
    status = await runtime.limiter.status(principal)
    stored = await collection(runtime.database, principal, default_model=runtime.retriever.embedders.default_id)
    async with runtime.database.tenant(principal) as session:
        own = await store.count_own_tasks(session, principal)
    return UsageOutput(
        tier=status.tier,
        organisation=_standing(status.tenant),
        user=_standing(status.user),
        stored=StoredOutput(documents=stored.documents, chunks=stored.chunks, text_bytes=stored.text_bytes),
        tasks=OwnTasksOutput(
            by_state={state.value: count.tasks for state, count in sorted(own.items())},
            started_this_month=sum(count.this_month for count in own.values()),
        ),
    )


def _standing(standing: Standing) -> StandingOutput:
    return StandingOutput(
        per_minute=standing.per_minute,
        burst=standing.burst,
        remaining=standing.remaining,
        running=standing.running,
        concurrency=standing.concurrency,
    )


USAGE = Tool(
    name="usage",
    title="Show limits and use",
    description=(
        "Your organisation's tier, the rate limits that apply to it and to you with what is left of them now, how much "
        "is stored that you may read, and how many tasks you have started. Use it when calls are refused for their "
        "rate, or before a large batch. What models and tokens cost is not metered yet."
    ),
    scope=Scope.USAGE_READ,
    arguments=UsageArguments,
    output=UsageOutput,
    run=run,
    read_only=True,
    cost=2,
)
