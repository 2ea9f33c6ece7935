"""Reads the claims of a token whose signature holds: each has its type and its bounds, or the token is refused.

Above: `tokens` (our own tokens) and `external` (those of another issuer). Below: nothing but errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from uuid import UUID

from rag.errors import InvalidInput

__all__ = ["LEEWAY_S", "Times", "canonical_uuid", "number", "text", "texts", "times"]

LEEWAY_S = 5.0
"""How far the clocks of issuer and verifier may be apart."""
Times = tuple[float, float]


def times(claims: Mapping[str, Any], now: float) -> Times:
    """Return when the token was issued and when it ends, in Unix seconds. `nbf` counts where it is there.

    Raises:
        InvalidInput: `now` is outside the token's time, or a time is none.
    """
    issued_at, expires_at = number(claims, "iat"), number(claims, "exp")
    not_before = number(claims, "nbf") if "nbf" in claims else issued_at
    if expires_at + LEEWAY_S <= now or max(not_before, issued_at) - LEEWAY_S > now:
        raise InvalidInput("the token is outside its time")
    return issued_at, expires_at


def number(claims: Mapping[str, Any], name: str) -> float:
    """Return a claim that is a time in seconds."""
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise InvalidInput(f"{name} is not a time")
    return float(value)


def text(claims: Mapping[str, Any], name: str, *, empty: bool = False) -> str:
    """Return a claim that is a text."""
    value = claims[name]
    if not isinstance(value, str) or not (value or empty):
        raise InvalidInput(f"{name} is not a text")
    return value


def texts(value: object) -> list[str]:
    """Return a claim that is a list of texts."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in cast("list[object]", value)):
        raise InvalidInput("expected a list of texts")
    return cast("list[str]", value)


def canonical_uuid(value: str) -> UUID:
    """Return the UUID that `value` writes in its one canonical spelling.

    Raises:
        ValueError: It is none.
        InvalidInput: It is spelled otherwise.
    """
    found = UUID(value)
    if str(found) != value:  # UUID() also takes braces, urn: and capitals; a claim has one spelling
        raise InvalidInput("the tenant is not a canonical UUID")
    return found
