"""Calls side by side within one step: so many at a time, results in order, and one error instead of a group.

Above: `checking` and the graphs. Below: anyio. LangGraph's retries and its interrupts know no exception groups.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, cast

import anyio
from langgraph.errors import GraphBubbleUp

from rag.errors import BulkheadError

__all__ = ["together"]

T = TypeVar("T")


async def together(calls: Sequence[Callable[[], Awaitable[T]]], *, at_a_time: int) -> list[T]:
    """Await every call, at most `at_a_time` at a time, and return what they return, in their order.

    Raises:
        BaseException: What one of them raised; the others are cancelled. Of several, what pauses the graph comes before
            an error of ours, and that before any other.
    """
    results: list[T | None] = [None] * len(calls)
    limit = anyio.CapacityLimiter(at_a_time)

    async def run(place: int) -> None:
        async with limit:
            results[place] = await calls[place]()

    try:
        async with anyio.create_task_group() as group:
            for place in range(len(calls)):
                group.start_soon(run, place)
    except BaseExceptionGroup as failed:
        raise _foremost(failed) from failed
    return cast("list[T]", results)


def _foremost(group: BaseExceptionGroup[BaseException]) -> BaseException:
    leaves = list(_leaves(group))
    for kind in (GraphBubbleUp, BulkheadError):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0]


def _leaves(exc: BaseException) -> list[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        children = cast("BaseExceptionGroup[BaseException]", exc).exceptions
        return [leaf for child in children for leaf in _leaves(child)]
    return [exc]
