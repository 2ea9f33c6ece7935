"""One operation of one caller, and the one door that all of them pass: admitted, allowed, bounded in time, recorded.

Above: `calls` and what it hands requests to (tools, resources, prompts, completions). Below: `rag.runtime`. Whatever
must hold for every operation is said here once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import anyio

from rag.audit.trail import Trail
from rag.errors import BulkheadError, Unavailable
from rag.identity.principal import Principal, require
from rag.identity.scopes import Scope
from rag.runtime import Runtime
from rag.telemetry import log_fields

__all__ = ["DOOR", "Call", "Done", "Operation", "Progress", "answer"]

_log = logging.getLogger(__name__)
DOOR = "mcp"
"""The name of this face in the audit trail."""
OF_THE_PRODUCT = frozenset({"tools/list", "prompts/list", "resources/templates/list"})
"""Tell nothing of a tenant: only their refusals are recorded."""
T = TypeVar("T")


class Progress(Protocol):
    """Tells the caller how far its operation is; does nothing for a caller that did not ask."""

    async def __call__(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """`progress` grows from call to call, up to `total` where that is known (MCP, basic/utilities/progress)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Who asks, of what, and how to keep it informed."""

    runtime: Runtime
    principal: Principal
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What is asked for, as limits, scopes, logs and the audit trail see it."""

    method: str
    """Of the protocol, such as tools/call."""
    target: str = ""
    """The name of the tool or prompt, or which kind of resource: never a text of the caller's."""
    scope: Scope | None
    """None: any verified caller."""
    cost: int = 1
    """In units of the tenant's and the user's rate limits."""
    timeout_s: float = 15.0
    writes: bool = False
    waits: bool = False
    """For something to happen, most of the time."""
    query: str | None = field(default=None, repr=False)
    """What is searched for, for the audit trail: a digest of it, and the text where the tenant wants that kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Generic[T]):
    """A result, and the ids of the documents out of which it was made."""

    value: T
    documents: tuple[str, ...] = ()


async def answer(call: Call, operation: Operation, work: Callable[[], Awaitable[Done[T]]]) -> T:
    """Do `work` for the caller if it may have it done, record it, and return its result.

    Raises:
        RateLimited: The caller or its tenant is at a limit.
        Forbidden: The token lacks the scope.
        Unavailable: The work took longer than the operation may take, or cannot be recorded.
        BulkheadError: What the work says; of a defect nothing but that it is one.
    """
    name = f"{operation.method} {operation.target}".rstrip()
    with log_fields(tenant=str(call.principal.tenant_id)):
        began = time.perf_counter()
        try:
            done = await _recorded(call, operation, work, name)
        except BulkheadError as exc:
            _log.info("%s: %s in %.0f ms", name, exc.code, (time.perf_counter() - began) * 1000)
            raise
        _log.info("%s: ok in %.0f ms", name, (time.perf_counter() - began) * 1000)
        return done.value


async def _recorded(call: Call, operation: Operation, work: Callable[[], Awaitable[Done[T]]], name: str) -> Done[T]:
    trail = Trail(
        call.runtime.audit,
        call.principal,
        door=DOOR,
        method=operation.method,
        target=operation.target,
        query=operation.query,
        writes=operation.writes,
        only_refusals=operation.method in OF_THE_PRODUCT,
    )
    try:
        async with call.runtime.limiter.admitted(call.principal, operation.cost, lasting=operation.waits):
            await trail.begin()
            done = await _done(call, operation, work, name)
            await trail.end(done.documents)
            return done
    except BulkheadError as exc:
        await trail.refuse(exc)
        raise
    except anyio.get_cancelled_exc_class():
        trail.cancel()
        raise


async def _done(call: Call, operation: Operation, work: Callable[[], Awaitable[Done[T]]], name: str) -> Done[T]:
    try:
        if operation.scope is not None:
            require(call.principal, operation.scope)
        with anyio.fail_after(operation.timeout_s):
            return await work()
    except TimeoutError as exc:
        _log.warning("%s ran into its limit of %.0f s", name, operation.timeout_s)
        what = operation.target or operation.method
        raise Unavailable(f"{what} took longer than {operation.timeout_s:.0f} s; try again") from exc
    except BulkheadError as exc:
        if type(exc) is BulkheadError:
            _log.exception("%s failed", name)
        raise
    except Exception as exc:
        # what is not ours to tell: the SDK would write the exception's text, which may quote a request, into the span
        _log.exception("%s failed", name)
        raise BulkheadError from exc
