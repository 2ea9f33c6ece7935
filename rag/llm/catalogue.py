"""Which models there are, where they are served, what they cost and who may use them: values, read from the database.

Above: `routing`, `gateway`, `rag.catalogue` (which reads and writes them). Below: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum
from uuid import UUID

__all__ = ["Catalogue", "Endpoint", "Model", "Offer", "Price", "Tier"]

PER_TOKENS = 1_000_000
"""Prices are told for so many tokens, as everybody tells them."""


class Tier(IntEnum):
    """How much a model can do. Ordered by value and never compared as text ("large" < "small")."""

    SMALL = 1
    MEDIUM = 2
    LARGE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One version of a model's price at an endpoint, in the installation's currency; exact decimals."""

    price_id: UUID
    input: Decimal
    """For a million tokens of the prompt; as `cached_input` and `output`. At most 6 decimal places."""
    cached_input: Decimal
    """For a million prompt tokens that the server had in its prefix cache; at most `input`."""
    output: Decimal
    second: Decimal = Decimal(0)
    """For a second of the call's time at the server: what own hardware costs. At most 6 decimal places."""

    def upper(self, *, prompt: int, completion: int, seconds: int) -> Decimal:
        """Return the most that a call may cost: nothing cached, every token written, all of its time taken."""
        return (self.input * prompt + self.output * completion) / PER_TOKENS + self.second * seconds

    def cost(self, *, prompt: int, cached: int, completion: int, milliseconds: int) -> Decimal:
        """Return what a call has cost, exactly: at most 12 decimal places."""
        tokens = self.input * (prompt - cached) + self.cached_input * cached + self.output * completion
        return tokens / PER_TOKENS + self.second * milliseconds / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server of models."""

    name: str
    base_url: str
    """Ends in /v1."""
    kind: str = "openai"
    """`vllm` has /tokenize and cache_salt besides the OpenAI API; `openai` and `ollama` are as they are."""
    api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model, wherever it is served."""

    name: str
    tier: Tier
    context_tokens: int
    """Prompt and completion together."""
    tiers: frozenset[str]
    """Tiers of tenants (free, pro, enterprise) that may use it."""
    tenants: frozenset[UUID]
    """Tenants that may use it besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A model at an endpoint."""

    model: Model
    endpoint: Endpoint
    served_name: str
    """What the endpoint calls the model."""
    priority: int
    """Of the endpoints of one model the lowest is asked first."""
    price: Price | None
    """The one that is valid now; None: unknown, and whoever has a budget is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """All offers, as they stand now."""

    offers: tuple[Offer, ...] = ()

    def allowed(self, tenant_id: UUID, tenant_tier: str) -> tuple[Offer, ...]:
        """Return the offers that a tenant may use: unknown means no."""
        return tuple(
            offer for offer in self.offers if tenant_tier in offer.model.tiers or tenant_id in offer.model.tenants
        )

    def models(self) -> Mapping[str, Model]:
        """Return the models by name."""
        return {offer.model.name: offer.model for offer in self.offers}
