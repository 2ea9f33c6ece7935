"""The workflow `hybrid` end to end: own documents and another party's MCP server, over real HTTP."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import asyncpg
import pytest

from rag.external.operator import ServerList
from rag.external.store import PURPOSE
from rag.identity.scopes import Audience
from rag.identity.scopes import Scope as Right
from rag.identity.seal import load_seal_keys
from rag.identity.secretbox import SecretBox
from rag.tenants.operator import Tenant
from tests.support.agents import worker
from tests.support.documents import put_raw_document
from tests.support.external_server import GAZETTE, ExternalScript, external_process, external_server
from tests.support.openai_server import serve_openai
from tests.support.served import served_at
from tests.support.workflow_scene import WorkflowScene, data, text, with_new_tenant, workflow_scene
from tests.support.world import Cluster, world

pytestmark = pytest.mark.anyio
RULES = (
    "Rule 12 of the airfield says that night landings need the permission of the duty officer. "
    "The duty officer keeps a log of all landings."
)
QUESTION = "Which rules are there about night landings of seaplanes?"
SECRET = "s3cret-of-the-gazette"


@pytest.fixture(scope="module", name="stage")
async def stage_fixture(cluster: Cluster) -> AsyncGenerator[WorkflowScene]:
    """The servers for all tests of the file."""
    async with world(cluster) as own, workflow_scene(own) as stage:
        yield stage


@pytest.fixture(name="scene")
async def scene_fixture(stage: WorkflowScene) -> WorkflowScene:
    """A tenant with a document of its own; no worker and no external server yet."""
    scene = await with_new_tenant(stage)
    own = scene.world
    async with own.database() as database, database.tenant(own.principal(scene.acme)) as session:
        await put_raw_document(session, title="Airfield", text=RULES, source="airfield.txt")
    return dataclasses.replace(scene, settings=dataclasses.replace(scene.settings, outbound_loopback="on"))


@asynccontextmanager
async def servers_of(scene: WorkflowScene, tenant: Tenant | None = None) -> AsyncGenerator[ServerList]:
    """Open the operator's verbs for a tenant (acme)."""
    assert scene.settings.seal_keys_file is not None
    box = SecretBox.derive(load_seal_keys(scene.settings.seal_keys_file), purpose=PURPOSE)
    async with scene.world.operator() as operator:
        yield ServerList(
            database=operator.database, box=box, tenant_id=(tenant or scene.acme).tenant_id, allow_loopback=True
        )


async def allow(scene: WorkflowScene, server: ExternalScript | str, name: str = "gazette", **more: Any) -> None:
    """Put the server on acme's list, with questions allowed."""
    url = server if isinstance(server, str) else server.url
    told: dict[str, Any] = {"tools": ["search_gazette"], "sends_queries": True, **more}
    async with servers_of(scene) as known:
        await known.add(name, url=url, **told)


async def test_an_answer_cites_own_text_as_verified_and_another_server_as_external(scene: WorkflowScene) -> None:
    async with external_process() as url, worker(scene.settings):
        await allow(scene, url)
        ended = await scene.run(text(QUESTION), skill="hybrid")
    assert ended.state == "COMPLETED"
    answer, found = ended.artifacts["answer"]
    _, recorded = ended.artifacts["external-results"]
    assert found["sources"] == [{"server": "gazette", "status": "asked", "reason": "", "results": 1}]
    (own,), (other,) = found["citations"][:1], found["external"][:1]
    assert (own["verified"], own["source"]) == (True, "airfield.txt")
    assert RULES[int(own["start"]) : int(own["end"])] == own["quote"]
    assert (other["verified"], other["checked_against"]) == (False, "recorded result")
    assert (other["server"], other["tool"]) == ("gazette", "search_gazette")
    assert recorded["text"][int(other["start"]) : int(other["end"])] == other["quote"]
    assert recorded["text"] == GAZETTE
    assert other["result_sha256"] == recorded["sha256"] == hashlib.sha256(GAZETTE.encode()).hexdigest()
    assert other["at"] == recorded["at"]
    assert f"[{int(other['n'])} external]" in answer
    assert f"[{int(own['n'])}]" in answer
    assert all(one["verified"] != one["external"] for one in found["claims"])
    assert found["verified"] == sum(one["verified"] for one in found["claims"])
    assert found["precision"] == 1.0


async def test_the_external_server_gets_the_question_and_no_token(scene: WorkflowScene) -> None:
    async with external_server(api_key=SECRET) as gazette, worker(scene.settings):
        await allow(scene, gazette, header="authorization", credential=SECRET)
        ended = await scene.run(text(QUESTION), skill="hybrid")
    assert ended.state == "COMPLETED"
    assert gazette.called == [("search_gazette", QUESTION)]
    tokens = {one["authorization"] for one in gazette.headers}
    assert tokens == {f"Bearer {SECRET}"}
    assert not any(scene.rpc.token.encode() in body for body in gazette.bodies)
    admin = await asyncpg.connect(scene.world.superuser_url)
    log = str(await admin.fetch("select payload::text from rag.task_event union all select input::text from rag.task"))
    calls = str(await admin.fetch("select result::text from rag.task_call"))
    await admin.close()
    assert SECRET not in log + calls


async def test_a_server_that_may_get_no_question_is_not_asked(scene: WorkflowScene) -> None:
    async with external_server() as gazette, worker(scene.settings):
        await allow(scene, gazette, sends_queries=False)
        ended = await scene.run(text(QUESTION), skill="hybrid")
    answer, found = ended.artifacts["answer"]
    assert gazette.headers == []
    assert found["sources"][0]["status"] == "not asked"
    assert found["citations"]
    assert "Without these external servers:\n- gazette: no question of this organisation may be sent there" in answer


async def test_servers_that_are_down_or_refuse_are_named_and_the_others_answer(scene: WorkflowScene) -> None:
    async with external_server(api_key="another") as refusing, external_server() as gazette, worker(scene.settings):
        async with external_server() as closed:
            pass
        await allow(scene, closed, "archive")
        await allow(scene, refusing, "bulletin", header="x-api-key", credential=SECRET)
        await allow(scene, gazette, "gazette", tools=["search_year", "search_gazette"])
        await allow(scene, gazette, "register", tools=["search_year"])
        ended = await scene.run(text(QUESTION), skill="hybrid")
    answer, found = ended.artifacts["answer"]
    assert ended.state == "COMPLETED"
    assert {one["server"]: (one["status"], one["results"]) for one in found["sources"]} == {
        "archive": ("failed", 0),
        "bulletin": ("failed", 0),
        "gazette": ("asked", 1),
        "register": ("failed", 0),
    }
    assert "archive: the external server archive cannot be reached" in answer
    assert "bulletin: the external server bulletin refuses our credential" in answer
    assert "register: it offers no allowed tool that takes a question alone" in answer
    assert found["external"]
    assert gazette.called == [("search_gazette", QUESTION)]


async def test_a_missing_credential_is_asked_for_and_the_task_goes_on_when_it_is_set(scene: WorkflowScene) -> None:
    async with external_server(api_key=SECRET) as gazette, worker(scene.settings):
        await allow(scene, gazette, header="authorization")
        task = await scene.send(text(QUESTION), skill="hybrid")
        asked = await scene.follow(task)
        assert asked.state == "AUTH_REQUIRED"
        assert "gazette" in asked.told
        assert gazette.headers == []
        async with servers_of(scene) as known:
            await known.set_credential("gazette", header="authorization", credential=SECRET)
        ended = await scene.follow(await scene.send(text("continue"), to=task))
    _, found = ended.artifacts["answer"]
    assert ended.state == "COMPLETED"
    assert found["external"]
    assert found["sources"] == [{"server": "gazette", "status": "asked", "reason": "", "results": 1}]


async def test_a_question_is_not_sent_where_it_may_go_no_more_while_the_task_waited(scene: WorkflowScene) -> None:
    async with external_server() as gazette, external_server(api_key=SECRET) as bulletin, worker(scene.settings):
        await allow(scene, gazette)
        await allow(scene, bulletin, "bulletin", header="authorization")
        task = await scene.send(text(QUESTION), skill="hybrid")
        assert (await scene.follow(task)).state == "AUTH_REQUIRED"
        async with servers_of(scene) as known:
            await known.change("gazette", sends_queries=False)
            await known.change("bulletin", sends_queries=False)
            await known.set_credential("bulletin", header="authorization", credential=SECRET)
        ended = await scene.follow(await scene.send(text("continue"), to=task))
    _, found = ended.artifacts["answer"]
    assert (ended.state, gazette.called, bulletin.called) == ("COMPLETED", [], [])
    assert {one["server"]: one["status"] for one in found["sources"]} == dict.fromkeys(
        ("gazette", "bulletin"), "not asked"
    )


async def test_a_server_beyond_the_bound_is_named_and_not_asked(scene: WorkflowScene) -> None:
    async with external_server() as gazette, worker(scene.settings):
        for number in range(9):
            await allow(scene, gazette, f"gazette-{number}")
        await allow(scene, gazette, "closed", sends_queries=False)
        ended = await scene.run(text(QUESTION), skill="hybrid")
    answer, found = ended.artifacts["answer"]
    assert [one["status"] for one in found["sources"]].count("asked") == 8
    assert "- gazette-8: a task asks 8 servers at most" in answer


@pytest.mark.parametrize("word", ["skip", "continue"])
async def test_the_task_goes_on_without_a_credential_that_stays_missing(scene: WorkflowScene, word: str) -> None:
    async with external_server(api_key=SECRET) as gazette, worker(scene.settings):
        await allow(scene, gazette, header="authorization")
        task = await scene.send(text(QUESTION), skill="hybrid")
        assert (await scene.follow(task)).state == "AUTH_REQUIRED"
        ended = await scene.follow(await scene.send(text(word), to=task))
    answer, found = ended.artifacts["answer"]
    assert (ended.state, gazette.headers) == ("COMPLETED", [])
    assert "gazette: its credential is missing" in answer
    assert found["citations"]


async def test_a_tenants_task_never_reaches_another_tenants_servers(scene: WorkflowScene) -> None:
    rival = await scene.world.tenant("rival")
    async with external_server() as gazette, worker(scene.settings):
        await allow(scene, gazette)
        token = scene.world.token(rival, audience=Audience.A2A)
        theirs = dataclasses.replace(scene, acme=rival, rpc=dataclasses.replace(scene.rpc, token=token))
        ended = await theirs.run(text(QUESTION), data(servers=["gazette"]), skill="hybrid")
    answer, found = ended.artifacts["answer"]
    assert gazette.headers == []
    assert found["sources"] == [
        {"server": "gazette", "status": "not asked", "reason": "there is no such server", "results": 0}
    ]
    assert found["citations"] == found["external"] == []
    assert answer.startswith("Nothing in your documents")


async def test_a_models_words_about_an_external_result_stand_only_where_the_result_has_them(
    scene: WorkflowScene,
) -> None:
    def reply(body: dict[str, Any]) -> list[str]:
        prompt = str(body["messages"])
        place = next(n for n in range(1, 9) if f'n="{n}" title="gazette' in prompt)
        return [
            f'The gazette says "forbids night landings of seaplanes" [{place}].',
            f' It adds "all is free now" [{place}].',
        ]

    async with external_server() as gazette, serve_openai() as model:
        model.reply = reply
        settings = dataclasses.replace(scene.settings, **served_at(model.base_url, "tiny"))
        await allow(scene, gazette)
        async with worker(settings):
            ended = await scene.run(text(QUESTION), skill="hybrid")
    answer, found = ended.artifacts["answer"]
    assert [one["quote"] for one in found["external"]] == ["forbids night landings of seaplanes"]
    assert "all is free now" not in answer
    assert (found["answerer"], found["dropped"], found["verified"], found["citations"]) == ("model", 1, 0, [])


async def test_an_answer_of_which_nothing_holds_is_not_shown(scene: WorkflowScene) -> None:
    async with external_server() as gazette, serve_openai() as model:
        model.pieces = ('The gazette says "all of it is free from now on" [1].',)
        settings = dataclasses.replace(scene.settings, **served_at(model.base_url, "tiny"))
        await allow(scene, gazette)
        async with worker(settings):
            ended = await scene.run(text(QUESTION), skill="hybrid")
    answer, found = ended.artifacts["answer"]
    assert answer.startswith("Nothing of what was written holds")
    assert (found["citations"], found["external"], found["claims"], found["dropped"]) == ([], [], [], 1)


async def test_a_run_that_is_taken_over_asks_no_server_twice_that_has_answered(scene: WorkflowScene) -> None:
    async with external_server() as gazette, external_server(hangs=True) as slow:
        await allow(scene, gazette)
        await allow(scene, slow, "slow")
        task = await scene.send(text(QUESTION), skill="hybrid")
        async with worker(scene.settings):
            with anyio.fail_after(20.0):
                await _recorded(scene, task, "%:external:gazette:search_gazette")
                await slow.asked.wait()
        slow.hangs = False
        async with worker(scene.settings):
            ended = await scene.follow(task)
    _, found = ended.artifacts["answer"]
    assert ended.state == "COMPLETED"
    assert gazette.called == slow.called == [("search_gazette", QUESTION)]
    assert [one["status"] for one in found["sources"]] == ["asked", "asked"]


async def _recorded(scene: WorkflowScene, task: dict[str, Any], key: str) -> None:
    """Return once the task's call has its result in the record."""
    admin = await asyncpg.connect(scene.world.superuser_url)
    query = "select exists (select from rag.task_call where task_id = $1 and key like $2 and result is not null)"
    while not await admin.fetchval(query, task["id"], key):
        await anyio.lowlevel.checkpoint()
    await admin.close()


async def test_hybrid_needs_the_right_to_read(scene: WorkflowScene) -> None:
    token = scene.world.token(scene.acme, audience=Audience.A2A, scopes=frozenset({Right.TASKS_RUN}))
    poorer = dataclasses.replace(scene, rpc=dataclasses.replace(scene.rpc, token=token))
    assert "corpus:read" in await poorer.refusal(text(QUESTION), skill="hybrid")
    assert "servers" in await scene.refusal(text(QUESTION), data(servers=["Not A Name"]), skill="hybrid")
