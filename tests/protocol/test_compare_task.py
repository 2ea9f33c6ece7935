"""The workflow `compare` end to end: what it quotes is what is stored, and what it cannot do it says."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest

from tests.support.agents import worker
from tests.support.openai_server import serve_openai
from tests.support.served import served_at
from tests.support.workflow_scene import Ended, WorkflowScene, data, text, with_new_tenant, workflow_scene
from tests.support.world import Cluster, World, world

pytestmark = pytest.mark.anyio
OLD = (
    "# Leave policy\n\nEvery employee may take leave.\n\n## Annual leave\n\n"
    "An employee receives twenty days of annual leave in each calendar year. "
    "Days that are not taken expire in March of the next year.\n\n"
    "## Unpaid leave\n\nUnpaid leave of up to three months is granted by the head of the department.\n\n"
    "## Typewriters\n\nTypewriters are returned to the storeroom before a leave begins.\n"
)
NEW = (
    "# Leave policy\n\nEvery employee may take leave.\n\n## Annual leave\n\n"
    "An employee receives twenty-five days of annual leave in each calendar year. "
    "Days that are not taken expire in March of the next year.\n\n"
    "## Unpaid leave\n\nUnpaid leave of up to six months is granted by the head of the department.\n\n"
    "## Remote work\n\nWork from another country needs the approval of the tax office.\n"
)
THIRD = "The canteen opens at noon. Every employee may take leave."


@pytest.fixture(scope="module", name="stage")
async def stage_fixture(cluster: Cluster) -> AsyncGenerator[WorkflowScene]:
    """The servers for all tests of the file."""
    async with world(cluster) as own, workflow_scene(own) as stage:
        yield stage


@pytest.fixture(name="scene")
async def scene_fixture(stage: WorkflowScene) -> WorkflowScene:
    """A tenant of the test's own with three documents; no worker yet."""
    scene = await with_new_tenant(stage)
    documents = [
        {"source": "leave-2023.md", "title": "Leave 2023", "text": OLD, "media_type": "text/markdown"},
        {"source": "leave-2024.md", "title": "Leave 2024", "text": NEW, "media_type": "text/markdown"},
        {"source": "canteen.txt", "title": "Canteen", "text": THIRD},
    ]
    await scene.tool("put_documents", {"documents": documents})
    return scene


TEXTS = {"leave-2023.md": OLD, "leave-2024.md": NEW, "canteen.txt": THIRD}


def _assert_stored(quote: Mapping[str, Any], texts: Mapping[str, str] = TEXTS) -> None:
    start, end = int(quote["start"]), int(quote["end"])
    assert texts[quote["source"]][start:end] == quote["quote"]
    assert quote["quote_sha256"] == hashlib.sha256(quote["quote"].encode()).hexdigest()
    assert quote["verified"] is True


def _comparison(ended: Ended) -> tuple[str, dict[str, Any]]:
    assert ended.state == "COMPLETED", ended.told
    return ended.artifacts["comparison"]


async def test_two_documents_are_put_side_by_side_sentence_by_sentence(scene: WorkflowScene) -> None:
    async with worker(scene.settings):
        ended = await scene.run(data(documents=["leave-2023.md", "leave-2024.md"]), skill="compare")
    markdown, found = _comparison(ended)
    (pair,) = found["pairs"]
    counts = {name: pair[name] for name in ("same", "changed", "moved", "only_base", "only_other", "left_out")}
    assert counts == {"same": 2, "changed": 2, "moved": 0, "only_base": 1, "only_other": 1, "left_out": 0}
    changed = [change for change in pair["changes"] if change["kind"] == "changed"]
    assert [change["section"] for change in changed] == [
        "Leave policy › Annual leave",
        "Leave policy › Unpaid leave",
    ]
    for change in pair["changes"]:
        for quote in (change["base"], change["other"]):
            if quote is not None:
                _assert_stored(quote)
    assert "~~three~~" in markdown
    assert "**six**" in markdown
    assert "| Leave policy › Typewriters | — | 0 | 1 only in A |" in markdown
    assert "| — | Leave policy › Remote work | 0 | 1 only in B |" in markdown
    assert found["documents"][0]["read"] == found["documents"][0]["characters"] == len(OLD)
    assert (found["summary"], found["answerer"], found["model"]) == (None, "extractive", None)
    assert "A and B: of the sentences 2 are the same, 2 changed, 0 moved, 1 only in A, 1 only in B" in ended.statuses


async def test_documents_are_named_by_id_as_well_and_the_others_are_compared_to_the_first(scene: WorkflowScene) -> None:
    ids = {source: one["document_id"] for source, one in (await scene.documents()).items()}
    named = [ids["canteen.txt"], "leave-2023.md", ids["leave-2024.md"]]
    async with worker(scene.settings):
        _, found = _comparison(await scene.run(data(documents=named), skill="compare"))
    assert [one["source"] for one in found["documents"]] == ["canteen.txt", "leave-2023.md", "leave-2024.md"]
    assert [(pair["base"], pair["other"]) for pair in found["pairs"]] == [
        (ids["canteen.txt"], ids["leave-2023.md"]),
        (ids["canteen.txt"], ids["leave-2024.md"]),
    ]
    # one sentence stands in all three, under a heading in two of them
    assert all(pair["same"] + pair["moved"] == 1 for pair in found["pairs"])


async def test_by_aspect_each_document_says_what_it_says_with_verified_citations(scene: WorkflowScene) -> None:
    options = data(
        documents=["leave-2023.md", "leave-2024.md", "canteen.txt"],
        aspects=["How long may unpaid leave be?", "Who approves work from another country?"],
    )
    async with worker(scene.settings):
        markdown, found = _comparison(await scene.run(options, skill="compare"))
    unpaid, remote = found["aspects"]
    assert "three months" in unpaid["cells"][0]["text"]
    assert "six months" in unpaid["cells"][1]["text"]
    assert "six months" not in unpaid["cells"][0]["text"]
    assert "tax office" in remote["cells"][1]["text"]
    assert remote["cells"][0] is None or "tax office" not in remote["cells"][0]["text"]
    numbers = [int(one["n"]) for one in found["citations"]]
    assert numbers == list(range(1, len(numbers) + 1))
    for citation in found["citations"]:
        _assert_stored(citation)
    for n in numbers:
        assert f"[{n}]" in markdown
    assert "says nothing of it" in markdown


async def test_a_question_chooses_the_documents_within_a_filter(scene: WorkflowScene) -> None:
    only = {"field": "source", "prefix": "leave"}
    async with worker(scene.settings):
        asked = (text("How long may unpaid leave be?"), data(filter=only, count=2))
        _, found = _comparison(await scene.run(*asked, skill="compare"))
        too_few = await scene.run(
            text("How long may unpaid leave be?"),
            data(filter={"field": "source", "eq": "canteen.txt"}),
            skill="compare",
        )
    assert {one["source"] for one in found["documents"]} == {"leave-2023.md", "leave-2024.md"}
    assert [row["aspect"] for row in found["aspects"]] == ["How long may unpaid leave be?"]
    assert too_few.state == "FAILED"
    assert "a comparison takes two" in too_few.told


async def test_an_older_version_is_not_made_up(scene: WorkflowScene) -> None:
    await scene.tool("put_document", {"source": "canteen.txt", "title": "Canteen", "text": "It opens at one o'clock."})
    async with worker(scene.settings):
        versions = [{"document": "canteen.txt", "version": n} for n in (1, 2)]
        mixed = await scene.run(data(documents=[versions[0], "leave-2023.md"]), skill="compare")
        latest = await scene.run(data(documents=[versions[1], "leave-2023.md"]), skill="compare")
        ids = {source: one["document_id"] for source, one in (await scene.documents()).items()}
        twice = await scene.run(data(documents=["canteen.txt", ids["canteen.txt"]]), skill="compare")
    assert mixed.state == "FAILED"
    assert "version 1 of 'canteen.txt' is not stored" in mixed.told
    assert "here version 2" in mixed.told
    assert _comparison(latest)[1]["documents"][0]["version"] == 2
    assert twice.state == "FAILED"
    assert "is named twice" in twice.told
    assert "only the latest version" in await scene.refusal(data(documents=versions), skill="compare")


async def test_another_tenants_document_is_no_document(scene: WorkflowScene) -> None:
    rival = await scene.world.tenant("rival")
    other = dataclasses.replace(scene, acme=rival)
    await other.tool("put_document", {"source": "secret.txt", "title": "Secret", "text": "Nobody else may read this."})
    (hidden,) = (await other.documents()).values()
    async with worker(scene.settings):
        for name in ("secret.txt", hidden["document_id"]):
            ended = await scene.run(data(documents=["canteen.txt", name]), skill="compare")
            assert (ended.state, ended.artifacts) == ("FAILED", {})
            assert "there is no document of the id or source" in ended.told


async def test_of_a_very_long_document_it_says_what_was_not_compared(world: World) -> None:
    long = " ".join(f"Sentence number {n} of a very long document stands here." for n in range(5_000))
    other = long.replace("number 17 of", "number seventeen of")
    documents = [{"source": f"{name}.txt", "title": name, "text": words} for name, words in (("a", long), ("b", other))]
    # in a database of its own: nobody waits for the vectors of so many chunks
    async with workflow_scene(world) as scene, worker(scene.settings):
        await scene.tool("put_documents", {"documents": documents})
        markdown, found = _comparison(await scene.run(data(documents=["a.txt", "b.txt"]), skill="compare"))
    assert [one["read"] for one in found["documents"]] == [200_000, 200_000]
    assert f"the first 200,000 of {len(long):,}; the rest was not compared" in markdown
    (pair,) = found["pairs"]
    (change, *_) = pair["changes"]
    _assert_stored(change["other"], {"b.txt": other})
    assert "number seventeen" in change["other"]["quote"]


async def test_a_models_summary_shows_only_what_the_stored_words_bear_out(scene: WorkflowScene) -> None:
    pieces = (
        'Unpaid leave was "up to three months is granted by the head of the department" [3]. ',
        'It is now "granted for one hundred years by the moon" [4].',
    )
    markdown, found = await _summarized(scene, *pieces)
    assert (found["answerer"], found["model"]) == ("model", "tiny")
    assert found["summary"]["text"] == f"{pieces[0].replace('[3]', '[1]').strip()}"
    assert (found["summary"]["claimed"], found["summary"]["verified"]) == (2, 1)
    (citation,) = found["citations"]
    _assert_stored(citation)
    assert (citation["source"], citation["n"]) == ("leave-2023.md", 1)
    assert "hundred years" not in markdown
    markdown, found = await _summarized(scene, pieces[1])
    assert "none is shown" in markdown
    assert found["citations"] == []


@pytest.mark.parametrize("then", ["deleted", "changed"])
async def test_what_is_no_longer_there_when_the_task_goes_on_is_not_quoted(scene: WorkflowScene, then: str) -> None:
    async with serve_openai() as server:
        server.pieces, server.prompt_tokens = ('It says "Every employee may take leave" [1].',), 250_000
        settings = dataclasses.replace(scene.settings, **served_at(server.base_url, "tiny"))
        async with worker(settings):
            asked = data(documents=["leave-2023.md", "leave-2024.md"], aspects=["leave", "unpaid leave"])
            task = await scene.send(asked, skill="compare")
            assert (await scene.follow(task)).state == "INPUT_REQUIRED"  # whether it may cost more
            found = (await scene.documents())["leave-2023.md"]
            if then == "deleted":
                await scene.tool("delete_document", {"document_id": found["document_id"]})
            else:
                again = {"source": "leave-2023.md", "title": "Leave 2023", "text": "Nothing."}
                await scene.tool("put_document", {**again, "media_type": "text/plain"})
            server.prompt_tokens = 1
            ended = await scene.follow(await scene.send(text("yes"), to=task))
    assert ended.state == "FAILED"
    assert not any(found for _, found in ended.artifacts.values())  # the draft of a summary, and no quote
    assert "leave-2023.md" in ended.told


async def _summarized(scene: WorkflowScene, *pieces: str) -> tuple[str, dict[str, Any]]:
    async with serve_openai() as server:
        server.pieces = pieces
        settings = dataclasses.replace(scene.settings, **served_at(server.base_url, "tiny"))
        async with worker(settings):
            return _comparison(await scene.run(data(documents=["leave-2023.md", "leave-2024.md"]), skill="compare"))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "documents"),
        ({"documents": ["one"]}, "documents"),
        ({"documents": [str(n) for n in range(6)]}, "documents"),
        ({"documents": ["one", ""]}, "documents.1"),
        ({"documents": ["one", "two"], "filter": {"field": "source", "eq": "x"}}, "filter"),
        ({"documents": ["one", "two"], "aspects": ["x"] * 9}, "aspects"),
        ({"documents": ["one", "two"], "colour": "red"}, "colour"),
        ({"documents": ["one", "two"], "unverified": "show"}, "unverified"),
    ],
)
async def test_what_cannot_be_compared_is_refused_at_the_door(
    scene: WorkflowScene, options: dict[str, Any], field: str
) -> None:
    assert (await scene.refusal(data(**options), skill="compare")).startswith(field)
