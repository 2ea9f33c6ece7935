"""How the command line shows budgets, what is left of them, and alerts.

Above: `budget`. Below: the values of `rag.budgets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from rich.markup import escape

from rag.budgets.alerts import Alert
from rag.budgets.operator import Budget, Scope
from rag.budgets.usage import Account
from rag.cli.common import printable
from rag.cli.money import exact, exact_or_none

__all__ = ["account_as_dict", "alert_as_dict", "key_as_dict", "model_in_words", "time_in_words", "whose"]

EACH: Mapping[str, str] = {
    Scope.TENANT: "the tenant",
    Scope.TEAM: "each team",
    Scope.USER: "each user",
    Scope.TASK: "each task",
    Scope.REQUEST: "each request",
}


def whose(scope: str, scope_id: str) -> str:
    """Return whose spending is limited."""
    return escape(printable(f"{scope} {scope_id}")) if scope_id else EACH[scope]


def model_in_words(name: str) -> str:
    """Return of which model."""
    return escape(printable(name)) if name else "all"


def time_in_words(moment: datetime | None) -> str:
    """Return a time, in UTC; empty where there is none."""
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def key_as_dict(one: Budget | Account | Alert) -> dict[str, object]:
    """Return, for JSON, which budget it is."""
    return {"scope": str(one.scope), "scope_id": one.scope_id, "model": one.model or None, "period": str(one.period)}


def account_as_dict(one: Account) -> dict[str, object]:
    """Return how a budget stands, for JSON: amounts as text."""
    return {
        **key_as_dict(one),
        "starts_at": one.starts_at.isoformat(),
        "resets_at": None if one.ends_at is None else one.ends_at.isoformat(),
        "amount": exact_or_none(one.amount),
        "used": exact(one.used),
        "overrun": exact(one.overrun),
        "held": exact(one.held),
        "left": exact_or_none(one.left),
    }


def alert_as_dict(one: Alert) -> dict[str, object]:
    """Return an alert, for JSON: amounts as text."""
    return {
        "at": one.at.isoformat(),
        "mark": one.mark,
        **key_as_dict(one),
        "starts_at": one.starts_at.isoformat(),
        "resets_at": None if one.ends_at is None else one.ends_at.isoformat(),
        "amount": exact(one.amount),
        "used": exact(one.used),
    }
