"""What a task's model calls cost, and what becomes of a task whose caller has nothing left."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import anyio
import pytest

from rag.budgets.operator import Budget, Period, Scope, set_budget
from rag.budgets.usage import By, UsageFilter, read_usage
from rag.db.maintenance import open_maintenance
from tests.support.agents import worker
from tests.support.documents import put_raw_document
from tests.support.openai_server import Fault, OpenAiServer, serve_openai
from tests.support.outage import cut_off
from tests.support.served import served_at
from tests.support.workflow_scene import WorkflowScene, text, with_new_tenant, workflow_scene
from tests.support.world import Cluster, world

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
BOUND_S = 60.0
LAW = "It shall be unlawful for any person to use any manipulative device in the sale of any security."
QUOTE = 'It is "unlawful for any person to use any manipulative device" [1].'
PROMPT, COST = 1000, Decimal("0.001002")
"""Millionths: a thousand prompt tokens at 1, one of the completion at 2."""


@pytest.fixture(scope="module", name="stage")
async def stage_fixture(cluster: Cluster) -> AsyncGenerator[WorkflowScene]:
    """The servers, for all tests that leave them as they were."""
    async with world(cluster) as own, workflow_scene(own) as stage:
        yield stage


@pytest.fixture(name="scene")
async def scene_fixture(stage: WorkflowScene) -> WorkflowScene:
    """A tenant of the test's own with one document."""
    return await _with_law(await with_new_tenant(stage))


@pytest.fixture(name="model")
async def model_fixture() -> AsyncGenerator[OpenAiServer]:
    """A model that quotes the document."""
    async with serve_openai() as server:
        server.pieces, server.prompt_tokens = (QUOTE,), PROMPT
        yield server


async def _with_law(scene: WorkflowScene) -> WorkflowScene:
    async with scene.world.database() as database, database.tenant(scene.world.principal(scene.acme)) as session:
        await put_raw_document(session, title="Law", text=LAW)
    return scene


async def _limit(scene: WorkflowScene, budget: Budget) -> None:
    url = scene.world.settings.maintenance_database_url
    assert url is not None
    async with open_maintenance(url, application="test") as session:
        await set_budget(session, scene.acme.tenant_id, budget)


async def _spent(scene: WorkflowScene) -> Decimal:
    now = datetime.now(UTC)
    wanted = UsageFilter(tenant_id=scene.acme.tenant_id, since=now - timedelta(days=1), until=now + timedelta(days=1))
    async with scene.world.database() as database, database.tenant(scene.world.principal(scene.acme)) as session:
        return sum((one.cost for one in await read_usage(session, wanted, by=[By.MODEL])), Decimal(0))


async def test_a_task_says_what_it_has_cost_and_who_wrote_and_the_ledger_says_the_same(
    scene: WorkflowScene, model: OpenAiServer
) -> None:
    async with worker(replace(scene.settings, **served_at(model.base_url, "tiny"))):
        ended = await scene.run(text("What is unlawful?"), skill="rag")
    assert ended.state == "COMPLETED"
    _, answer = ended.artifacts["answer"]
    assert (answer["served"]["model"], answer["served"]["estimated"]) == ("tiny", False)
    assert Decimal(answer["served"]["cost"]) == Decimal(ended.usage["cost"]) == COST
    assert await _spent(scene) == COST


async def test_a_task_over_its_callers_budget_fails_with_what_is_left_and_no_model_is_asked(
    scene: WorkflowScene, model: OpenAiServer
) -> None:
    await _limit(scene, Budget(scope=Scope.USER, period=Period.DAY, amount=Decimal("0.0001")))
    async with worker(replace(scene.settings, **served_at(model.base_url, "tiny"))):
        ended = await scene.run(text("What is unlawful?"), skill="rag")
    assert ended.state == "FAILED"
    assert "budget" in ended.statuses[-1]
    assert "0.0001" in ended.statuses[-1]
    assert model.requests == []


async def test_a_model_without_a_price_is_not_asked_where_a_budget_applies(
    scene: WorkflowScene, model: OpenAiServer
) -> None:
    settings = replace(scene.settings, **served_at(model.base_url, "tiny") | {"llm_prices": None})
    async with worker(settings):
        ended = await scene.run(text("What is unlawful?"), skill="rag")
        assert (ended.state, model.requests) == ("FAILED", [])
        assert "price" in ended.statuses[-1]
        for period in (Period.DAY, Period.MONTH):
            await _limit(scene, Budget(scope=Scope.TENANT, period=period, amount=None))
        assert (await scene.run(text("What is unlawful?"), skill="rag")).state == "COMPLETED"
    assert len(model.requests) == 1


async def test_a_call_that_is_made_again_is_paid_again_and_both_stand_in_the_ledger(
    scene: WorkflowScene, model: OpenAiServer
) -> None:
    model.faults.append(Fault(status=500))
    async with worker(replace(scene.settings, **served_at(model.base_url, "tiny"))):
        ended = await scene.run(text("What is unlawful?"), skill="rag")
    assert ended.state == "COMPLETED"
    assert len(model.requests) == 2
    assert await _spent(scene) > COST


async def test_with_postgres_gone_in_the_middle_no_further_call_is_made(cluster: Cluster) -> None:
    async with world(cluster) as own, workflow_scene(own) as scene, serve_openai() as model:
        await _with_law(scene)
        model.faults.append(Fault(stall_after=0))
        async with worker(replace(scene.settings, **served_at(model.base_url, "tiny"))):
            await scene.send(text("What is unlawful?"))
            with anyio.fail_after(BOUND_S):
                while not model.requests:
                    await anyio.lowlevel.checkpoint()
                await cut_off(own)
                # the run is lost with its lease, and with it the call
                await model.abandoned.wait()
        assert len(model.requests) == 1
