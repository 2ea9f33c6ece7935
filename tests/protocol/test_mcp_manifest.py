"""mcp_requirements.toml against the tests: what it names exists, and what names it is in it."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
MANIFEST = Path(__file__).parent / "mcp_requirements.toml"
EXPECTED_FAILURES = ROOT / "tests" / "conformance" / "expected_failures.toml"
REVISIONS = {"L": "2025-11-25", "M": "2026-07-28"}
LEVELS = {"MUST", "MUST NOT", "SHOULD", "SHOULD NOT", "MAY", "NOTE"}
KEYS = {"id", "revisions", "level", "source", "text", "tests", "scenarios", "gap", "absent"}


@cache
def requirements() -> dict[str, dict[str, Any]]:
    """Return the rows by id."""
    rows: list[dict[str, Any]] = tomllib.loads(MANIFEST.read_text(encoding="utf-8"))["requirement"]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def scenarios_of(revision: str) -> set[str]:
    """Return the suite's scenarios on which the rows of `revision` rest; some may be of the other revision only."""
    rows = [row for row in requirements().values() if revision in {REVISIONS[one] for one in row["revisions"]}]
    return {scenario for row in rows for scenario in row.get("scenarios", [])}


def _tests(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each test of a module with the requirements that it is marked with."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            marks = [one for one in node.decorator_list if isinstance(one, ast.Call)]
            marked = [mark for mark in marks if ast.unparse(mark.func) == "pytest.mark.requirement"]
            named = [argument for mark in marked for argument in mark.args]
            yield (
                f"{path.relative_to(ROOT).as_posix()}::{node.name}",
                [str(one.value) if isinstance(one, ast.Constant) else ast.unparse(one) for one in named],
            )


@cache
def all_tests() -> dict[str, list[str]]:
    """Return every test of the project with its marks."""
    return {name: marks for path in sorted((ROOT / "tests").glob("*/test_*.py")) for name, marks in _tests(path)}


def test_each_row_is_complete_and_is_proved_or_says_why_not() -> None:
    for name, row in requirements().items():
        assert set(row) <= KEYS, name
        assert row["text"].endswith("."), name
        assert row["source"], name
        assert row["level"] in LEVELS, name
        assert row["revisions"], name
        assert set(row["revisions"]) <= set(REVISIONS), name
        proofs = bool(row.get("tests")) or bool(row.get("scenarios"))
        assert [proofs, bool(row.get("gap")), bool(row.get("absent"))].count(True) == 1, name


def test_what_a_server_must_do_is_not_called_absent_without_a_word() -> None:
    for name, row in requirements().items():
        if "absent" in row and row["level"].startswith("MUST"):
            assert len(row["absent"]) > 20, name


def test_every_test_that_is_named_exists() -> None:
    named = {test for row in requirements().values() for test in row.get("tests", [])}
    assert named - set(all_tests()) == set()


def test_every_mark_names_a_row_that_names_the_test() -> None:
    for test, marks in all_tests().items():
        for mark in marks:
            assert mark in requirements(), test
            assert test in requirements()[mark].get("tests", []), test


def test_no_scenario_that_is_expected_to_fail_proves_anything() -> None:
    failures = tomllib.loads(EXPECTED_FAILURES.read_text(encoding="utf-8"))["failure"]
    failing = {(row["revision"], row["scenario"]) for row in failures}
    for name, row in requirements().items():
        for revision in row["revisions"]:
            assert not {(REVISIONS[revision], scenario) for scenario in row.get("scenarios", [])} & failing, name
