"""The workflow `research` end to end: A2A server, worker and MCP server over real HTTP, reports on real law."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from rag.clients.a2a import Ended, Event, Needs, Progress, Result, Text, a2a_client
from rag.identity.scopes import Audience
from rag.settings import Settings
from tests.support.agents import worker
from tests.support.openai_server import Fault, OpenAiServer, serve_openai
from tests.support.served import served_at
from tests.support.workflow_scene import WorkflowScene, data, text, with_new_tenant, workflow_scene
from tests.support.world import Cluster, world

pytestmark = pytest.mark.anyio
BOUND_S = 60.0
SAMPLES = Path(__file__).parents[2] / "samples" / "securities"
SOURCES = (
    "15-78u-1-civil-penalties-for-insider-trading.md",
    "15-78t-1-liability-to-contemporaneous-traders-for-insider-trading.md",
    "15-78j-manipulative-and-deceptive-devices.md",
    "15-78a-short-title.md",
)
QUESTION = "What does the law say about insider trading?"


@pytest.fixture(scope="module", name="scene")
async def scene_fixture(cluster: Cluster) -> AsyncGenerator[WorkflowScene]:
    """Four sections of real law, and their vectors, for all tests of the file: they write none and delete none."""
    async with world(cluster) as own, workflow_scene(own) as scene:
        await put_law(scene)
        yield scene


async def put_law(scene: WorkflowScene) -> None:
    """Store the four sections and wait for their vectors."""
    for source in SOURCES:
        content = (SAMPLES / source).read_text(encoding="utf-8")
        title = content.partition("\n")[0].removeprefix("# ")
        await scene.tool("put_document", {"source": source, "title": title, "text": content})
    async with worker(scene.settings):
        with anyio.fail_after(BOUND_S):
            while (await scene.tool("list_documents", {"limit": 1}))["embeddings_pending"]:
                pass


async def events_of(
    scene: WorkflowScene, question: str = QUESTION, *, replies: Sequence[str] = (), **options: Any
) -> list[Event]:
    """Ask for a report and return every event, answering what it asks."""
    bearer = scene.world.token(scene.acme, audience=Audience.A2A)
    seen: list[Event] = []
    answers = list(replies)
    with anyio.fail_after(BOUND_S):
        async with httpx.AsyncClient() as http, a2a_client(scene.rpc.base, bearer, http=http) as client:
            stream = client.ask(question, skill="research", options=options)
            while True:
                async with aclosing(stream) as events:
                    seen.extend([event async for event in events])
                if not isinstance(seen[-1], Needs) or not answers:
                    return seen
                stream = client.reply(seen[0].task_id, answers.pop(0))  # pyright: ignore[reportAttributeAccessIssue]  # Accepted comes first


def result_of(events: list[Event]) -> Result:
    (found,) = [event for event in events if isinstance(event, Result)]
    return found


async def assert_verbatim(scene: WorkflowScene, report: Result) -> None:
    """Hold every citation against the stored text, read by its place."""
    assert report.data["citations"]
    for citation in report.data["citations"]:
        place = {name: int(citation[name]) for name in ("start", "end")}
        stored = await scene.tool("retrieve_document", {"document_id": citation["document_id"], **place})
        assert stored["text"] == citation["quote"]
        assert stored["document"]["version"] == citation["version"]
        assert f"[{int(citation['n'])}]" in report.text


async def test_a_report_is_planned_from_what_the_documents_hold_and_every_claim_of_it_stands_there(
    scene: WorkflowScene,
) -> None:
    async with worker(scene.settings):
        events = await events_of(scene)
    assert events[-1] == Ended(state="completed", reason=None)
    report = result_of(events)
    await assert_verbatim(scene, report)
    titles = [section["title"] for section in report.data["sections"]]
    assert titles[0] == "Overview"
    assert "Civil penalties for insider trading" in titles
    assert (report.data["planned_by"], report.data["answerer"]) == ("corpus", "extractive")
    assert (report.data["precision"], report.data["coverage"]) == (1.0, 1.0)
    for section in report.data["sections"]:
        told = report.text.split(f"## {section['title']}\n")[1].split("\n## ")[0]
        assert section["citations"] >= 2 or "was found on this" in told
    assert "three times the profit gained or loss avoided" in report.text


async def test_it_is_told_step_by_step_what_is_found_written_and_used(scene: WorkflowScene) -> None:
    async with worker(scene.settings):
        events = await events_of(scene, profile="legal")
    progress = [event for event in events if isinstance(event, Progress)]
    steps = [str(event.metadata.get("step")) for event in progress]
    assert list(dict.fromkeys(steps)) == ["plan", "find", "write", "verify"]
    found = [event for event in progress if event.metadata["step"] == "find"]
    assert {event.metadata["section"] for event in found} == {
        "Scope",
        "Definitions",
        "Duties",
        "Exceptions",
        "Penalties",
    }
    calls = [int(event.metadata["usage"]["calls"]) for event in progress]
    assert calls == sorted(calls)
    report = result_of(events)
    assert 0 < calls[-1] == report.data["cost"]["calls"]
    pieces = [event for event in events if isinstance(event, Text)]
    draft = "".join(event.text for event in pieces)
    order = [draft.index(f"## {title}\n") for title in ("Scope", "Definitions", "Duties", "Exceptions", "Penalties")]
    assert order == sorted(order)
    assert "[1]" not in draft, "nothing is called verified before it is"


async def test_a_report_is_the_same_each_time(scene: WorkflowScene) -> None:
    async with worker(scene.settings):
        one, other = [result_of(await events_of(scene, profile="legal")) for _ in range(2)]
    assert one.text == other.text
    assert one.data == other.data


async def test_what_nothing_is_found_on_is_said_so_in_every_section(scene: WorkflowScene) -> None:
    async with worker(scene.settings):
        report = result_of(await events_of(scene, "Zanzibar Widgets Limited", profile="company"))
    assert report.data["citations"] == []
    assert report.data["claimed"] == 0
    assert report.text.count("Nothing was found on this") == len(report.data["sections"]) == 5


async def test_a_document_that_the_caller_may_not_read_at_the_end_is_not_cited(scene: WorkflowScene) -> None:
    """It goes between the search and the check: the model is asked in between, and answers when it is gone."""
    scene = await with_new_tenant(scene)
    await put_law(scene)
    gone = (await scene.documents())[SOURCES[0]]["document_id"]

    def reply(body: dict[str, Any]) -> list[str]:
        if "response_format" in body:
            return [json.dumps({"sections": []})]
        return [_cited_of(body, "shall not exceed three times the profit gained or loss avoided")]

    async with _model(scene) as (server, settings), worker(settings):
        server.reply = reply
        server.faults.extend([Fault(), *(Fault(status=503) for _ in range(6))])

        async def delete_when_asked() -> None:
            while len(server.requests) < 2:
                await anyio.lowlevel.checkpoint()
            await scene.tool("delete_document", {"document_id": gone})
            server.faults.clear()  # the model is back, and writes from the passages that were found

        reports: list[Result] = []
        async with anyio.create_task_group() as group:
            group.start_soon(delete_when_asked)
            reports.append(result_of(await events_of(scene)))
    (report,) = reports
    assert gone not in {citation["document_id"] for citation in report.data["citations"]}
    assert "three times the profit gained" not in report.text
    assert report.data["claimed"] > report.data["verified"]


def _cited_of(body: dict[str, Any], words: str) -> str:
    """Return an answer that quotes `words` from whichever source of the prompt has them."""
    sources = body["messages"][1]["content"].split("<source ")[1:]
    for number, source in enumerate(sources, 1):
        if words in " ".join(source.split()):
            return f'The law says "{words}" [{number}].'
    return "The documents found do not answer this question."


PLAN = {
    "sections": [
        {"title": "Penalties", "question": "What penalties follow?", "queries": ["civil penalty insider trading"]},
        {"title": "Limits in time", "question": "How long can one sue?", "queries": ["years after the transaction"]},
        {"title": "Moon", "question": "What is the moon made of?", "queries": ["moon cheese"]},
    ]
}


def _writes(body: dict[str, Any]) -> list[str]:
    if "response_format" in body:
        return [json.dumps(PLAN)]
    question = body["messages"][1]["content"].rsplit("<question>", 1)[1]
    if "Penalties" in question:
        quoted = _cited_of(body, "shall not exceed three times the profit gained or loss avoided")
        return [
            quoted,
            " Fines are doubled on Sundays by royal decree [1].",
            " [Click](http://evil.example) <b>here</b>.",
        ]
    if "Limits" in question:
        return [_cited_of(body, "No action may be brought under this section more than 5 years after the date")]
    return ["The moon is green cheese entirely and wholly [1]."]


@asynccontextmanager
async def _model(scene: WorkflowScene) -> AsyncGenerator[tuple[OpenAiServer, Settings]]:
    async with serve_openai() as server:
        server.reply = _writes
        yield server, dataclasses.replace(scene.settings, **served_at(server.base_url, "tiny"))


async def test_a_model_plans_and_writes_and_only_what_the_documents_bear_out_is_shown(scene: WorkflowScene) -> None:
    async with _model(scene) as (server, settings), worker(settings):
        events = await events_of(scene)
        marked = result_of(await events_of(scene, unverified="mark"))
    report = result_of(events)
    await assert_verbatim(scene, report)
    assert (report.data["planned_by"], report.data["model"]) == ("model", "tiny")
    assert [section["title"] for section in report.data["sections"]] == ["Penalties", "Limits in time", "Moon"]
    assert [section["citations"] for section in report.data["sections"]] == [1, 1, 0]
    assert (report.data["claimed"], report.data["verified"]) == (4, 2)
    assert "Sundays" not in report.text
    assert "cheese" not in report.text
    assert "Nothing was found on this" in report.text.split("## Moon")[1]
    assert "](http" not in report.text
    assert "<b>" not in report.text
    assert marked.text.count("[unverified]") == 2
    assert marked.data["precision"] == report.data["precision"] == 0.5
    assert report.data["cost"]["promptTokens"] > 0
    salts = {request["cache_salt"] for request in server.requests}
    assert len(salts) == 1


async def test_where_the_models_plan_is_none_the_documents_make_it(scene: WorkflowScene) -> None:
    async with _model(scene) as (server, settings), worker(settings):
        server.reply = lambda body: ["I'd rather not."] if "response_format" in body else _writes(body)
        report = result_of(await events_of(scene))
    assert report.data["planned_by"] == "corpus"
    assert report.data["sections"][0]["title"] == "Overview"


async def test_the_caller_chooses_among_the_planned_sections_when_he_wants_to(scene: WorkflowScene) -> None:
    async with worker(scene.settings):
        events = await events_of(scene, profile="legal", confirm=True, replies=["Penalties"])
    (needs,) = [event for event in events if isinstance(event, Needs)]
    assert needs.form is not None
    assert needs.form["questions"][0]["choices"] == [
        "all of them",
        "Scope",
        "Definitions",
        "Duties",
        "Exceptions",
        "Penalties",
    ]
    report = result_of(events)
    assert [section["title"] for section in report.data["sections"]] == ["Penalties"]
    assert events[-1] == Ended(state="completed", reason=None)


async def test_only_documents_that_the_filter_leaves_are_cited(scene: WorkflowScene) -> None:
    within = {"field": "source", "eq": SOURCES[1]}
    async with worker(scene.settings):
        report = result_of(await events_of(scene, filter=within))
    assert {citation["source"] for citation in report.data["citations"]} == {SOURCES[1]}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"profile": "poetry"}, "profile"),
        ({"sections": 99}, "sections"),
        ({"unverified": "hide"}, "unverified"),
        ({"verbose": True}, "verbose"),
        ({"filter": {"field": "nonsense", "eq": 1}}, "filter.field"),
    ],
)
async def test_an_option_that_it_does_not_take_is_named_at_once(
    scene: WorkflowScene, options: dict[str, Any], named: str
) -> None:
    assert named in await scene.refusal(text(QUESTION), data(**options), skill="research")
