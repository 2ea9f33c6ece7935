"""The settings of a worker whose model is a server of the tests'."""

from __future__ import annotations

from typing import Any

__all__ = ["PRICES", "served_at"]

PRICES = "1,0.1,2"
"""A price is known: the tenants of the tests have a budget, as new tenants do."""


def served_at(base_url: str, model: str) -> dict[str, Any]:
    """Return the fields of `Settings` for the model at that URL."""
    return {"llm_url": base_url, "llm_model": model, "llm_kind": "vllm", "llm_prices": PRICES}
