"""What the benchmarks share: their options as values, their PostgreSQL, the text of the law."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from tests.bench.corpora import Section, read_uscode
from tests.bench.place import Place, bench_place


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    uscode: Path | None
    results: Path | None
    sizes: tuple[int, ...]
    seconds: float
    rounds: int
    chunks: int


@pytest.fixture(scope="session", name="plan")
def plan_fixture(pytestconfig: pytest.Config) -> Plan:
    """The options of tests/conftest.py."""
    told = cast("Mapping[str, Any]", vars(pytestconfig.option))
    return Plan(
        uscode=told["uscode"],
        results=told["bench_results"],
        sizes=tuple(int(size) for size in told["bench_sizes"].split(",")),
        seconds=told["bench_seconds"],
        rounds=told["bench_rounds"],
        chunks=told["chunks"],
    )


@pytest.fixture(scope="session", name="place")
def place_fixture(pytestconfig: pytest.Config) -> Iterator[Place]:
    """The benchmarks' own PostgreSQL; what was loaded stays there for the next run."""
    with bench_place(cast("Path", pytestconfig.option.bench_dir).resolve()) as place:
        yield place


@pytest.fixture(scope="session", name="sections")
def sections_fixture(plan: Plan) -> list[Section]:
    """The United States Code, or a skip that says how to name it."""
    if plan.uscode is None:
        pytest.skip("needs --uscode PATH: the United States Code as gzipped JSON lines (docs/benchmarks.md)")
    return read_uscode(plan.uscode)
