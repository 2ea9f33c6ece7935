"""What a benchmark makes of its calls: figures that the measurements carry, and none that they do not."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.llm.bench.figures import Call, LevelRecord, Spread, figures, spread
from rag.llm.bench.server import Counters, parse_counters
from rag.llm.catalogue import Price
from rag.llm.request import Reply, TokenUsage

PRICE = Price(
    price_id=uuid4(),
    input=Decimal("0.15"),
    cached_input=Decimal("0.075"),
    output=Decimal("0.6"),
    second=Decimal("0.001"),
)
METRICS = """\
# HELP vllm:prefix_cache_queries_total Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="a, \\"b\\" {c}"} 1000.0
vllm:prefix_cache_queries_total{engine="1",model_name="tiny"} 24.0
vllm:prefix_cache_queries_created{engine="0",model_name="tiny"} 1.7e+09
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 512.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 3.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="tiny"} 4.0
vllm:num_preemptions_total{engine="0",model_name="tiny"} NaN
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="None",user="x"} 1.0
"""


def call(
    *, prompt: int = 1000, cached: int = 0, completion: int = 5, first_s: float = 0.1, gaps: tuple[float, ...] = ()
) -> Call:
    usage = TokenUsage(prompt=prompt, cached=cached, completion=completion)
    total_s = first_s + sum(gaps)
    return Call(
        reply=Reply(text="…", finish="length", usage=usage, first_token_s=first_s, total_s=total_s), gaps_s=gaps
    )


def record(*calls: Call, failures: dict[str, int] | None = None, duration_s: float = 2.0) -> LevelRecord:
    counted = Counter(failures or {})
    return LevelRecord(
        concurrency=4,
        calls=list(calls),
        failures=counted,
        started=len(calls) + counted.total(),
        duration_s=duration_s,
        complete=True,
    )


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=300))
def test_a_percentile_is_one_of_the_values_and_has_as_many_below_it_as_its_name_says(seconds: list[float]) -> None:
    values = sorted(round(value * 1000, 3) for value in seconds)
    found = spread(seconds)
    assert (found.count, found.max) == (len(values), values[-1])
    for percent, value in ((50, found.p50), (95, found.p95), (99, found.p99)):
        if value is None:
            continue
        assert value in values
        assert sum(other <= value for other in values) * 100 >= len(values) * percent
        assert sum(other < value for other in values) * 100 < len(values) * percent


@pytest.mark.parametrize(
    ("count", "p95", "p99"),
    [(1, False, False), (19, False, False), (20, True, False), (99, True, False), (100, True, True)],
)
def test_a_percentile_that_too_few_values_carry_is_not_given(count: int, *, p95: bool, p99: bool) -> None:
    found = spread([0.1] * count)
    assert found.p50 == 100.0
    assert (found.p95 is not None, found.p99 is not None) == (p95, p99)


def test_of_no_values_nothing_is_said() -> None:
    assert spread([]) == Spread(count=0)


def test_tokens_a_second_are_those_of_all_calls_over_the_whole_level() -> None:
    found = figures(record(call(completion=5), call(completion=7), duration_s=2.0), price=None, machine_hour=None)
    assert (found.output_tokens_per_s, found.requests_per_s) == (6.0, 1.0)


def test_tokens_a_second_are_not_known_where_one_call_came_without_usage() -> None:
    silent = Call(reply=Reply(text="…", finish="stop", usage=None, first_token_s=0.1, total_s=0.2), gaps_s=(0.1,))
    found = figures(record(call(), silent), price=PRICE, machine_hour=None)
    assert found.output_tokens_per_s is None
    assert (found.tokens.calls_without_usage, found.tokens.completion) == (1, 5)
    assert found.requests_per_s == 1.0


def test_a_call_without_usage_is_in_no_mean_cost() -> None:
    silent = Call(reply=Reply(text="…", finish="stop", usage=None, first_token_s=0.1, total_s=0.2), gaps_s=())
    one, with_silent = (
        figures(record(*calls), price=PRICE, machine_hour=None) for calls in ([call()], [call(), silent])
    )
    assert one.costs is not None
    assert with_silent.costs is not None
    assert one.costs.tokens_per_1000_requests == with_silent.costs.tokens_per_1000_requests


def test_the_time_of_a_token_is_not_the_time_between_pieces_that_hold_several() -> None:
    found = figures(record(call(completion=9, gaps=(0.4, 0.4))), price=None, machine_hour=None)
    assert found.between_pieces_ms.p50 == 400.0
    assert found.per_output_token_ms.p50 == 100.0
    assert found.tokens_per_piece == 3.0


def test_an_answer_in_one_piece_has_no_time_per_token() -> None:
    found = figures(record(call(completion=9)), price=None, machine_hour=None)
    assert (found.per_output_token_ms.count, found.between_pieces_ms.count) == (0, 0)


def test_costs_are_the_ledgers_to_the_sixth_place() -> None:
    calls = [call(prompt=1000, cached=600, completion=100, first_s=0.5), call(prompt=1000, completion=50, first_s=0.25)]
    found = figures(record(*calls, duration_s=3.0), price=PRICE, machine_hour=Decimal("3.60"))
    assert found.costs is not None
    charged = sum(
        PRICE.cost(prompt=1000, cached=cached, completion=completion, milliseconds=milliseconds)
        for cached, completion, milliseconds in ((600, 100, 500), (0, 50, 250))
    )
    assert found.costs.tokens_per_1000_requests == charged * 500
    assert found.costs.machine_per_1000_requests == Decimal("1.5")  # 0.001 a second, 3 s, for 2 calls
    assert found.costs.second_that_covers_machine == Decimal("0.004")  # 0.003 over 0.75 s of calls


def test_no_cost_is_told_where_no_price_was() -> None:
    assert figures(record(call()), price=None, machine_hour=None).costs is None


def test_what_failed_is_counted_and_in_no_figure() -> None:
    found = figures(record(call(), failures={"HTTP 500": 2, "silence": 1}), price=None, machine_hour=None)
    assert (found.finished, found.failed, found.cut_off) == (1, 3, 0)
    assert found.failures == {"HTTP 500": 2, "silence": 1}
    assert found.first_token_ms.count == 1


def test_a_level_without_an_answer_has_figures_all_the_same() -> None:
    found = figures(record(failures={"HTTP 500": 2}), price=PRICE, machine_hour=Decimal(1))
    assert (found.finished, found.requests_per_s, found.first_token_ms.p50) == (0, None, None)
    assert found.costs is not None
    assert found.costs.machine_per_1000_requests is None


def test_the_prefix_caches_share_is_told_by_usage_and_by_the_servers_counters() -> None:
    level = record(call(cached=750), call(cached=250))
    level.counters = (
        Counters(prefix_queries=100, prefix_hits=50, requests=7, preemptions=1),
        Counters(prefix_queries=300, prefix_hits=200, requests=12, preemptions=1),
    )
    found = figures(level, price=None, machine_hour=None)
    assert (found.prefix_cache.by_usage, found.prefix_cache.by_server) == (0.5, 0.75)
    assert (found.requests_of_others, found.preemptions) == (3, 0)


def test_no_cached_token_is_not_taken_for_a_cache_that_never_hit() -> None:
    assert figures(record(call()), price=None, machine_hour=None).prefix_cache.by_usage is None


def test_counters_of_a_server_that_was_started_anew_in_between_say_nothing() -> None:
    level = record(call())
    level.counters = (
        Counters(prefix_queries=300, prefix_hits=9, requests=7),
        Counters(prefix_queries=10, prefix_hits=9),
    )
    found = figures(level, price=None, machine_hour=None)
    assert (found.prefix_cache.by_server, found.requests_of_others) == (None, None)


def test_counters_are_added_up_over_engines_and_other_metrics_are_not_taken_for_them() -> None:
    found = parse_counters(METRICS)
    assert found is not None
    assert (found.prefix_queries, found.prefix_hits, found.requests) == (1024.0, 512.0, 7.0)
    assert found.cache_config == {"block_size": "16", "cache_dtype": "auto", "num_gpu_blocks": "None"}


@pytest.mark.parametrize("text", ["", "go_goroutines 12\n", "<html>not metrics</html>", "vllm:prefix_cache_hits_total"])
def test_a_page_without_vllms_counters_has_none(text: str) -> None:
    assert parse_counters(text) is None


@given(st.text(max_size=200))
def test_no_page_of_a_stranger_breaks_the_reading(text: str) -> None:
    parse_counters(f"vllm:prefix_cache_hits_total{text}\nvllm:cache_config_info{{{text}}} 1\n{text}")
