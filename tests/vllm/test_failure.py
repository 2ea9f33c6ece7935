"""A real vLLM that freezes, is killed and comes back, as `rag.llm.wire` sees it."""

from __future__ import annotations

import dataclasses
import signal

import anyio
import httpx
import pytest

from rag.llm.counting import TokenCounter, upper_bound
from rag.llm.request import ChatRequest, Limits
from rag.llm.wire import MaybeBilled, NotBilled, stream
from tests.vllm.server import READY_BOUND_S, Server

pytestmark = [pytest.mark.anyio, pytest.mark.vllm]

BOUND_S = 120.0
LIMITS = Limits(connect_s=20.0, first_token_s=60.0, between_tokens_s=60.0, total_s=BOUND_S)
SHORT = ChatRequest(system="Answer.", user="What is a swap?", max_tokens=8)
ENDLESS = dataclasses.replace(SHORT, max_tokens=30_000)


async def _ignored(_: str) -> None:
    """Take a piece of text."""


async def test_a_frozen_server_is_left_within_its_bounds_and_used_again(vllm: Server, http: httpx.AsyncClient) -> None:
    patient = vllm.place.offer()
    impatient = dataclasses.replace(LIMITS, between_tokens_s=2.0)
    hasty = dataclasses.replace(LIMITS, connect_s=1.0, first_token_s=2.0)

    async def freeze(_: str) -> None:
        vllm.signal(signal.SIGSTOP)

    with anyio.fail_after(BOUND_S):
        try:
            with pytest.raises(MaybeBilled) as silent:
                await stream(http, patient, ENDLESS, freeze, cache_salt=None, limits=impatient)
            assert silent.value.emitted
            with pytest.raises((MaybeBilled, NotBilled)) as unanswered:
                await stream(http, patient, SHORT, _ignored, cache_salt=None, limits=hasty)
            assert not getattr(unanswered.value, "emitted", False)
            counter = TokenCounter(http, timeout_s=1.0)
            assert await counter.prompt_tokens(patient, SHORT) == upper_bound(SHORT)
        finally:
            vllm.signal(signal.SIGCONT)
        reply = await stream(http, patient, SHORT, _ignored, cache_salt=None, limits=LIMITS)
        await vllm.until_idle()
    assert reply.usage is not None
    assert reply.usage.completion == 8


async def test_a_killed_server_breaks_the_call_refuses_the_next_and_serves_after_its_return(
    vllm: Server, http: httpx.AsyncClient
) -> None:
    offer = vllm.place.offer()
    begun = anyio.Event()

    async def emit(_: str) -> None:
        begun.set()

    async def broken() -> None:
        with pytest.raises(MaybeBilled) as failure:
            await stream(http, offer, ENDLESS, emit, cache_salt=None, limits=LIMITS)
        assert failure.value.emitted

    with anyio.fail_after(BOUND_S + READY_BOUND_S):
        before = await stream(http, offer, SHORT, _ignored, cache_salt=None, limits=LIMITS)
        try:
            async with anyio.create_task_group() as calls:
                calls.start_soon(broken)
                await begun.wait()
                await vllm.kill()
            with pytest.raises(NotBilled) as refusal:
                await stream(http, offer, SHORT, _ignored, cache_salt=None, limits=LIMITS)
            assert refusal.value.retryable
        finally:
            await vllm.start()
        after = await stream(http, offer, SHORT, _ignored, cache_salt=None, limits=LIMITS)
    assert before.usage is not None
    assert after.usage is not None
    assert after.usage.prompt == before.usage.prompt
    assert after.usage.cached == 0
