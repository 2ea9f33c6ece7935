"""Driver errors become ours here and nowhere else: by SQLSTATE and by constraint name, never by message text.

Below: asyncpg. Above: `pool`. A domain that wants a constraint to mean something names it in CONSTRAINTS.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import asyncpg

from rag.errors import (
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

__all__ = ["translated"]

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
}


@contextmanager
def translated() -> Generator[None]:
    """Turn what the driver raises inside the block into an error of ours.

    Raises:
        SealRefused, Revoked: The database refused the tenant context (SQLSTATE 42501).
        FenceLost, TaskNotCancelable, TaskBusy, Forbidden: BH001, BH002, BH006 and BH007 of the task functions.
        Conflict, Forbidden, ModelSwitched: BH003 to BH005 of the corpus and the search.
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
