"""How the command line shows a price.

Above: `models`, `route`. Below: the values of `rag.llm`.
"""

from __future__ import annotations

from rag.llm.catalogue import Price

__all__ = ["price_as_dict", "price_in_words"]


def price_in_words(price: Price) -> str:
    """Return the prices of input, cached input and output for a million tokens, and of a second if there is one."""
    second = f" + {price.second:f}/s" if price.second else ""
    return f"{price.input:f}/{price.cached_input:f}/{price.output:f}{second}"


def price_as_dict(price: Price) -> dict[str, str]:
    """Return the price for JSON: decimals as text."""
    return {
        "price_id": str(price.price_id),
        **{name: f"{getattr(price, name):f}" for name in ("input", "cached_input", "output", "second")},
    }
