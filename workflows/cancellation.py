"""Where asyncio's cancellation and anyio's meet: LangGraph cancels by the one, all of our code cleans up by the other.

Above: `runner` (around a graph) and `nodes` (within each node). Below: nothing of ours. A cancelled anyio scope cancels
whoever waits in it at every turn of the loop and leaves shields alone; asyncio cancels a task once, through any shield.
Where both reach one node at the same time, as when a step's own log line is refused because the task is canceled, the
clean-up of the one is broken by the other: connections to a model stayed open, and it went on writing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio

__all__ = ["CLEAN_UP_S", "cancelled_by_scope", "cancelled_once"]

T = TypeVar("T")
CLEAN_UP_S = 5.0
"""What is told to stop has this long to close what it holds open."""


async def cancelled_once(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, which cleans up by asyncio's rules, from a scope of anyio: it is cancelled once, and waited for."""
    task = asyncio.create_task(work)  # noqa: TID251  # owned here: this function does not return before its end
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        await _ended(task)
        raise


async def cancelled_by_scope(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, which cleans up by anyio's rules, from a task that asyncio may cancel: its shields hold."""
    scope = anyio.CancelScope()
    results: list[T] = []

    async def within() -> None:
        with scope:
            results.append(await work)

    task = asyncio.create_task(within())  # noqa: TID251  # owned here, as above
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        scope.cancel()
        await _ended(task)
        raise
    return results[0]


async def _ended(task: asyncio.Task[Any]) -> None:
    """Wait for the end of a task that has been cancelled, however often the caller is cancelled in the meantime."""
    until = anyio.current_time() + CLEAN_UP_S
    with anyio.CancelScope(shield=True):
        while not task.done() and anyio.current_time() < until:
            try:
                await asyncio.wait([task], timeout=until - anyio.current_time())
            except asyncio.CancelledError:
                continue  # the caller is on its way out already, and raises that it was cancelled
    if task.done() and not task.cancelled():
        task.exception()  # looked at: what a cancelled run still raises interests nobody
