"""The workflow `ingest` end to end: real servers, a real worker, documents that are there afterwards."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from rag.identity.scopes import Audience
from rag.identity.scopes import Scope as Right
from tests.support.agents import worker
from tests.support.processes import started
from tests.support.workflow_scene import WorkflowScene, data, file, text, with_new_tenant, workflow_scene
from tests.support.world import Cluster, World, world

pytestmark = pytest.mark.anyio


class Gate:
    """Keeps back the answer to one call of put_documents."""

    def __init__(self) -> None:
        """Nothing is kept back before `hold` is set."""
        self.hold: int | None = None
        """Number of the call, from 1."""
        self.calls = 0
        self.held = anyio.Event()
        self.release = anyio.Event()

    async def pass_on(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a request on its way to `app`."""
        if (b"mcp-name", b"put_documents") not in scope.get("headers", ()):
            await app(scope, receive, send)
            return
        self.calls += 1
        if self.calls != self.hold:
            await app(scope, receive, send)
            return
        kept: list[Any] = []

        async def keep(message: Any) -> None:
            kept.append(message)

        await app(scope, receive, keep)
        self.held.set()
        await self.release.wait()
        for message in kept:
            await send(message)


class Wall:
    """A layer before the MCP server of all tests, in which each of them has a gate of its own."""

    def __init__(self) -> None:
        """With a gate that nobody watches."""
        self.gate = Gate()

    def __call__(self, app: ASGIApp) -> ASGIApp:
        """Stand before `app`."""

        async def gated(scope: Scope, receive: Receive, send: Send) -> None:
            await self.gate.pass_on(app, scope, receive, send)

        return gated


@pytest.fixture(scope="module", name="wall")
def wall_fixture() -> Wall:
    """Before the server of `stage`."""
    return Wall()


@pytest.fixture(scope="module", name="stage")
async def stage_fixture(cluster: Cluster, wall: Wall) -> AsyncGenerator[WorkflowScene]:
    """The servers for all tests of the file."""
    async with world(cluster) as own, workflow_scene(own, behind=wall) as stage:
        yield stage


@pytest.fixture(name="gate")
def gate_fixture(wall: Wall) -> Gate:
    """Open, until a test says otherwise."""
    wall.gate = Gate()
    return wall.gate


@pytest.fixture(name="scene")
async def scene_fixture(stage: WorkflowScene, gate: Gate) -> WorkflowScene:
    """A tenant of the test's own; no worker yet."""
    return await with_new_tenant(stage)


def _document(number: int, **more: Any) -> dict[str, Any]:
    words = f"Rule {number}: whoever sells security {number} tells its price."
    return {"source": f"rules/{number:04}.md", "title": f"Rule {number}", "text": words, **more}


async def test_every_document_of_a_message_is_stored_and_accounted_for(scene: WorkflowScene) -> None:
    async with worker(scene.settings):
        ended = await scene.run(data(documents=[_document(n) for n in range(60)]), skill="ingest")
    markdown, account = ended.artifacts["import"]
    assert ended.state == "COMPLETED"
    assert ended.statuses == (
        "0 of 60 stored",
        "25 of 60 stored",
        "50 of 60 stored",
        "60 of 60 stored",
        "60 of 60 stored",
    )
    assert (account["total"], account["created"], account["stored"], account["refused"]) == (60, 60, 60, 0)
    assert markdown.startswith("# Import: 60 of 60 stored")
    stored = await scene.documents()
    assert len(stored) == 60
    for row in account["documents"]:
        assert stored[row["source"]]["document_id"] == row["document_id"]
        assert (row["outcome"], row["version"], stored[row["source"]]["version"]) == ("created", 1, 1)
    assert "| rules/0007.md | created | 1 | 1 |" in markdown


async def test_broken_documents_are_refused_one_by_one_with_the_reason(scene: WorkflowScene) -> None:
    documents = [
        _document(1),
        {"source": "no-text.md", "title": "x"},
        _document(2, text="   "),
        _document(1, text="other words under the same name"),
        _document(3, metadata={"long": "x" * 100_000}),
        {"title": "nameless", "text": "words"},
        _document(4, colour="red"),
        _document(5, groups=["strangers"]),
        _document(6, metadata={"year": 2020, "share": 0.5}),
    ]
    async with worker(scene.settings):
        ended = await scene.run(data(documents=documents), skill="ingest")
    markdown, account = ended.artifacts["import"]
    refused = {row["source"]: row["reason"] for row in account["documents"] if row["document_id"] is None}
    assert ended.told == "2 of 9 stored, 7 refused"
    assert (account["total"], account["stored"], account["refused"]) == (9, 2, 7)
    assert refused["no-text.md"] == "documents.1.text: Field required"
    assert refused["rules/0002.md"] == "the document has no text"
    assert "same source" in refused["rules/0001.md"]
    assert "the metadata is larger" in refused["rules/0003.md"]
    assert refused["documents.5"] == "documents.5.source: Field required"
    assert refused["rules/0004.md"] == "documents.6.colour: Extra inputs are not permitted"
    assert "group" in refused["rules/0005.md"]
    assert "| no-text.md | document_refused: documents.1.text: Field required |" in markdown
    stored = await scene.documents()
    assert sorted(stored) == ["rules/0001.md", "rules/0006.md"]
    # as any other client would have stored it, to the bit: the same again changes nothing
    assert json.dumps(stored["rules/0006.md"]["metadata"], sort_keys=True) == '{"share": 0.5, "year": 2020}'


async def test_files_are_read_as_the_command_line_reads_them(scene: WorkflowScene) -> None:
    lines = [
        json.dumps({"id": "one", "title": "One", "text": "The first line.", "metadata": {"year": 2020}}),
        "{broken",
        json.dumps({"text": "The third line."}),
    ]
    parts = (
        text("please take these in"),
        file("notes.md", "# Notes\n\nSomething was noted.", "text/markdown"),
        file("page.html", b"<html><body><h1>Page</h1><p>Some words.</p></body></html>", "text/html"),
        file("many.jsonl", "\n".join(lines).encode()),
        file("picture.png", b"\x89PNG"),
        file("bad.txt", b"\x00\x01\x02"),
    )
    async with worker(scene.settings):
        ended = await scene.run(*parts, skill="ingest")
        again = await scene.run(*parts, skill="ingest")
    _, account = ended.artifacts["import"]
    stored = await scene.documents()
    assert sorted(stored) == ["many.jsonl line 3", "many.jsonl#one", "notes.md", "page.html"]
    assert stored["notes.md"]["title"] == "Notes"
    assert stored["notes.md"]["media_type"] == "text/markdown"
    assert stored["many.jsonl#one"]["metadata"] == {"year": 2020}
    reasons = {row["source"]: row["reason"] for row in account["documents"] if row["document_id"] is None}
    assert sorted(reasons) == ["bad.txt", "many.jsonl line 2", "picture.png"]
    assert reasons["many.jsonl line 2"] == "the line is not valid JSON"
    assert "'.png' are not read" in reasons["picture.png"]
    _, repeated = again.artifacts["import"]
    assert (repeated["unchanged"], repeated["created"], repeated["refused"]) == (4, 0, 3)


async def test_an_import_larger_than_a_message_is_one_task_that_asks_for_more(scene: WorkflowScene) -> None:
    async with worker(scene.settings):
        task = await scene.send(data(documents=[_document(1)], more=True), skill="ingest")
        asks = await scene.follow(task)
        assert asks.state == "INPUT_REQUIRED"
        assert asks.told.startswith("1 of 1 stored. Send the next documents")
        task = await scene.send(text("more"), data(documents=[_document(2), _document(3)]), to=task)
        asks = await scene.follow(task)
        assert asks.told.startswith("3 of 3 stored. Send the next documents")
        task = await scene.send(text("Done"), file("last.txt", "The last words."), to=task)
        ended = await scene.follow(task)
    _, account = ended.artifacts["import"]
    assert ended.state == "COMPLETED"
    assert (account["total"], account["stored"], account["messages"]) == (4, 4, 3)
    assert [row["message"] for row in account["documents"]] == [1, 2, 2, 3]
    assert sorted(await scene.documents()) == ["last.txt", "rules/0001.md", "rules/0002.md", "rules/0003.md"]


async def test_the_word_alone_ends_an_import(scene: WorkflowScene) -> None:
    async with worker(scene.settings):
        task = await scene.send(data(more=True), skill="ingest")
        assert (await scene.follow(task)).state == "INPUT_REQUIRED"
        task = await scene.send(text("done"), to=task)
        ended = await scene.follow(task)
    assert (ended.state, ended.artifacts["import"][1]["total"]) == ("COMPLETED", 0)


async def test_documents_sent_while_the_import_works_are_stored_too(scene: WorkflowScene, gate: Gate) -> None:
    gate.hold = 1
    async with worker(scene.settings):
        task = await scene.send(data(documents=[_document(1)]), skill="ingest")
        with anyio.fail_after(20):
            await gate.held.wait()
        await scene.send(data(documents=[_document(2)]), to=task)
        await scene.send(data(documents="none", colour="red"), to=task)
        gate.release.set()
        ended = await scene.follow(task)
    _, account = ended.artifacts["import"]
    assert ended.state == "COMPLETED"
    assert sorted(await scene.documents()) == ["rules/0001.md", "rules/0002.md"]
    assert (account["total"], account["stored"], account["messages"]) == (3, 2, 3)
    assert account["documents"][2]["reason"] == "documents: Input should be a valid list"


async def test_with_wait_for_vectors_it_completes_when_all_is_found_by_meaning(scene: WorkflowScene) -> None:
    async with worker(scene.settings):
        documents = [_document(n) for n in range(12)]
        ended = await scene.run(data(documents=documents, wait_for_vectors=True), skill="ingest")
        _, account = ended.artifacts["import"]
        assert account["vectors"] == "ready"
        found = await scene.tool(
            "hybrid_search",
            {"query": "who tells the price?", "mode": "semantic", "min_version": int(account["corpus_version"])},
        )
    assert not found["stale"]
    assert len({hit["document_id"] for hit in found["hits"]}) == 10
    assert "waiting for vectors…" in ended.statuses
    assert (await scene.tool("document_stats", {}))["embeddings_pending"] == 0


async def test_a_worker_killed_within_an_import_is_followed_by_one_that_loses_and_repeats_nothing(
    scene: WorkflowScene, gate: Gate, tmp_path: Path
) -> None:
    """It dies when the third batch is stored and nobody has been told yet."""
    gate.hold = 3
    settings = dataclasses.replace(scene.settings, owner_database_url=None, maintenance_database_url=None)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(started("workflows", settings, tmp_path))
        task = await scene.send(data(documents=[_document(n) for n in range(110)]), skill="ingest")
        with anyio.fail_after(30):
            await gate.held.wait()
        first.signal(signal.SIGKILL)
        assert await first.wait() == -signal.SIGKILL
        gate.release.set()
        await stack.enter_async_context(worker(scene.settings))
        ended = await scene.follow(task)
    _, account = ended.artifacts["import"]
    stored = await scene.documents()
    assert ended.state == "COMPLETED"
    assert len(stored) == 110
    assert {one["version"] for one in stored.values()} == {1}
    assert (account["total"], account["stored"], account["refused"]) == (110, 110, 0)
    assert sorted(row["source"] for row in account["documents"]) == sorted(stored)
    # five batches; the one whose result was lost was sent twice, and says so, and found everything in place
    assert gate.calls == 6
    assert (account["created"], account["unchanged"]) == (85, 25)
    assert [told for told in ended.statuses if "again" in told] == [
        "calling put_documents again: attempt 1 brought no result"
    ]
    counts = [told for told in ended.statuses if told.endswith("of 110 stored")]
    assert counts == [f"{n} of 110 stored" for n in (0, 25, 50, 75, 100, 110, 110)]


async def test_an_import_faster_than_the_tenants_rate_goes_on_at_that_rate(world: World) -> None:
    """Three calls of five units each are more than a burst, of ten, and what comes back during two of them."""
    async with workflow_scene(world, request_limit_per_minute=60) as scene, worker(scene.settings):
        ended = await scene.run(data(documents=[_document(n) for n in range(75)]), skill="ingest")
    _, account = ended.artifacts["import"]
    assert ended.state == "COMPLETED"
    assert any(told.startswith("calling put_documents again") for told in ended.statuses)
    # what is refused for its rate has done nothing: no document was sent twice
    assert (account["total"], account["created"], account["unchanged"]) == (75, 75, 0)


async def test_what_cannot_be_an_import_is_refused_at_the_door(scene: WorkflowScene) -> None:
    assert (await scene.refusal(text("hello"), skill="ingest")).startswith("documents: there are none")
    assert "documents: " in await scene.refusal(data(documents={"source": "x"}), skill="ingest")
    assert "documents.0: " in await scene.refusal(data(documents=["x"]), skill="ingest")
    assert "colour: " in await scene.refusal(data(documents=[_document(1)], colour="red"), skill="ingest")
    too_many = [{"source": str(n), "text": "x"} for n in range(2_001)]
    assert "documents: " in await scene.refusal(data(documents=too_many), skill="ingest")
    reader = scene.world.token(
        scene.acme, audience=Audience.A2A, scopes=frozenset({Right.CORPUS_READ, Right.TASKS_RUN})
    )
    narrow = dataclasses.replace(scene, rpc=dataclasses.replace(scene.rpc, token=reader))
    assert "corpus:write" in await narrow.refusal(data(documents=[_document(1)]), skill="ingest")
