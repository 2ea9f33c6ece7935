"""The tool `usage`: what the caller may ask for and spend, what of it is left, and what it has stored and started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from mcp_server.call import Call
from mcp_server.tools.tool import Arguments, Output, Tool
from rag.budgets.standing import read_standing
from rag.budgets.usage import Account, Usage, UsageFilter, read_usage
from rag.corpus.collection import collection
from rag.db.pool import Session
from rag.identity.principal import Principal
from rag.identity.scopes import Scope
from rag.limits.values import Standing
from rag.tasks import store

__all__ = ["USAGE"]

AHEAD = timedelta(days=1)
"""The database's clock, which dates calls, need not be ours."""
_WHOSE: Mapping[str, Literal["organisation", "team", "user"]] = {
    "tenant": "organisation",
    "team": "team",
    "user": "user",
}


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


class BudgetOutput(Output):
    """A budget in its period. Amounts are decimal numbers as text: a float would round them."""

    whose: Annotated[
        Literal["organisation", "team", "user"], Field(description="Whose spending counts: user is you alone.")
    ]
    model: Annotated[str | None, Field(description="Only calls of this model count; null: of all models together.")]
    period: Literal["day", "month"]
    amount: Annotated[str | None, Field(description="What may be spent; null: no limit, it is only counted.")]
    used: Annotated[str, Field(description="What was spent.")]
    held: Annotated[str, Field(description="Set aside for calls and tasks under way, at the most they can cost.")]
    left: Annotated[str | None, Field(description="What a further call can be held against; null: no limit.")]
    resets_at: Annotated[str, Field(description="When it starts anew, as an RFC 3339 time in UTC.")]


class OwnSpendOutput(Output):
    """What the caller's own calls of models came to."""

    calls: int
    estimated_calls: Annotated[int, Field(description="Counted at the most they can have cost: nobody knows it.")]
    prompt_tokens: int
    cached_tokens: Annotated[int, Field(description="Of the prompt tokens, those that the model server had kept.")]
    completion_tokens: int
    cost: Annotated[str, Field(description="A decimal number.")]


class SpendOutput(Output):
    """What may be spent on models, and what was."""

    budgets: Annotated[
        tuple[BudgetOutput, ...],
        Field(description="All that your next call has to fit into; none: what you spend is not limited."),
    ]
    this_month: Annotated[OwnSpendOutput, Field(description="Your own calls in this calendar month, UTC.")]


class UsageOutput(Output):
    """Result of `usage`."""

    tier: Annotated[str, Field(description="Of your organisation; its limits come from it.")]
    organisation: Annotated[StandingOutput, Field(description="What all users of your organisation share.")]
    user: Annotated[StandingOutput, Field(description="What you may ask for within that.")]
    stored: Annotated[StoredOutput, Field(description="What you may read of your organisation's collection.")]
    tasks: Annotated[OwnTasksOutput, Field(description="Those that you have started.")]
    spend: Annotated[SpendOutput, Field(description="What models may cost and have cost, in one currency.")]


async def run(call: Call, arguments: UsageArguments) -> UsageOutput:
    """Ask the limiter, the caller's tenant and the ledger."""
    del arguments
    runtime, principal = call.runtime, call.principal
    status = await runtime.limiter.status(principal)
    stored = await collection(runtime.database, principal, default_model=runtime.retriever.embedders.default_id)
    async with runtime.database.tenant(principal) as session:
        own = await store.count_own_tasks(session, principal)
        spend = await _spend(session, principal)
    return UsageOutput(
        tier=status.tier,
        organisation=_standing(status.tenant),
        user=_standing(status.user),
        stored=StoredOutput(documents=stored.documents, chunks=stored.chunks, text_bytes=stored.text_bytes),
        tasks=OwnTasksOutput(
            by_state={state.value: count.tasks for state, count in sorted(own.items())},
            started_this_month=sum(count.this_month for count in own.values()),
        ),
        spend=spend,
    )


async def _spend(session: Session, principal: Principal) -> SpendOutput:
    now = datetime.now(UTC)
    mine = UsageFilter(
        tenant_id=principal.tenant_id,
        since=now.replace(day=1, hour=0, minute=0, second=0, microsecond=0),
        until=now + AHEAD,
        subject=principal.subject,
    )
    return SpendOutput(
        budgets=tuple(_budget(account) for account in await read_standing(session, principal, now)),
        this_month=_own(await read_usage(session, mine)),
    )


def _budget(account: Account) -> BudgetOutput:
    assert account.period in {"day", "month"}
    assert account.ends_at is not None
    return BudgetOutput(
        whose=_WHOSE[account.scope],
        model=account.model or None,
        period="day" if account.period == "day" else "month",
        amount=None if account.amount is None else _exact(account.amount),
        used=_exact(account.used),
        held=_exact(account.held),
        left=None if account.left is None else _exact(account.left),
        resets_at=account.ends_at.isoformat(),
    )


def _own(found: Sequence[Usage]) -> OwnSpendOutput:
    """Return the one total; there is none where there was no call."""
    total = found[0] if found else None
    return OwnSpendOutput(
        calls=total.calls if total else 0,
        estimated_calls=total.estimated_calls if total else 0,
        prompt_tokens=total.prompt_tokens if total else 0,
        cached_tokens=total.cached_tokens if total else 0,
        completion_tokens=total.completion_tokens if total else 0,
        cost=_exact(total.cost) if total else "0",
    )


def _exact(amount: Decimal) -> str:
    """Return every digit of the amount that says something."""
    digits = f"{amount:f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


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
        "rate or for a budget, or before a large batch. `spend` has what may be spent on models, by you and by "
        "those with whom you share a budget, what of it is left, and what your own calls have cost this month."
    ),
    scope=Scope.USAGE_READ,
    arguments=UsageArguments,
    output=UsageOutput,
    run=run,
    read_only=True,
    cost=2,
)
