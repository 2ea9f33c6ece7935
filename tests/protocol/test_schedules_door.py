"""The door for recurring tasks over real HTTP, `bulkhead schedule` through it, and a worker that starts what is due."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import httpx
import pytest

from rag.identity.scopes import Audience, Scope
from rag.tenants.operator import Tenant
from tests.support.agents import a2a_server, worker
from tests.support.schedules import make_due, started_for
from tests.support.world import Cluster, World, world

pytestmark = pytest.mark.anyio
BOUND_S = 30.0
HOURLY = {"request": "why?", "every_s": 3600}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A server and two tenants."""

    world: World
    base: str
    acme: Tenant
    rival: Tenant
    http: httpx.AsyncClient

    async def send(
        self, verb: str, path: str = "", *, tenant: Tenant | None = None, body: Any = None, key: str = "", **token: Any
    ) -> httpx.Response:
        """Send one request below /schedules as a user of `tenant` (acme)."""
        bearer = self.world.token(tenant or self.acme, audience=Audience.A2A, **token)
        headers = {"authorization": f"Bearer {bearer}", **({"idempotency-key": key} if key else {})}
        return await self.http.request(verb, f"{self.base}/schedules{path}", json=body, headers=headers)

    async def command(self, *arguments: str, **token: Any) -> tuple[int, str, str]:
        """Run `bulkhead schedule` as a user with a token and nothing else."""
        env = {
            "PATH": os.defpath,
            "HOME": str(Path.home()),
            "BULKHEAD_A2A_URL": self.base,
            "BULKHEAD_TOKEN": self.world.token(self.acme, audience=Audience.A2A, **token),
        }
        command = [sys.executable, "-m", "rag.cli", "schedule", *arguments]
        with anyio.fail_after(BOUND_S):
            done = await anyio.run_process(command, check=False, env=env)
        return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture(scope="module", name="stage")
async def stage_fixture(cluster: Cluster) -> AsyncGenerator[Scene]:
    """The server for all tests of the file without a worker, which starts whatever is due."""
    async with world(cluster) as own, _scene(own) as stage:
        yield stage


@pytest.fixture(name="scene")
async def scene_fixture(stage: Scene) -> Scene:
    """Two tenants of the test's own."""
    acme, rival = [await stage.world.tenant(f"{name}-{uuid4()}") for name in ("acme", "rival")]
    return replace(stage, acme=acme, rival=rival)


@asynccontextmanager
async def _scene(world: World) -> AsyncGenerator[Scene]:
    acme, rival = await world.tenant("acme"), await world.tenant("rival")
    async with a2a_server(world) as base, httpx.AsyncClient(timeout=BOUND_S) as http:
        yield Scene(world=world, base=base, acme=acme, rival=rival, http=http)


async def test_a_schedule_is_made_shown_paused_resumed_run_and_removed(scene: Scene) -> None:
    made = await scene.send("PUT", "/digest", body=HOURLY)
    assert made.status_code == 201
    assert made.json().items() >= {"name": "digest", "workflow": "rag", "state": "active", "every_s": 3600.0}.items()
    assert (await scene.send("PUT", "/digest", body=HOURLY)).status_code == 200, "the same is the same"
    assert (await scene.send("PUT", "/digest", body={**HOURLY, "every_s": 7200})).status_code == 409
    assert [one["name"] for one in (await scene.send("GET")).json()["schedules"]] == ["digest"]
    assert (await scene.send("POST", "/digest/pause")).json()["state"] == "paused"
    started = {(await scene.send("POST", "/digest/run", key="now")).json()["task_id"] for _ in range(2)}
    assert len(started) == 1
    resumed = (await scene.send("POST", "/digest/resume")).json()
    assert (resumed["state"], resumed["created_at"]) == ("active", made.json()["created_at"])
    assert (await scene.send("DELETE", "/digest")).status_code == 200
    assert (await scene.send("GET", "/digest")).status_code == 404


async def test_a_worker_starts_what_is_due(world: World) -> None:
    order = {"request": "why?", "cron": "30 7 * * mon-fri", "time_zone": "Europe/Rome"}
    async with _scene(world) as scene:
        await scene.send("PUT", "/digest", body=order)
        await make_due(world)
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(worker(world.settings))
            with anyio.fail_after(BOUND_S):
                while not (found := await started_for(world)):
                    pass  # each look is a connection of its own
        assert list(found.values()) == [1]
        shown = (await scene.send("GET", "/digest")).json()
    assert (shown["fired"], shown["state"]) == (1, "active")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "request"),
        ({"request": "why?"}, "say when"),
        ({**HOURLY, "cron": "0 7 * * *"}, "say when"),
        ({**HOURLY, "every_s": 5}, "one minute"),
        ({**HOURLY, "every_s": "3600"}, "every_s"),
        ({**HOURLY, "missed": "twice"}, "missed"),
        ({**HOURLY, "surprise": 1}, "surprise"),
        ({**HOURLY, "until": "2026-01-01T00:00:00"}, "until"),
        ({**HOURLY, "until": "2020-01-01T00:00:00Z"}, "400 days"),
        ({**HOURLY, "workflow": "nonesuch"}, "no such skill"),
        ({**HOURLY, "request": "x" * 20_001}, "request"),
        ({"request": "why?", "cron": "99 7 * * *"}, "cron"),
        ({"request": "why?", "cron": "0 7 * * *", "time_zone": "Mars/Base"}, "time zone"),
        ([], "body"),
    ],
)
async def test_an_order_that_cannot_be_taken_says_why(scene: Scene, body: Any, says: str) -> None:
    refused = await scene.send("PUT", "/digest", body=body)
    assert refused.status_code == 400
    assert says in refused.json()["message"]
    assert (await scene.send("GET")).json() == {"schedules": []}


async def test_only_its_owner_reaches_it_and_only_with_the_right_token(scene: Scene) -> None:
    await scene.send("PUT", "/digest", body=HOURLY)
    strangers: list[dict[str, Any]] = [{"user": "bob"}, {"tenant": scene.rival}]
    for stranger in strangers:
        assert (await scene.send("GET", **stranger)).json() == {"schedules": []}
        for verb, path in (
            ("GET", "/digest"),
            ("DELETE", "/digest"),
            ("POST", "/digest/pause"),
            ("POST", "/digest/resume"),
            ("POST", "/digest/run"),
        ):
            assert (await scene.send(verb, path, **stranger)).status_code == 404
    assert (await scene.http.get(f"{scene.base}/schedules")).status_code == 401
    mcp = scene.world.token(scene.acme, audience=Audience.MCP)
    foreign = await scene.http.get(f"{scene.base}/schedules", headers={"authorization": f"Bearer {mcp}"})
    assert foreign.status_code == 401
    assert (await scene.send("GET", scopes=frozenset({Scope.CORPUS_READ}))).status_code == 403
    narrow = await scene.send("PUT", "/other", body=HOURLY, scopes=frozenset({Scope.TASKS_RUN}))
    assert (narrow.status_code, narrow.json()["error"]) == (403, "forbidden")


async def test_the_command_does_all_of_it_with_a_token_and_no_keys(scene: Scene) -> None:
    async def told(*arguments: str) -> str:
        code, out, err = await scene.command(*arguments)
        assert code == 0, err
        return out

    assert "no schedules" in await told("list")
    added = await told("add", "digest", "what is new?", "--cron", "30 7 * * mon-fri", "--time-zone", "Europe/Berlin")
    assert added.startswith("digest is active: 30 7 * * mon-fri Europe/Berlin, next ")
    assert "every 6h" in await told("add", "often", "why?", "--every", "6h", "--for", "30d", "--missed", "skip")
    listed = json.loads(await told("list", "--json"))
    assert [one["name"] for one in listed] == ["digest", "often"]
    assert "often" in await told("list")
    shown = await told("show", "often")
    assert "why?" in shown
    assert "skip" in shown
    assert "is paused" in await told("pause", "often")
    assert "is active" in await told("resume", "often")
    task = json.loads(await told("run-now", "often", "--key", "k", "--json"))["task_id"]
    assert task in await told("run-now", "often", "--key", "k")
    assert "removed often" in await told("remove", "often")
    for arguments, status, says in (
        (("show", "often"), 1, "not_found"),
        (("add", "digest", "something else", "--every", "1h"), 1, "conflict"),
        (("add", "x", "why?", "--every", "soon"), 1, "such as 15m"),
        (("add", "x", "why?"), 1, "say when"),
        (("add", "x", "why?", "--every", "1h", "--option", "depth"), 2, "NAME=VALUE"),
    ):
        code, out, err = await scene.command(*arguments)
        assert (code, out) == (status, "")
        assert says in err
        assert "Traceback" not in err
