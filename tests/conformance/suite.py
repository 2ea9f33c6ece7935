"""Runs the official suite against one endpoint and reads what it found.

Above: `test_mcp_conformance`. Below: Node. The suite judges; its verdict (exit status) and its own records of each
check must agree with what is expected, and each scenario that the revision requires must have a record.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from tests.support.node import NODE_ROOT, Ended, run_node

__all__ = ["Report", "Scenario", "expected_failures", "known_scenarios", "run_suite"]

PACKAGE = NODE_ROOT / "node_modules" / "@modelcontextprotocol" / "conformance"
EXPECTED = Path(__file__).parent / "expected_failures.toml"
BOUND_S = 540.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One scenario's record."""

    name: str
    unscored: str | None
    """Why it does not count; None: it is required."""
    passed: int
    failures: tuple[str, ...]
    """What each failed check says."""
    warnings: tuple[str, ...]
    """What the suite says about a SHOULD, or about what it could not look at."""

    @property
    def failed(self) -> bool:
        """Whether any of its checks failed."""
        return bool(self.failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run."""

    revision: str
    required: frozenset[str]
    scenarios: tuple[Scenario, ...]
    ended: Ended

    @property
    def scored(self) -> list[Scenario]:
        """The scenarios that count."""
        return [one for one in self.scenarios if one.unscored is None]

    def table(self, expected: Mapping[str, str]) -> str:
        """Return the run as text, a line for each scenario."""
        good = sum(not one.failed for one in self.scored)
        lines = [f"MCP {self.revision}: {good}/{len(self.required)} required scenarios pass"]
        for one in self.scenarios:
            verdict = "FAIL" if one.failed else "pass"
            if one.failed and one.name in expected:
                verdict = "expected"
            kind = f"not scored: {one.unscored}" if one.unscored else ""
            lines.append(f"  {verdict:8} {one.passed:3} checks  {one.name:48} {kind}".rstrip())
            if one.failed:
                lines.append(f"           {expected.get(one.name) or one.failures[0][:160]}")
            lines += [f"           warning: {said[:160]}" for said in one.warnings]
        return "\n".join(lines)


def expected_failures(revision: str) -> dict[str, str]:
    """Return the scenarios that must fail in `revision`, with the reason of each."""
    return {row["scenario"]: row["reason"] for row in _rows("failure", revision)}


def known_scenarios(revision: str) -> set[str]:
    """Return the scenarios that are run for `revision`, whether they count or not."""
    required, unscored = _requirements(revision)
    return {*required, *unscored}


def _requirements(revision: str) -> tuple[list[str], dict[str, str]]:
    """Return what the suite demands of a server, and what else it runs, with the reason why that does not count."""
    listed: dict[str, Any] = yaml.safe_load((PACKAGE / "requirements" / f"{revision}.yaml").read_text())
    unscored = {row["scenario"]: row["reason"] for row in listed["not_scored"] if row["leg"] == "server"}
    return listed["server"], unscored


def _rows(kind: str, revision: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = tomllib.loads(EXPECTED.read_text(encoding="utf-8"))[kind]
    return [row for row in rows if row["revision"] == revision]


async def run_suite(url: str, token: str, revision: str, folder: Path) -> Report:
    """Run everything that `revision` requires of a server."""
    required, unscored = _requirements(revision)
    out = folder / "out"
    baseline = folder / "baseline.yml"
    warned = [f"{row['scenario']}:{row['check']}" for row in _rows("warning", revision)]
    baseline.write_text(yaml.safe_dump({"server": [*expected_failures(revision), *warned]}))
    ended = await run_node(
        "--import",
        "./bearer.mjs",
        PACKAGE / "dist" / "index.js",
        *("server", "--url", url, "--requirements", revision, "--expected-failures", baseline, "-o", out),
        home=folder,
        bound_s=BOUND_S,
        BULKHEAD_URL=url,
        BULKHEAD_TOKEN=token,
    )
    scenarios = [_read(name, unscored.get(name), out) for name in [*required, *sorted(unscored)]]
    return Report(
        revision=revision,
        required=frozenset(required),
        scenarios=tuple(one for one in scenarios if one is not None),
        ended=ended,
    )


def _read(name: str, unscored: str | None, out: Path) -> Scenario | None:
    # a folder is named server-NAME-TIME; the time begins with the year
    records = sorted(out.glob(f"server-{name}-2[0-9][0-9][0-9]-*/checks.json"))
    if not records:
        return None
    checks: list[dict[str, Any]] = orjson.loads(records[-1].read_bytes())

    def said(status: str) -> tuple[str, ...]:
        return tuple(f"{one['id']}: {one.get('errorMessage', '')}" for one in checks if one["status"] == status)

    return Scenario(
        name=name,
        unscored=unscored,
        passed=len(said("SUCCESS")),
        failures=said("FAILURE"),
        warnings=said("WARNING"),
    )
