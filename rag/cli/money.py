"""How the command line takes and shows amounts of money: exact decimals, never floats.

Above: `budget`, `usage`. Below: nothing of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Context, Decimal, InvalidOperation

from rag.errors import InvalidInput

__all__ = ["NO_LIMIT", "added", "amount_of", "exact", "exact_or_none", "short"]

NO_LIMIT = "none"
_WIDE = Context(prec=80)
"""More digits than the sum of all that a ledger can hold: nothing is rounded."""


def amount_of(text: str) -> Decimal | None:
    """Return the amount that an operator gave; None for `none`, no limit.

    Raises:
        InvalidInput: It is neither a number of 0 or more nor `none`.
    """
    if text == NO_LIMIT:
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise InvalidInput(f"an amount is a number such as 12.50, or {NO_LIMIT}")
    return amount


def exact(amount: Decimal) -> str:
    """Return every digit, as files and JSON have it."""
    return f"{amount:f}"


def exact_or_none(amount: Decimal | None) -> str | None:
    """Return every digit; None, which JSON calls null, where there is no amount."""
    return None if amount is None else exact(amount)


def short(amount: Decimal | None) -> str:
    """Return the same value without zeros at its end, for people; `none` where there is no amount."""
    if amount is None:
        return NO_LIMIT
    digits = exact(amount)
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def added(amounts: Iterable[Decimal]) -> Decimal:
    """Return the sum, to the last digit."""
    total = Decimal(0)
    for amount in amounts:
        total = _WIDE.add(total, amount)
    return total
