"""A gateway over servers of the tests, with the real ledger: what a worker makes of the catalogue, in little."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from uuid import UUID, uuid4

import httpx

from rag.budgets.ledger import PostgresLedger
from rag.db.pool import Database
from rag.identity.principal import Principal
from rag.llm.catalogue import Catalogue, Endpoint, Model, Offer, Price, Tier
from rag.llm.gateway import Asked, Caller, Gateway, Queues
from rag.llm.ledger import Ledger, Payer
from rag.llm.request import ChatRequest, Limits
from rag.llm.retries import RetryRules
from rag.llm.routing import Policy, Rule

__all__ = ["PRICE", "Desk", "asked", "desk", "offer"]

PRICE = Price(price_id=uuid4(), input=Decimal(100), cached_input=Decimal(10), output=Decimal(200))
"""For a million tokens: a call of a hundred tokens costs about a cent."""
EVERYBODY = frozenset({"free", "pro", "enterprise"})
QUICK = Limits(first_token_s=5, between_tokens_s=5, total_s=10)


def offer(
    base_url: str,
    *,
    model: str = "qwen",
    tier: Tier = Tier.MEDIUM,
    endpoint: str = "here",
    priority: int = 0,
    price: Price | None = PRICE,
    api_key: str | None = None,
    context_tokens: int = 32_000,
) -> Offer:
    """Return an offer of a model at a server of the kind vllm."""
    return Offer(
        model=Model(name=model, tier=tier, context_tokens=context_tokens, tiers=EVERYBODY, tenants=frozenset()),
        endpoint=Endpoint(name=endpoint, base_url=base_url, kind="vllm", api_key=api_key),
        served_name=model,
        priority=priority,
        price=price,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    catalogue: Catalogue
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """A gateway and one who calls it."""

    gateway: Gateway
    caller: Caller
    emitted: list[str] = field(default_factory=list[str])

    async def emit(self, piece: str) -> None:
        """Take a piece of text."""
        self.emitted.append(piece)

    def whose(self, principal: Principal, *, max_cost: Decimal | None = None) -> Caller:
        """Return the caller that another principal would be."""
        return replace(self.caller, payer=Payer(principal=principal, max_cost=max_cost))

    def allowing(self, policy: Policy) -> Caller:
        """Return the caller with another policy."""
        return replace(self.caller, policy=policy)

    async def write(self, caller: Caller | None = None, *, max_tokens: int = 10, text: str = "Why?") -> str:
        """Have something written, and return its text."""
        request = ChatRequest(system="Rules.", user=text, max_tokens=max_tokens)
        return (await self.gateway.write(caller or self.caller, request, asked(), emit=self.emit)).text


def asked() -> Asked:
    """Return a call that was never made before."""
    return Asked(key=f"test:{uuid4()}", step="answer")


@asynccontextmanager
async def desk(
    database: Database,
    principal: Principal,
    offers: Sequence[Offer],
    *,
    ledger: Ledger | None = None,
    limits: Limits = QUICK,
    places: int = 16,
    rules: tuple[Rule, ...] = (),
    task_id: UUID | None = None,
) -> AsyncGenerator[Desk]:
    """Open a gateway over `offers`, whose calls `principal` pays for."""
    told = _Told(catalogue=Catalogue(offers=tuple(offers)), rules=rules)

    async def known() -> _Told:
        return told

    async with httpx.AsyncClient() as client:
        gateway = Gateway(
            client=client,
            known=known,
            ledger=ledger or PostgresLedger(database),
            queues=Queues(places=places),
            limits=limits,
            retries=RetryRules(base_s=0.0),
        )
        caller = Caller(payer=Payer(principal=principal, task_id=task_id), tier="free", cache_salt="salt-of-acme")
        yield Desk(gateway=gateway, caller=caller)
