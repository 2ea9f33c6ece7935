"""Driver errors become ours here and nowhere else: by SQLSTATE and by constraint name, never by message text.

Below: asyncpg. Above: `pool`. A domain that wants a constraint to mean something names it in CONSTRAINTS.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import asyncpg

from rag.errors import (
    BudgetExceeded,
    BulkheadError,
    Conflict,
    FenceLost,
    Forbidden,
    InvalidInput,
    ModelSwitched,
    NotFound,
    Revoked,
    SealRefused,
    TaskBusy,
    TaskNotCancelable,
    Unavailable,
)

__all__ = ["over_budget", "translated"]

_log = logging.getLogger(__name__)

CONSTRAINTS: Mapping[str, tuple[type[BulkheadError], str]] = {
    "tenant_name_unique": (Conflict, "a tenant of that name exists"),
    "tenant_name_form": (InvalidInput, "a tenant's name is 1 to 63 characters of a-z, 0-9 and -, not starting with -"),
    "tenant_tier_known": (InvalidInput, "the tier is free, pro or enterprise"),
    "tier_rates": (InvalidInput, "a rate is 1 to 10000000, a burst 1 to 1000000, concurrency 1 to 100000"),
    "tenant_weights": (InvalidInput, "a tenant's two weights are set together, 0 or more, and not both 0"),
    "document_source_length": (InvalidInput, "a source is 1 to 1024 characters long"),
    "document_title_length": (InvalidInput, "a title is 1 to 512 characters long"),
    "document_chunks_fit": (InvalidInput, "the document has more than 1048575 passages"),
    "audience_groups": (InvalidInput, "a document can be given to at most 32 groups"),
    "task_context_length": (InvalidInput, "a contextId is 1 to 256 characters long"),
    "task_key_length": (InvalidInput, "an idempotency key is 1 to 128 characters long"),
    "schedule_name_unique": (Conflict, "you have another schedule of that name"),
    "schedule_name_form": (
        InvalidInput,
        "a schedule's name is 1 to 63 characters of a-z, 0-9, ., _ and -, and starts with a letter or digit",
    ),
    "schedule_request_length": (InvalidInput, "a schedule's request is 1 to 20000 characters long"),
    "tenant_task_retention": (InvalidInput, "tasks are kept for 1h to 3650d, or forever"),
    "task_event_task": (NotFound, "there is no such task"),
    "external_server_tenant": (NotFound, "there is no such tenant"),
    "external_server_name_unique": (Conflict, "the tenant has an external server of that name"),
    "external_server_name_form": (
        InvalidInput,
        "an external server's name is 1 to 63 characters of a-z, 0-9 and -, not starting with -",
    ),
    "external_server_url_length": (InvalidInput, "a URL is 1 to 2048 characters long"),
    "external_server_tools": (InvalidInput, "an external server is allowed 1 to 32 tools"),
    "external_server_header": (InvalidInput, "a header's name is 1 to 64 characters of a-z, 0-9 and -"),
    "llm_endpoint_name": (Conflict, "there is an endpoint of that name"),
    "llm_endpoint_name_form": (
        InvalidInput,
        "an endpoint's name is 1 to 63 characters of a-z, 0-9 and -, not starting with -",
    ),
    "llm_endpoint_url": (
        InvalidInput,
        "an endpoint's URL begins with http:// or https://, and has no user, query, fragment or slash at its end",
    ),
    "llm_endpoint_kind": (InvalidInput, "an endpoint's kind is vllm, openai or ollama"),
    "llm_endpoint_vllm_url": (InvalidInput, "the URL of an endpoint of the kind vllm ends in /v1"),
    "llm_model_name": (Conflict, "there is a model of that name"),
    "llm_model_name_form": (
        InvalidInput,
        "a model's name is 1 to 128 characters of a-z, A-Z, 0-9, ., _, /, : and -, and starts with a letter or digit",
    ),
    "llm_model_context": (InvalidInput, "a model's context is 1 to 100000000 tokens"),
    "llm_offer_model": (NotFound, "there is no such model; `bulkhead models list` shows all"),
    "llm_offer_endpoint": (NotFound, "there is no such endpoint; `bulkhead models endpoints` shows all"),
    "llm_offer_served_name": (InvalidInput, "what an endpoint calls a model is 1 to 256 characters long"),
    "llm_offer_priority": (InvalidInput, "a priority is 0 to 1000000"),
    "llm_model_tenant_model": (NotFound, "there is no such model; `bulkhead models list` shows all"),
    "llm_model_tenant_tenant": (NotFound, "there is no such tenant"),
    "llm_price_moment": (Conflict, "another price is valid from that moment"),
    "llm_price_numbers": (InvalidInput, "a price is 0 to 1000000000 with up to 6 decimal places"),
    "llm_price_cached": (InvalidInput, "cached input is no dearer than input"),
    "llm_price_model": (Conflict, "the model had a price, which explains what was charged: withdraw its offers"),
    "llm_price_endpoint": (
        Conflict,
        "the endpoint had a price, which explains what was charged: `bulkhead models set-endpoint --disable` instead",
    ),
    "budget_amount": (InvalidInput, "a budget is 0 to 1000000000000"),
    "budget_period": (InvalidInput, "a tier's budget is for a day or a month"),
    "budget_scope": (
        InvalidInput,
        "a tenant, team or user has budgets for a day or a month, a task for a task, a request for a request",
    ),
    "budget_scope_id": (InvalidInput, "only a team or a user is named, by 1 to 256 characters"),
    "budget_model_length": (InvalidInput, "a model's name is 1 to 256 characters long"),
    "budget_tenant_id_fkey": (NotFound, "there is no such tenant"),
    "tier_budget_tier_fkey": (NotFound, "there is no such tier; `bulkhead tenant tiers` shows all"),
    "revocation_tenant_id_fkey": (NotFound, "there is no such tenant"),
}


RAISED: Mapping[str, Callable[[str], BulkheadError]] = {
    # what our own functions raise, and the detail that they raise it with
    "BH001": lambda _: FenceLost(),
    "BH002": lambda _: TaskNotCancelable(),
    "BH003": lambda _: Conflict("this source names a document that you may not read; choose another source"),
    "BH004": lambda _: Forbidden("a document can be given to groups only by a member of one of them"),
    "BH005": lambda detail: ModelSwitched(model_id=int(detail)),
    "BH006": lambda _: TaskBusy(),
    "BH007": lambda _: Forbidden("only whoever started a task may send messages to it"),
    "BH008": lambda detail: over_budget(json.loads(detail, parse_float=Decimal, parse_int=Decimal)),
}


def over_budget(refusal: Mapping[str, Any]) -> BudgetExceeded:
    """Return the error for what a function of the ledger tells of the budget that has not that much left: its `scope`
    and `period`, what is `remaining`, and when it `resets_at` (a datetime, its ISO text, or None).
    """
    scope, period, left = refusal["scope"], refusal["period"], Decimal(refusal["remaining"])
    resets_at = refusal["resets_at"]
    if isinstance(resets_at, str):
        resets_at = datetime.fromisoformat(resets_at)
    amount = f"{left.normalize():f}"
    if scope == "request":
        message = f"this request may cost more than the {amount} that it may cost"
    elif scope == "task":
        message = f"the task's budget has {amount} left, which is not enough"
    else:
        message = f"the budget of the {scope} for this {period} has {amount} left, which is not enough"
    if resets_at is not None:
        message += f"; it starts anew at {resets_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return BudgetExceeded(message, scope=scope, window=period, left=left, resets_at=resets_at)


@contextmanager
def translated() -> Generator[None]:
    """Turn what the driver raises inside the block into an error of ours.

    Raises:
        SealRefused, Revoked: The database refused the tenant context (SQLSTATE 42501).
        FenceLost, TaskNotCancelable, TaskBusy, Forbidden: BH001, BH002, BH006 and BH007 of the task functions.
        Conflict, Forbidden, ModelSwitched: BH003 to BH005 of the corpus and the search.
        BudgetExceeded: BH008 of the ledger.
        Unavailable: The connection is gone, the server is starting, or the statement ran into its time limit.
        BulkheadError: Anything else; the detail goes to the log, without values.
    """
    try:
        yield
    except asyncpg.PostgresError as exc:
        raise _of(exc) from exc
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as exc:
        raise Unavailable("the database is not reachable; try again") from exc


def _of(exc: asyncpg.PostgresError) -> BulkheadError:
    constraint = str(getattr(exc, "constraint_name", None) or "")
    if constraint in CONSTRAINTS:
        kind, message = CONSTRAINTS[constraint]
        return kind(message)
    match str(getattr(exc, "sqlstate", "")):
        case "42501":
            return Revoked() if getattr(exc, "detail", None) == "revoked" else SealRefused()
        case state if state in RAISED:
            return RAISED[state](str(getattr(exc, "detail", None) or ""))
        case "57014":
            return Unavailable("the database took too long; try again")
        case "40001" | "40P01" | "55P03":
            return Unavailable("the database was busy; try again")
        case "22021" | "22P05" | "22P02":
            return InvalidInput("the text holds a character that cannot be stored, such as NUL")
        case "42704":
            return InvalidInput("there is no such text search configuration; name one of PostgreSQL's, such as english")
        case "53100":
            _log.error("the disk of the database is full")
            return Unavailable("the database has no space left; free some and try again")
        case state if state.startswith(("08", "53", "57")):
            return Unavailable("the database is not reachable; try again")
        case state:
            # NOTE: neither the driver's message nor its detail is logged: both may quote stored text.
            _log.error("database error %s (%s)", state, constraint or type(exc).__name__)
            return BulkheadError()
