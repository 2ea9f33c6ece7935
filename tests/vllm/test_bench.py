"""What `bulkhead bench llm` reads from a real vLLM. No figure of time is asserted: on this CPU they mean nothing."""

from __future__ import annotations

from dataclasses import replace

import anyio
import httpx
import pytest

from rag.llm.bench.figures import LevelRecord, figures
from rag.llm.bench.measure import Plan, measure, warm_up
from rag.llm.bench.prompts import PromptShape
from rag.llm.bench.server import server_facts
from rag.llm.request import Limits
from tests.vllm.model import CONTEXT_TOKENS
from tests.vllm.server import BLOCK_TOKENS, Server

pytestmark = [pytest.mark.anyio, pytest.mark.vllm]

BOUND_S = 120.0
LIMITS = Limits(connect_s=20.0, first_token_s=60.0, between_tokens_s=60.0, total_s=BOUND_S)


async def test_the_counters_of_a_level_are_those_of_its_calls(vllm: Server, http: httpx.AsyncClient) -> None:
    """Two ways to the prefix cache's share, the calls' usage and the server's own counters, lead to the same number."""
    offer = vllm.place.offer()
    plan = Plan(
        run="r1",
        shape=PromptShape(shared_words=60, own_words=20, tenants=2),
        max_tokens=6,
        warm_up=1,
        requests=8,
        limits=LIMITS,
    )
    records: list[LevelRecord] = []
    with anyio.fail_after(BOUND_S):
        await vllm.until_idle()
        facts = await server_facts(http, offer.endpoint)
        await warm_up(http, offer, plan)
        await vllm.until_idle()
        for again in (plan, replace(plan, run="r2")):
            await measure(http, offer, again, concurrencies=(2,), records=records, report=lambda _: None)
    assert facts.version is not None
    assert facts.models is not None
    assert [(model.id, model.max_model_len) for model in facts.models] == [("tiny", CONTEXT_TOKENS)]
    assert facts.cache_config["block_size"] == str(BLOCK_TOKENS)
    first, second = (figures(record, price=offer.price, machine_hour=None) for record in records)
    for level in (first, second):
        assert (level.finished, level.failed, level.requests_of_others, level.preemptions) == (8, 0, 0, 0)
        assert level.tokens.completion == 48
        assert level.tokens.cached > 0
        assert level.prefix_cache.by_usage == level.prefix_cache.by_server
        assert level.output_tokens_per_s
        assert level.costs is not None
    # the second run's prompts are the first's but for their names, and find the cache as cold
    assert second.tokens.cached <= first.tokens.cached + BLOCK_TOKENS
