"""A node that is cancelled by asyncio and by its own task group at once still closes what it holds open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from workflows.cancellation import cancelled_by_scope, cancelled_once

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


class Held:
    """Something open, whose closing takes several turns of the loop; made to wait where the test says."""

    def __init__(self) -> None:
        """Open."""
        self.opened = anyio.Event()
        self.closing = anyio.Event()
        self.may_close = anyio.Event()
        self.closed = False

    async def hold(self) -> None:
        """Hold it open for ever, and close it under a shield, as HTTP clients do with a connection."""
        try:
            self.opened.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                self.closing.set()
                await self.may_close.wait()
                self.closed = True


async def _cancelled_while_it_closes(held: Held, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `work`, and cancel it through asyncio twice while `held` is being closed."""
    task = asyncio.create_task(work())  # noqa: TID251  # as LangGraph makes its nodes' tasks
    await held.closing.wait()
    for _ in range(2):
        task.cancel()
        for _ in range(3):
            await checkpoint()
    held.may_close.set()
    await asyncio.wait([task])
    assert task.cancelled()


async def _refused(held: Held) -> None:
    """Hold something open in a task group, another task of which breaks."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_break, held.opened.wait)
        await held.hold()


async def _break(when: Callable[[], Awaitable[None]]) -> None:
    await when()
    raise ValueError("refused")


async def test_a_cancel_while_a_node_cleans_up_does_not_break_the_clean_up() -> None:
    held = Held()
    await _cancelled_while_it_closes(held, lambda: cancelled_by_scope(_refused(held)))
    assert held.closed


async def test_a_cancel_reaches_a_node_as_one_cancelled_scope() -> None:
    held = Held()
    task = asyncio.create_task(cancelled_by_scope(held.hold()))  # noqa: TID251  # as above
    await held.opened.wait()
    task.cancel()
    held.may_close.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert held.closed


async def test_results_and_errors_pass() -> None:
    async def seven() -> int:
        await checkpoint()
        return 7

    async def broken() -> None:
        await checkpoint()
        raise ValueError("broken")

    for run in (cancelled_by_scope, cancelled_once):
        assert await run(seven()) == 7
        with pytest.raises(ValueError, match="broken"):
            await run(broken())


async def test_a_cancelled_scope_cancels_a_graph_once_and_waits_for_it() -> None:
    cancels = 0
    started = anyio.Event()

    async def graph() -> None:
        nonlocal cancels
        try:
            started.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancels += 1
            for _ in range(3):
                await checkpoint()  # a second cancel would come up here
            cancels += 10
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancelled_once, graph())
        await started.wait()
        tasks.cancel_scope.cancel()
    assert cancels == 11
