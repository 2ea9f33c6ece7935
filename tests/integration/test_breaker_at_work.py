"""Circuit breakers before a server that fails and recovers, over real HTTP and a proxy that disturbs it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import anyio
import pytest

from rag.llm.breaker import BreakerOpen, BreakerRules, Breakers
from rag.llm.failures import MaybeBilled, NotBilled
from rag.llm.request import Limits, Reply
from tests.support.faulty_proxy import Disturbance
from tests.support.models import QUICK, Reader
from tests.support.wire_scene import BOUND_S, Scene, Stage, answers, piece, scene_on, stage

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[Stage]:
    async with stage() as shared:
        yield shared


@pytest.fixture
async def scene(running: Stage) -> AsyncIterator[Scene]:
    async with scene_on(running) as own:
        yield own


RULES = BreakerRules(in_a_row=5, pause_s=10, jitter=0.5)
FAILING = [
    pytest.param(Disturbance(answer=b"", then="hang"), id="hung"),
    pytest.param(answers(piece("One"), then="trickle"), id="slow"),
    pytest.param(
        Disturbance(answer=b"HTTP/1.1 500 Internal\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"), id="500"
    ),
    pytest.param(answers(b"data: \x00\x01\n\n"), id="garbage"),
    pytest.param(Disturbance(answer=b"", then="reset"), id="reset"),
]


@dataclass(slots=True)
class Hands:
    """A clock that the test turns."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


async def call(scene: Scene, breakers: Breakers, limits: Limits) -> Reply:
    """Call as the gateway does."""
    with breakers.trial("here", "small") as trial:
        try:
            reply = await scene.ask(Reader(), limits=limits)
        except (NotBilled, MaybeBilled) as failure:
            if failure.at_fault:
                trial.failed()
            raise
        trial.succeeded()
        return reply


@pytest.mark.parametrize("failing", FAILING)
async def test_a_failing_server_is_left_alone_after_five_calls_and_used_again_when_it_has_recovered(
    scene: Scene, failing: Disturbance
) -> None:
    clock = Hands()
    breakers = Breakers(rules=RULES, clock=clock, chance=lambda: 1.0)
    brief = replace(QUICK, first_token_s=0.1, between_tokens_s=0.1)
    scene.proxy.always = failing
    with anyio.fail_after(BOUND_S):
        for _ in range(5):
            with pytest.raises((NotBilled, MaybeBilled)):
                await call(scene, breakers, brief)
    assert scene.proxy.requests == 5
    for _ in range(20):
        with pytest.raises(BreakerOpen):
            await call(scene, breakers, brief)
    assert scene.proxy.requests == 5, "nothing reaches a server that is left alone"
    clock.now += 15
    with pytest.raises((NotBilled, MaybeBilled)):
        await call(scene, breakers, brief)
    with pytest.raises(BreakerOpen):
        await call(scene, breakers, brief)
    scene.proxy.always = None
    clock.now += 30
    for _ in range(3):
        assert (await call(scene, breakers, QUICK)).text == "Hello world."
    assert [state.state for state in breakers.state()] == ["closed"]


async def test_of_many_who_wait_for_a_recovering_server_one_gets_through(scene: Scene) -> None:
    clock = Hands()
    breakers = Breakers(rules=RULES, clock=clock, chance=lambda: 0.0)
    for _ in range(5):
        with breakers.trial("here", "small") as trial:
            trial.failed()
    clock.now += 10
    scene.proxy.always = Disturbance(answer=b"", then="hang")
    turned_away = 0

    async def one() -> None:
        nonlocal turned_away
        try:
            await call(scene, breakers, QUICK)
        except BreakerOpen:
            turned_away += 1

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(one)
        with anyio.fail_after(BOUND_S):
            await scene.proxy.until(requests=1)
        assert (scene.proxy.requests, turned_away) == (1, 49)
        group.cancel_scope.cancel()
    scene.proxy.always = None
    assert (await call(scene, breakers, QUICK)).text == "Hello world.", "a cancelled call gives its place back"
