"""The official MCP conformance suite, both revisions, against the authenticated product (`make conformance-mcp`)."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest

from mcp_server.app import create_app
from mcp_server.calls import build_server
from rag.identity.scopes import Audience
from rag.runtime import open_runtime
from tests.conformance.fixtures import with_fixtures
from tests.conformance.suite import expected_failures, known_scenarios, run_suite
from tests.protocol.test_mcp_manifest import REVISIONS, requirements, scenarios_of
from tests.support.node import node
from tests.support.servers import serving
from tests.support.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.node, pytest.mark.timeout(600)]


@pytest.mark.parametrize(("revision", "required"), [("2025-11-25", 30), ("2026-07-28", 37)])
async def test_the_server_passes_what_the_revision_requires_but_for_the_failures_that_are_expected(
    world: World, tmp_path: Path, revision: str, required: int
) -> None:
    """One token of one tenant; limits, row-level security and the lane are those of a deployment."""
    token = world.token(await world.tenant("acme"), audience=Audience.MCP)
    expected = expected_failures(revision)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = int(listening.getsockname()[1])
        settings = dataclasses.replace(world.settings, mcp_port=port, mcp_public_url=f"http://127.0.0.1:{port}/mcp")
        async with (
            open_runtime(settings, audience=Audience.MCP, application="test-conformance") as runtime,
            serving(create_app(runtime, server=with_fixtures(build_server(runtime))), listening),
        ):
            report = await run_suite(settings.mcp_url, token, revision, tmp_path)
    print("\n" + report.table(expected))
    assert len(report.required) == required, "another version of the suite"
    assert {one.name for one in report.scored} == report.required, report.ended.stdout[-4000:]
    assert {one.name for one in report.scored if one.failed} == set(expected), report.ended.stdout[-4000:]
    assert all(one.passed or one.failed or one.warnings for one in report.scored)
    passing = {one.name for one in report.scenarios if one.passed and not one.failed}
    assert scenarios_of(revision) & known_scenarios(revision) <= passing
    # the suite's own verdict, which looks at each warning too
    assert report.ended.status == 0, report.ended.stdout[-4000:]


def test_every_scenario_that_the_manifest_names_is_one_of_its_revisions() -> None:
    node()
    for name, row in requirements().items():
        known = set[str]().union(*(known_scenarios(REVISIONS[revision]) for revision in row["revisions"]))
        assert set(row.get("scenarios", [])) <= known, name
