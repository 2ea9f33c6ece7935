"""What a benchmark's reader is told before the figures: all that spoils them, and nothing where nothing does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from rag.catalogue.configured import of_settings
from rag.cli.bench_report import Measurement, is_here, notes
from rag.llm.bench.figures import Call, LevelRecord, figures
from rag.llm.bench.measure import Plan
from rag.llm.bench.server import Counters, ServerFacts
from rag.llm.request import Reply, TokenUsage

USAGE = TokenUsage(prompt=100, completion=3)
CALL = Call(
    reply=Reply(text="…", finish="stop", usage=USAGE, first_token_s=0.1, total_s=0.3),
    gaps_s=(0.1, 0.1),
)
NOW = datetime(2026, 11, 21, tzinfo=UTC)


def measured(**changed: Any) -> Measurement:
    """Return a faultless level of one call, but for what is changed of its record."""
    record = LevelRecord(concurrency=2, calls=[CALL], started=1, duration_s=10.0, complete=True, lags_s=[0.001] * 50)
    for name, value in changed.items():
        setattr(record, name, value)
    return Measurement(
        offer=of_settings("http://127.0.0.1:1/v1", "tiny", None).offers[0],
        facts=ServerFacts(version=None, models=None, counters=False, cache_config={}),
        plan=Plan(run="r1"),
        concurrencies=(2,),
        machine_hour=None,
        remarks=(),
        began=NOW,
        ended=NOW,
        levels=(figures(record, price=None, machine_hour=None),),
    )


def test_of_a_faultless_run_nothing_is_noted() -> None:
    assert list(notes(measured())) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"complete": False}, "broken off"),
        ({"failures": Counter({"silence": 2})}, "2 x silence"),
        ({"calls": [replace(CALL, reply=replace(CALL.reply, usage=None))]}, "calls without usage: 1"),
        ({"client_cpu_s": 9.5}, "used 95% of its core"),
        ({"lags_s": [0.001] * 40 + [0.2] * 10}, "up to 200 ms late"),
        ({"lags_s": [0.001, 0.3]}, "up to 300 ms late"),
        ({"calls": [replace(CALL, gaps_s=())]}, "a piece holds 3 tokens"),
        ({"counters": (Counters(requests=1), Counters(requests=5))}, "requests of others that the server answered"),
        ({"counters": (Counters(preemptions=0), Counters(preemptions=4))}, "for want of cache: 4"),
    ],
)
def test_what_spoils_the_figures_is_noted(changed: dict[str, Any], said: str) -> None:
    (note,) = notes(measured(**changed))
    assert said in note


def test_levels_that_were_never_begun_are_missed() -> None:
    (note,) = notes(replace(measured(), concurrencies=(2, 4)))
    assert "broken off" in note


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://localhost/v1", True),
        ("http://localhost.example.com/v1", False),
        ("https://10.0.0.5/v1", False),
    ],
)
def test_only_a_url_of_this_machine_makes_its_hardware_the_servers(url: str, *, here: bool) -> None:
    assert is_here(url) is here
