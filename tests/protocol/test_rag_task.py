"""The workflow `rag` end to end: A2A server, worker and MCP server over real HTTP, answers from stored text."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any
from uuid import UUID, uuid4

import anyio
import asyncpg
import httpx
import pytest
from rich.console import Console

from rag.cli.ask import run_ask, show_answer
from rag.clients.a2a import A2aClient, Accepted, Ended, Event, Progress, Result, Text, a2a_client
from rag.errors import Forbidden, InvalidInput, Unauthenticated
from rag.identity.scopes import Audience
from rag.settings import Settings
from rag.tasks.values import TaskState
from rag.tenants.operator import Tenant
from tests.support import tasks
from tests.support.agents import Rpc, a2a_server, message, worker
from tests.support.documents import put_raw_document
from tests.support.openai_server import Fault, serve_openai
from tests.support.served import served_at
from tests.support.servers import mcp_server
from tests.support.world import Cluster, World, world

pytestmark = pytest.mark.anyio
BOUND_S = 15.0
FRAUD = (
    "It shall be unlawful for any person to use any manipulative or deceptive device in connection with the purchase "
    "or sale of any security. The Commission may bring an action in any district court of the United States."
)
PATENTS = "An inventor of a new and useful process may obtain a patent for it, subject to the conditions of this title."
QUESTION = "Who may not use a manipulative or deceptive device in the sale of a security?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """All three processes' parts, and two tenants with a document each."""

    world: World
    base: str
    settings: Settings
    """Of the worker."""
    acme: Tenant
    rival: Tenant

    @asynccontextmanager
    async def client(self, tenant: Tenant | None = None, **token: Any) -> AsyncGenerator[A2aClient]:
        """Open our client for a user of `tenant` (acme)."""
        bearer = self.world.token(tenant or self.acme, audience=Audience.A2A, **token)
        async with httpx.AsyncClient() as http, a2a_client(self.base, bearer, http=http) as client:
            yield client

    async def ask(
        self, question: str = QUESTION, tenant: Tenant | None = None, options: dict[str, Any] | None = None
    ) -> list[Event]:
        """Ask and return every event."""
        with anyio.fail_after(BOUND_S):
            async with self.client(tenant) as client, aclosing(client.ask(question, options=options)) as events:
                return [event async for event in events]


@pytest.fixture(scope="module", name="stage")
async def stage_fixture(cluster: Cluster) -> AsyncGenerator[Scene]:
    """The servers for all tests of the file that leave them as they were."""
    async with world(cluster) as own, _scene(own) as stage:
        yield stage


@pytest.fixture(name="scene")
async def scene_fixture(stage: Scene) -> Scene:
    """Two tenants of the test's own. No worker yet: a test starts the one it needs."""
    acme, rival = await _tenants(stage.world)
    return dataclasses.replace(stage, acme=acme, rival=rival)


@asynccontextmanager
async def _scene(world: World) -> AsyncGenerator[Scene]:
    acme, rival = await _tenants(world)
    async with mcp_server(world) as mcp, a2a_server(world) as base:
        settings = dataclasses.replace(world.settings, mcp_public_url=mcp.url, a2a_public_url=base, lease_s=2.0)
        yield Scene(world=world, base=base, settings=settings, acme=acme, rival=rival)


async def _tenants(world: World) -> tuple[Tenant, Tenant]:
    acme, rival = [await world.tenant(f"{name}-{uuid4()}") for name in ("acme", "rival")]
    async with world.database() as database:
        for tenant, text in ((acme, FRAUD), (rival, PATENTS)):
            async with database.tenant(world.principal(tenant)) as session:
                await put_raw_document(session, title="Law", text=text, source="law.txt")
    return acme, rival


def _last(events: list[Event], kind: type[Any]) -> Any:
    return [event for event in events if isinstance(event, kind)][-1]


async def test_an_answer_without_a_model_is_labelled_extractive_and_quotes_the_document(scene: Scene) -> None:
    async with worker(scene.settings):
        events = await scene.ask()
    result, ended = _last(events, Result), _last(events, Ended)
    assert isinstance(events[0], Accepted)
    assert ended == Ended(state="completed", reason=None)
    assert events[-1] is ended
    assert (result.data["answerer"], result.data["model"], result.data["dropped"]) == ("extractive", None, 0)
    assert result.data["citations"]
    for citation in result.data["citations"]:
        start, end, quote = int(citation["start"]), int(citation["end"]), citation["quote"]
        assert FRAUD[start:end] == quote
        assert citation["quote_sha256"] == hashlib.sha256(quote.encode()).hexdigest()
        assert (citation["verified"], citation["source"], citation["version"]) == (True, "law.txt", 1)
        assert f"[{int(citation['n'])}]" in result.text
    progress = [event.text for event in events if isinstance(event, Progress)]
    assert progress[0] == "searching…"
    assert "found 1 passage in 1 document" in progress
    assert any("extractive" in text for text in progress)
    assert "".join(event.text for event in events if isinstance(event, Text)) == result.text


async def test_one_tenants_question_is_never_answered_from_anothers_documents(scene: Scene) -> None:
    async with worker(scene.settings):
        events = await scene.ask(tenant=scene.rival)
    result = _last(events, Result)
    assert "manipulative" not in result.text
    assert all(citation["quote"] in PATENTS for citation in result.data["citations"])


async def test_with_nothing_stored_the_answer_says_so(scene: Scene) -> None:
    empty = await scene.world.tenant("empty")
    async with worker(scene.settings):
        events = await scene.ask(tenant=empty)
    result = _last(events, Result)
    assert result.text.startswith("Nothing in your documents matches")
    assert result.data["citations"] == []
    assert _last(events, Ended).state == "completed"


@asynccontextmanager
async def _model(scene: Scene, *pieces: str, faults: tuple[Fault, ...] = ()) -> AsyncGenerator[Settings]:
    async with serve_openai() as server:
        server.pieces = pieces
        server.faults.extend(faults)
        yield dataclasses.replace(scene.settings, **served_at(server.base_url, "tiny"))


async def test_a_models_citation_stands_only_on_words_of_the_document(scene: Scene) -> None:
    pieces = (
        'The law says "any manipulative or deceptive device" [1].',
        " It also says “the moon is made of cheese entirely” [1].",
        " Some other source agrees fully [9].",
    )
    async with _model(scene, *pieces) as settings, worker(settings):
        events = await scene.ask()
    result = _last(events, Result)
    assert (result.data["answerer"], result.data["model"], result.data["dropped"]) == ("model", "tiny", 2)
    assert [citation["quote"] for citation in result.data["citations"]] == ["any manipulative or deceptive device"]
    assert "[1]" in result.text
    assert "[9]" not in result.text


async def test_an_unverified_statement_is_dropped_or_marked_as_the_caller_asks(scene: Scene) -> None:
    pieces = (
        'The law says "any manipulative or deceptive device" [1].',
        " The moon is made of cheese [1].",
        " Water is wet.",
    )
    kept = 'The law says "any manipulative or deceptive device" [1].'
    async with _model(scene, *pieces) as settings, worker(settings):
        dropped = _last(await scene.ask(), Result)
        marked = _last(await scene.ask(options={"unverified": "mark"}), Result)
    assert dropped.text == f"{kept} Water is wet."
    assert marked.text == f"{kept} The moon is made of cheese [unverified]. Water is wet."
    assert [(claim["text"], claim["verified"]) for claim in marked.data["claims"]] == [
        ('The law says "any manipulative or deceptive device".', True),
        ("The moon is made of cheese.", False),
    ]
    for result, coverage in ((dropped, 1 / 2), (marked, 1 / 3)):
        assert (result.data["claimed"], result.data["verified"], result.data["precision"]) == (2, 1, 0.5)
        assert result.data["coverage"] == pytest.approx(coverage, abs=1e-3)
        assert [citation["quote"] for citation in result.data["citations"]] == ["any manipulative or deceptive device"]


async def test_only_documents_that_the_filter_leaves_are_searched_and_an_unknown_option_is_named(scene: Scene) -> None:
    async with worker(scene.settings):
        nothing = await scene.ask(options={"filter": {"field": "source", "eq": "other.txt"}})
    assert _last(nothing, Result).data["citations"] == []
    for options, named in (
        ({"filter": {"field": "nonsense", "eq": 1}}, "filter.field"),
        ({"verified": "no"}, "verified"),
    ):
        with pytest.raises(InvalidInput, match=named):
            await scene.ask(options=options)


async def test_a_model_that_is_down_for_a_while_delays_the_task_and_does_not_end_it(scene: Scene) -> None:
    down = tuple(Fault(status=503) for _ in range(4))
    async with _model(scene, "Nobody may [1].", faults=down) as settings, worker(settings):
        events = await scene.ask()
    assert _last(events, Ended).state == "completed"
    result = _last(events, Result)  # two words of its own are no evidence
    assert result.text.startswith("Nothing of what was written could be verified")
    assert (result.data["claimed"], result.data["verified"], result.data["citations"]) == (1, 0, [])


async def test_an_answer_that_broke_off_begins_again_under_the_same_artifact(scene: Scene) -> None:
    pieces = ("It shall be ", "unlawful for any person", " to use any manipulative device [1].")
    async with _model(scene, *pieces, faults=(Fault(cut_after=2),)) as settings, worker(settings):
        events = await scene.ask()
    texts = [event for event in events if isinstance(event, Text)]
    last_start = max(number for number, event in enumerate(texts) if event.restart)
    assert "".join(event.text for event in texts[last_start:]) == "".join(pieces)
    assert _last(events, Result).text == "".join(pieces)


async def test_our_client_goes_on_when_the_database_went_away_in_the_middle_of_its_stream(world: World) -> None:
    async with AsyncExitStack() as stack:
        scene = await stack.enter_async_context(_scene(world))
        admin = await asyncpg.connect(scene.world.superuser_url)
        stack.push_async_callback(admin.close)
        name = await admin.fetchval("select current_database()")
        database = await stack.enter_async_context(scene.world.database())
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=BOUND_S))
        ada = scene.world.principal(scene.acme)
        rpc = Rpc(base=scene.base, token=scene.world.token(scene.acme, audience=Audience.A2A), http=http)

        async def until_unavailable(task_id: UUID) -> None:
            while (await rpc.raw("GetTask", {"id": str(task_id)})).status_code != 503:
                await anyio.lowlevel.checkpoint()

        async def outage(task_id: UUID) -> None:
            """Take the server's connections but leave it the one that listens: it is woken to read, and cannot."""
            await tasks.progress(database, ada, task_id, "before", fence=None)
            await admin.execute(f'alter database "{name}" connection limit 0')
            await admin.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
                " where application_name = 'test-a2a' and datname = current_database()"
            )
            await until_unavailable(task_id)
            await tasks.progress(database, ada, task_id, "meanwhile", fence=None)
            await until_unavailable(task_id)
            await admin.execute(f'alter database "{name}" connection limit -1')
            await tasks.status(database, ada, task_id, TaskState.COMPLETED, "after", fence=None)

        client = await stack.enter_async_context(scene.client())
        seen: list[Event] = []
        with anyio.fail_after(BOUND_S):
            async with anyio.create_task_group() as group, aclosing(client.ask(QUESTION)) as events:
                async for event in events:
                    seen.append(event)
                    if isinstance(event, Accepted):
                        group.start_soon(outage, UUID(event.task_id))
    assert [event.text for event in seen if isinstance(event, Progress)] == ["before", "meanwhile"]
    assert seen[-1] == Ended(state="completed", reason="after")


async def test_a_cancel_stops_the_model_at_once(scene: Scene) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve_openai())
        server.pieces = ("It ", "is ", "endless")
        server.faults.append(Fault(stall_after=2))
        settings = dataclasses.replace(scene.settings, **served_at(server.base_url, "tiny"))
        await stack.enter_async_context(worker(settings))
        client = await stack.enter_async_context(scene.client())
        task_id, ended = "", None
        with anyio.fail_after(BOUND_S):
            async with aclosing(client.ask(QUESTION)) as events:
                async for event in events:
                    if isinstance(event, Accepted):
                        task_id = event.task_id
                    elif isinstance(event, Text):
                        await client.cancel(task_id)
                    elif isinstance(event, Ended):
                        ended = event
            await server.abandoned.wait()
    assert ended == Ended(state="canceled", reason="canceled on request")


async def test_a_revoked_token_ends_its_running_task_with_the_reason(scene: Scene) -> None:
    token = scene.world.token(scene.acme, audience=Audience.A2A)
    watcher = scene.world.token(scene.acme, audience=Audience.A2A, user="watcher")
    async with httpx.AsyncClient(timeout=BOUND_S) as http:
        rpc = Rpc(base=scene.base, token=token, http=http)
        task = (await rpc.call("SendMessage", {**message(QUESTION), "configuration": {"returnImmediately": True}}))[
            "task"
        ]
        async with scene.world.operator() as operator:
            revoked = scene.world.verifier(Audience.A2A).verify(token)
            await operator.revoke_token(scene.acme.tenant_id, revoked.token_ids[0])
        other = dataclasses.replace(rpc, token=watcher)
        with anyio.fail_after(BOUND_S):
            async with worker(scene.settings), other.stream("SubscribeToTask", {"id": task["id"]}) as events:
                last = [event async for event in events][-1]
    status = last.result["statusUpdate"]["status"]
    assert status["state"] == "TASK_STATE_FAILED"
    assert "revoked" in status["message"]["parts"][0]["text"]


async def test_the_command_line_shows_progress_and_the_cited_answer(scene: Scene) -> None:
    progress, answer = StringIO(), StringIO()
    with anyio.fail_after(BOUND_S):
        async with worker(scene.settings), scene.client() as client:
            asked = await run_ask(client, QUESTION, progress=Console(file=progress, width=200))
    show_answer(asked, Console(file=answer, width=1000))
    assert "· searching…" in progress.getvalue()
    assert asked.task_id in progress.getvalue()
    assert "extractive: sentences of the documents, no model" in answer.getvalue()
    assert "law.txt [0:" in answer.getvalue()
    assert str(asked.data["citations"][0]["quote"]) in answer.getvalue()


async def test_refusals_reach_the_caller_as_errors_of_ours(scene: Scene) -> None:
    with pytest.raises(InvalidInput):
        await scene.ask("x" * 5000)
    async with scene.client(scopes=frozenset()) as client:
        with pytest.raises(Forbidden):
            await anext(client.ask(QUESTION))
    async with scene.client(lifetime_s=-60.0) as client:
        with pytest.raises(Unauthenticated):
            await anext(client.ask(QUESTION))
