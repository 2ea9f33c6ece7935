"""Offers, requests and readers for tests of what talks to model servers."""

from __future__ import annotations

from dataclasses import dataclass, field

from rag.llm.catalogue import Endpoint, Model, Offer, Price, Tier
from rag.llm.request import ChatRequest, Limits

__all__ = ["PROMPT", "QUICK", "Reader", "offer"]

KEY = "sk-very-secret"
PROMPT = ChatRequest(system="You are asked about fees.", user="What is the annual fee?", max_tokens=64)
QUICK = Limits(connect_s=5, first_token_s=5, between_tokens_s=5, total_s=10)
"""Bounds that no test reaches unless it is about them."""


def offer(
    base_url: str,
    *,
    kind: str = "openai",
    name: str = "here",
    model: str = "small",
    context_tokens: int = 8192,
    price: Price | None = None,
) -> Offer:
    """Return a model at the server of that URL."""
    return Offer(
        model=Model(
            name=model, tier=Tier.SMALL, context_tokens=context_tokens, tiers=frozenset({"free"}), tenants=frozenset()
        ),
        endpoint=Endpoint(name=name, base_url=base_url, kind=kind, api_key=KEY),
        served_name=f"served-{model}",
        priority=0,
        price=price,
    )


@dataclass(slots=True)
class Reader:
    """Takes the pieces of a text."""

    pieces: list[str] = field(default_factory=list[str])

    async def __call__(self, piece: str) -> None:
        """Satisfies `rag.llm.ports.Emit`."""
        self.pieces.append(piece)

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.pieces)
