"""Counting a prompt at the server's own tokenizer, and what is said where that cannot be asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import anyio
import pytest

from rag.llm.counting import KEPT_S, PAUSE_S, TokenCounter, upper_bound
from tests.support.faulty_proxy import Disturbance, event_stream
from tests.support.models import KEY, PROMPT, offer
from tests.support.openai_server import Fault
from tests.support.wire_scene import BOUND_S, Scene, Stage, scene_on, stage

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[Stage]:
    async with stage() as shared:
        yield shared


@pytest.fixture
async def scene(running: Stage) -> AsyncIterator[Scene]:
    async with scene_on(running) as own:
        yield own


@dataclass(slots=True)
class Hands:
    """A clock that the test turns."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_vllm_is_asked_with_the_messages_so_that_its_template_counts(scene: Scene) -> None:
    scene.server.prompt_tokens = 41
    assert await TokenCounter(scene.client).prompt_tokens(offer(scene.proxy.base_url, kind="vllm"), PROMPT) == 41
    assert scene.server.tokenized == [
        {"model": "served-small", "messages": PROMPT.messages(), "add_generation_prompt": True}
    ]


@pytest.mark.parametrize("kind", ["openai", "ollama"])
async def test_others_are_not_asked_and_the_bytes_are_the_bound(scene: Scene, kind: str) -> None:
    counter = TokenCounter(scene.client)
    assert await counter.prompt_tokens(offer(scene.proxy.base_url, kind=kind), PROMPT) == upper_bound(PROMPT)
    assert scene.proxy.requests == 0


async def test_a_prompt_is_counted_once_and_for_each_tenant_apart(scene: Scene) -> None:
    counter, vllm = TokenCounter(scene.client), offer(scene.proxy.base_url, kind="vllm")
    shifted = replace(PROMPT, system=PROMPT.system + PROMPT.user[0], user=PROMPT.user[1:])
    for prompt, salt in ((PROMPT, "one"), (PROMPT, "one"), (PROMPT, "two"), (PROMPT, "two"), (shifted, "two")):
        await counter.prompt_tokens(vllm, prompt, cache_salt=salt)
    assert len(scene.server.tokenized) == 3


async def test_a_count_is_forgotten_after_a_while(scene: Scene) -> None:
    clock = Hands()
    counter, vllm = TokenCounter(scene.client, clock=clock), offer(scene.proxy.base_url, kind="vllm")
    for prompt_tokens, later in ((10, 0.0), (20, KEPT_S - 1), (20, 2.0)):
        scene.server.prompt_tokens = prompt_tokens
        clock.now += later
        counted = await counter.prompt_tokens(vllm, PROMPT)
    assert (counted, len(scene.server.tokenized)) == (20, 2)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Disturbance(answer=b"", then="hang"), id="hung"),
        pytest.param(Disturbance(answer=b"", then="reset"), id="reset"),
        pytest.param(Disturbance(answer=b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"), id="500"),
        pytest.param(Disturbance(answer=b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n"), id="404"),
        pytest.param(Disturbance(answer=event_stream(b"{}")), id="no count"),
        pytest.param(Disturbance(answer=event_stream(b'{"count": -4}')), id="below zero"),
        pytest.param(Disturbance(answer=event_stream(b'{"count": true}')), id="a truth"),
        pytest.param(Disturbance(answer=event_stream(b"[[[")), id="garbage"),
        pytest.param(Disturbance(answer=event_stream(b" " * (1 << 20) + b'{"count": 41}')), id="too long"),
    ],
)
async def test_a_vllm_that_does_not_count_costs_one_short_wait_and_is_left_alone(
    scene: Scene, fault: Disturbance
) -> None:
    clock = Hands()
    counter = TokenCounter(scene.client, timeout_s=1.0, clock=clock)
    vllm = offer(scene.proxy.base_url, kind="vllm")
    scene.proxy.always = fault
    with anyio.fail_after(BOUND_S):
        for _ in range(5):
            assert await counter.prompt_tokens(vllm, PROMPT) == upper_bound(PROMPT)
    assert scene.proxy.requests == 1
    scene.proxy.always = None
    scene.server.prompt_tokens = 41
    clock.now += PAUSE_S + 1
    assert await counter.prompt_tokens(vllm, PROMPT) == 41


async def test_a_prompt_that_the_server_refuses_to_count_takes_nothing_from_the_next(scene: Scene) -> None:
    counter, vllm = TokenCounter(scene.client), offer(scene.proxy.base_url, kind="vllm")
    scene.server.prompt_tokens = 41
    scene.server.tokenize_faults.append(Fault(status=400))
    assert await counter.prompt_tokens(vllm, PROMPT) == upper_bound(PROMPT)
    assert await counter.prompt_tokens(vllm, replace(PROMPT, user="another")) == 41


async def test_the_servers_count_stands_where_its_template_writes_more_than_we_would_allow_for(scene: Scene) -> None:
    scene.server.prompt_tokens = upper_bound(PROMPT) + 1000
    counted = await TokenCounter(scene.client).prompt_tokens(offer(scene.proxy.base_url, kind="vllm"), PROMPT)
    assert counted == upper_bound(PROMPT) + 1000


async def test_a_prompt_that_is_no_text_has_a_bound_and_takes_nothing_from_the_next(scene: Scene) -> None:
    counter, vllm = TokenCounter(scene.client), offer(scene.proxy.base_url, kind="vllm")
    scene.server.prompt_tokens = 41
    broken = replace(PROMPT, user="\ud83d")
    assert await counter.prompt_tokens(vllm, broken) == upper_bound(broken)
    assert await counter.prompt_tokens(vllm, PROMPT) == 41


async def test_the_key_goes_along(scene: Scene) -> None:
    scene.server.api_key = KEY
    scene.server.prompt_tokens = 41
    assert await TokenCounter(scene.client).prompt_tokens(offer(scene.proxy.base_url, kind="vllm"), PROMPT) == 41
    assert json.dumps(scene.server.tokenized).count(KEY) == 0
