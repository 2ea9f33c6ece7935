"""The catalogue of an installation that keeps none: the one model of BULKHEAD_LLM_URL.

Above: the composition root, the verb that explains a route. Below: `rag.settings`, the values of `rag.llm`.
"""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID, uuid5

from rag.llm.catalogue import Catalogue, Endpoint, Model, Offer, Price, Tier
from rag.settings import Settings

__all__ = ["CONFIGURED", "EVERY_TIER", "configured", "of_settings"]

CONFIGURED = "configured"
"""The name of its endpoint."""
EVERY_TIER = frozenset({"free", "pro", "enterprise"})
UNKNOWN_CONTEXT = 100_000_000
"""Tokens: nobody has said how long its context is, so everything fits and the server has the last word."""
_PRICES = UUID("6f0f5a52-4a7c-5d0e-9f3b-2f5f0c0f7d11")
"""Namespace of price ids: the same prices have the same id in every process and after every start."""


def configured(settings: Settings) -> Catalogue:
    """Return the catalogue that BULKHEAD_LLM_URL and its neighbours make; without it an empty one."""
    if settings.llm_url is None or settings.llm_model is None:
        return Catalogue()
    return of_settings(
        settings.llm_url, settings.llm_model, settings.llm_api_key, kind=settings.llm_kind, prices=settings.llm_price
    )


def of_settings(
    url: str,
    model: str,
    api_key: str | None,
    *,
    kind: str = "openai",
    prices: tuple[Decimal, Decimal, Decimal] | None = None,
    context_tokens: int = UNKNOWN_CONTEXT,
) -> Catalogue:
    """Return the catalogue of one model at one endpoint, which every tenant may use for everything.

    Args:
        url: OpenAI-compatible base URL.
        model: Its name, ours and the server's.
        api_key: What the server asks for.
        kind: `vllm`, `openai` or `ollama`: what else than the OpenAI API the server has.
        prices: Of input, cached input and output, for a million tokens; None: not known.
        context_tokens: Prompt and completion together.
    """
    return Catalogue(
        offers=(
            Offer(
                model=Model(
                    name=model,
                    tier=Tier.LARGE,
                    context_tokens=context_tokens,
                    tiers=EVERY_TIER,
                    tenants=frozenset(),
                ),
                endpoint=Endpoint(name=CONFIGURED, base_url=url.rstrip("/"), kind=kind, api_key=api_key),
                served_name=model,
                priority=0,
                price=None if prices is None else _price(model, prices),
            ),
        )
    )


def _price(model: str, prices: tuple[Decimal, Decimal, Decimal]) -> Price:
    told = " ".join(f"{number.normalize():f}" for number in prices)
    return Price(price_id=uuid5(_PRICES, f"{model} {told}"), input=prices[0], cached_input=prices[1], output=prices[2])
