"""Every tool over real HTTP: what each does, what each refuses, and that none tells of another tenant or group."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import asyncpg
import pytest
from mcp.shared.exceptions import MCPError

from mcp_server.tools import TOOLS
from mcp_server.tools.put_documents import MAX_CHARS
from mcp_server.tools.tool import Tool
from rag.identity.scopes import Scope
from tests.support.mcp_scene import ERAS, McpScene, bad, good
from tests.support.mcp_tools import arguments_of
from tests.support.world import ALL_SCOPES

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
SECRET = "vinegar"
ABSENT = {"document_id": "there is no document of that id", "task_id": "there is no such task"}
TERMINATE_WAITING = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and application_name = 'test-mcp' and wait_event_type = 'Lock'
"""
NAMED = [tool for tool in TOOLS if set(ABSENT) & set(tool.declaration.input_schema["properties"])]


async def put(scene: McpScene, source: str, text: str, **more: Any) -> str:
    """Store a document whose title says nothing of it, and return its id."""
    return await scene.put("Law", source=source, text=text, **more)


@pytest.fixture(name="theirs")
async def theirs_fixture(scene: McpScene) -> dict[str, str]:
    """A document and a task of the rival's."""
    document_id = await put(
        scene, SECRET, f"The harbour's recipe is {SECRET}.", tenant=scene.rival, metadata={"tags": [SECRET]}
    )
    task = await scene.ask("delegate_task", {"message": SECRET, "context_id": SECRET}, scene.rival)
    await scene.embed()
    return {"document_id": document_id, "task_id": task["task_id"]}


async def test_no_tool_tells_one_tenant_of_another(scene: McpScene, theirs: dict[str, str]) -> None:
    absent = {name: str(uuid4()) for name in theirs}
    async with scene.client() as client, scene.client(scene.rival) as rival:
        for tool in TOOLS:
            foreign = await client.call_tool(tool.name, arguments_of(tool, theirs, query=f"harbour {SECRET}"))
            told = foreign.model_dump_json()
            # a search repeats the caller's own words
            assert SECRET not in told.replace(f"harbour {SECRET}", ""), tool.name
            if tool in NAMED:
                nowhere = await client.call_tool(tool.name, arguments_of(tool, absent, query=f"harbour {SECRET}"))
                assert told == nowhere.model_dump_json(), tool.name
                assert bad(foreign) in [("not_found", text) for text in ABSENT.values()], tool.name
            else:
                assert good(foreign), tool.name
                assert theirs["document_id"] not in told, tool.name
        # and the rival still has what it had
        assert good(await rival.call_tool("retrieve_document", {"document_id": theirs["document_id"]}))["text"]
        assert good(await rival.call_tool("task_status", {"task_id": theirs["task_id"]}))["state"] == "submitted"


async def test_every_tool_needs_its_scope(scene: McpScene) -> None:
    for scope in ALL_SCOPES:
        for era in ERAS:
            async with scene.client(scopes=ALL_SCOPES - {scope}, era=era) as client:
                listed = [tool.name for tool in (await client.list_tools()).tools]
                assert listed == [tool.name for tool in TOOLS if tool.scope is not scope]
                for tool in TOOLS:
                    if tool.scope is scope:
                        with pytest.raises(MCPError) as refused:
                            await client.call_tool(tool.name, arguments_of(tool, {}))
                        told = (refused.value.code, refused.value.message)
                        assert told == (40300, f"this needs the scope {scope.value}"), tool.name


async def test_every_tool_says_which_argument_is_wrong(scene: McpScene) -> None:
    ids = {"document_id": str(uuid4()), "task_id": str(uuid4())}
    async with scene.client() as client:
        for tool in TOOLS:
            for arguments, reason in wrong_arguments(tool, arguments_of(tool, ids)):
                code, text = bad(await client.call_tool(tool.name, arguments))
                assert (code, reason in text, len(text) < 400) == ("invalid_input", True, True), (tool.name, text)


def wrong_arguments(tool: Tool[Any], valid: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return arguments that are wrong in one thing each, and what the refusal must say."""
    schema = tool.declaration.input_schema
    fields: dict[str, dict[str, Any]] = schema["properties"]
    wrong = [({**valid, "zzz": 1}, "zzz: there is no such argument")]
    wrong += [
        ({key: value for key, value in valid.items() if key != name}, f"{name}: is required")
        for name in schema.get("required", [])
    ]
    wrong += [({**valid, name: [[]]}, name) for name in fields]
    wrong += [({**valid, name: field["maximum"] + 1}, name) for name, field in fields.items() if "maximum" in field]
    return wrong


def test_every_tool_explains_itself_to_a_model() -> None:
    for tool in TOOLS:
        declared = tool.declaration
        assert len(declared.description or "") > 80, tool.name
        assert declared.annotations is not None
        assert declared.annotations.read_only_hint is tool.read_only
        assert not (tool.read_only and tool.destructive), tool.name
        for schema in (declared.input_schema, *declared.input_schema.get("$defs", {}).values()):
            for name, field in schema["properties"].items():
                assert field.get("description"), f"{tool.name}.{name} does not say what it is for"
    assert len({tool.name for tool in TOOLS}) == len(TOOLS)


def test_the_documentation_lists_every_tool_with_its_scope_and_cost() -> None:
    rows = [line for line in (ROOT / "docs" / "tools.md").read_text().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [(name, scope, writes, cost, limit) for name, _, scope, writes, cost, limit in cells] == [
        (
            f"`{tool.name}`",
            tool.scope.value,
            "no" if tool.read_only else "yes",
            str(tool.cost),
            f"{tool.timeout_s:.0f} s",
        )
        for tool in TOOLS
    ]


HARBOUR = "The harbour master keeps the harbour and its lights."
LIGHTS = "Lighthouses and harbour lights are kept by a master."
COOKING = "Simmer the onions in butter until they are soft."


async def test_documents_like_one_are_found_by_meaning_and_never_the_document_itself(scene: McpScene) -> None:
    harbour = await put(scene, "harbour", HARBOUR, metadata={"year": 1900})
    lights = await put(scene, "lights", LIGHTS, metadata={"year": 1901})
    cooking = await put(scene, "cooking", COOKING, metadata={"year": 1902})
    await scene.embed()
    found = await scene.ask("find_similar", {"document_id": harbour})
    assert [one["document_id"] for one in found["similar"]] == [lights, cooking]
    assert (found["by"], found["degraded"], found["similar"][0]["excerpt"]) == ("meaning", [], LIGHTS)
    near, far = (one["similarity"] for one in found["similar"])
    assert 0.3 < far + 0.3 < near < 1.0
    newer = {"document_id": harbour, "filter": {"field": "metadata.year", "gt": 1901}}
    assert [one["source"] for one in (await scene.ask("find_similar", newer))["similar"]] == ["cooking"]
    assert (await scene.ask("find_similar", {"document_id": harbour, "limit": 1}))["similar"] == found["similar"][:1]


async def test_passages_like_one_come_from_the_other_documents_all_of_them(scene: McpScene) -> None:
    sections = "\n\n".join(f"# {name}\n\n{text * 12}" for name, text in (("Sea", HARBOUR), ("Kitchen", COOKING)))
    long = await put(scene, "long", sections, media_type="text/markdown")
    other = await put(scene, "other", sections.replace("harbour", "port"), media_type="text/markdown")
    await scene.embed()
    document = await scene.ask("retrieve_document", {"document_id": long, "chunk": 1})
    assert document["passages"][0]["heading"] == "Kitchen"
    asked = {"document_id": long, "chunk": 1, "of": "passages"}
    found = (await scene.ask("find_similar", asked))["similar"]
    assert {one["document_id"] for one in found} == {other}
    assert (found[0]["heading"], found[0]["similarity"]) == ("Kitchen", 1.0)
    assert len(found) == 2
    once = (await scene.ask("find_similar", {"document_id": long, "chunk": 1}))["similar"]
    assert [one["heading"] for one in once] == ["Kitchen"]
    async with scene.client() as client:
        code, text = bad(await client.call_tool("find_similar", {**asked, "chunk": 2}))
        assert (code, text) == ("invalid_input", "chunk must be 0 to 1: this document has so many passages")


async def test_while_its_vectors_are_made_words_stand_in_and_the_answer_says_so(scene: McpScene) -> None:
    lights = await put(scene, "lights", LIGHTS)
    await put(scene, "cooking", COOKING)
    await scene.embed()
    harbour = await put(scene, "harbour", HARBOUR)
    found = await scene.ask("find_similar", {"document_id": harbour})
    assert (found["by"], found["degraded"]) == ("words", ["dense"])
    assert found["similar"][0]["document_id"] == lights
    assert harbour not in str(found["similar"])
    assert {one["similarity"] for one in found["similar"]} == {None}


async def test_what_is_another_groups_is_in_no_list_no_number_and_no_likeness(scene: McpScene) -> None:
    open_id = await put(scene, "open", HARBOUR, metadata={"tags": ["sea"]})
    hidden = await put(
        scene, "hidden/harbour", HARBOUR + " Secretly.", groups=["clerks"], metadata={"tags": ["secret"]}
    )
    await scene.embed()
    async with scene.client() as client, scene.client(groups=("clerks",)) as clerk:
        for tool in ("find_similar", "retrieve_document"):
            absent = await client.call_tool(tool, {"document_id": str(uuid4())})
            assert (await client.call_tool(tool, {"document_id": hidden})).model_dump() == absent.model_dump()
        assert good(await client.call_tool("find_similar", {"document_id": open_id}))["similar"] == []
        assert len(good(await clerk.call_tool("find_similar", {"document_id": open_id}))["similar"]) == 1
        for narrowed in ({}, {"source_prefix": "hidden/"}, {"filter": {"metadata": {"tags": "secret"}}}):
            assert "hidden" not in str(good(await client.call_tool("list_documents", narrowed)))
            assert "hidden" in str(good(await clerk.call_tool("list_documents", narrowed)))
        stats = good(await client.call_tool("document_stats"))
        assert (stats["documents"], stats["tags"], stats["text_bytes"]) == (1, {"sea": 1}, len(HARBOUR))
        assert (await client.call_tool("usage")).structured_content["stored"]["documents"] == 1
        seen = good(await clerk.call_tool("document_stats"))
        assert (seen["documents"], seen["tags"]) == (2, {"sea": 1, "secret": 1})


async def test_a_passage_is_read_with_its_neighbours_and_parts_are_named_one_way_only(scene: McpScene) -> None:
    text = "\n\n".join(f"# Part {number}\n\n" + f"Sentence {number} of many." * 30 for number in range(6))
    document_id = await put(scene, "parts", text, media_type="text/markdown")
    whole = await scene.ask("retrieve_document", {"document_id": document_id})
    assert (whole["passages"], whole["next_start"], whole["text"]) == ([], None, text)
    part = await scene.ask("retrieve_document", {"document_id": document_id, "chunk": 2, "around": 1})
    assert [(one["chunk"], one["heading"]) for one in part["passages"]] == [(n, f"Part {n}") for n in (1, 2, 3)]
    assert (part["start"], part["end"]) == (part["passages"][0]["start"], part["passages"][-1]["end"])
    assert part["text"] == whole["text"][part["start"] : part["end"]]
    assert part["next_start"] == part["end"]
    edge = await scene.ask("retrieve_document", {"document_id": document_id, "chunk": 5, "around": 15})
    assert (len(edge["passages"]), edge["text"], edge["next_start"]) == (6, whole["text"], None)
    only = await scene.ask("retrieve_document", {"document_id": document_id, "chunk": 0})
    assert [one["chunk"] for one in only["passages"]] == [0]
    async with scene.client() as client:
        for wrong in (
            {"chunk": 1, "start": 0},
            {"chunk": 1, "end": 9},
            {"around": 1},
            {"chunk": 6},
            {"start": 5, "end": 5},
        ):
            code, reason = bad(await client.call_tool("retrieve_document", {"document_id": document_id, **wrong}))
            assert code == "invalid_input", wrong
            assert any(name in reason for name in wrong), reason


async def test_a_list_is_narrowed_by_filter_and_prefix_and_its_cursor_is_good_for_it_alone(scene: McpScene) -> None:
    for number in range(6):
        await put(scene, f"{'even' if number % 2 == 0 else 'odd'}/{number}", HARBOUR, metadata={"n": number})
    async with scene.client() as client:
        everything: dict[str, Any] = {"source_prefix": "even/", "filter": {"field": "metadata.n", "lt": 4}, "limit": 1}
        first = good(await client.call_tool("list_documents", everything))
        assert [one["source"] for one in first["documents"]] == ["even/0"]
        second = good(await client.call_tool("list_documents", {**everything, "cursor": first["next_cursor"]}))
        assert ([one["source"] for one in second["documents"]], second["next_cursor"]) == (["even/2"], None)
        for other in (
            {},
            {"source_prefix": "even/"},
            {"source_prefix": "odd/", "filter": everything["filter"]},
            {"source_prefix": "even/", "filter": {"field": "metadata.n", "lt": 5}},
        ):
            with pytest.raises(MCPError) as refused:
                await client.call_tool("list_documents", {**other, "cursor": first["next_cursor"]})
            assert refused.value.code == -32602
        plain = good(await client.call_tool("list_documents", {"limit": 1}))["next_cursor"]
        with pytest.raises(MCPError):
            await client.call_tool("list_documents", {**everything, "cursor": plain})
        # written in another order, it is the same filter, and the same list
        both = [{"field": "metadata.n", "lt": 4}, {"field": "source", "prefix": "even"}]
        page = good(await client.call_tool("list_documents", {"filter": {"all": both}, "limit": 1}))
        turned = {"filter": {"all": both[::-1]}, "cursor": page["next_cursor"]}
        assert [one["source"] for one in good(await client.call_tool("list_documents", turned))["documents"]] == [
            "even/2"
        ]
        recent = {"filter": {"field": "created_at", "gt": "2020-01-01"}}
        assert len(good(await client.call_tool("list_documents", recent))["documents"]) == 6
        assert bad(await client.call_tool("list_documents", {"filter": {"field": "x", "eq": 1}}))[0] == "invalid_input"
        assert good(await client.call_tool("list_documents", {"source_prefix": "%"}))["documents"] == []


async def test_of_many_documents_each_has_its_own_outcome_and_a_second_call_changes_nothing(scene: McpScene) -> None:
    await put(scene, "hidden", HARBOUR, groups=["clerks"])
    documents = [
        {"source": "a", "title": "A", "text": HARBOUR},
        {"source": "empty", "title": "E", "text": " "},
        {"source": "html", "title": "H", "text": HARBOUR, "media_type": "text/html"},
        {"source": "hidden", "title": "H", "text": HARBOUR},
        {"source": "theirs", "title": "T", "text": HARBOUR, "groups": ["judges"]},
        {"source": "z", "title": "Z", "text": LIGHTS, "metadata": {"n": 1}},
    ]
    told: list[tuple[float, float | None]] = []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total))
        assert message

    async with scene.client() as client:
        done = good(await client.call_tool("put_documents", {"documents": documents}, progress_callback=tell))
        outcomes = [(one["source"], one["outcome"], one["code"]) for one in done["results"]]
        assert outcomes == [
            ("a", "created", None),
            ("empty", "refused", "document_refused"),
            ("html", "refused", "invalid_input"),
            ("hidden", "refused", "conflict"),
            ("theirs", "refused", "forbidden"),
            ("z", "created", None),
        ]
        assert (done["stored"], done["failed"]) == (2, 4)
        assert all(one["reason"] for one in done["results"] if one["outcome"] == "refused")
        assert told == [(float(number), 6.0) for number in range(1, 7)]
        listed = good(await client.call_tool("list_documents"))["documents"]
        assert [one["source"] for one in listed] == ["a", "z"]
        again = good(await client.call_tool("put_documents", {"documents": documents[::5]}))
        assert {one["outcome"] for one in again["results"]} == {"unchanged"}
        assert again["corpus_version"] == done["corpus_version"]
        async with scene.client(era="legacy") as older:
            told.clear()
            await older.call_tool("put_documents", {"documents": documents[::5]}, progress_callback=tell)
            assert told == [(1.0, 2.0), (2.0, 2.0)]
        fresh = {"query": "lighthouses", "mode": "keyword", "min_version": done["corpus_version"]}
        assert good(await client.call_tool("hybrid_search", fresh))["hits"][0]["source"] == "z"


async def test_a_database_lost_in_the_middle_leaves_the_rest_untried_and_says_so(scene: McpScene) -> None:
    await put(scene, "b", HARBOUR)
    documents = [{"source": source, "title": "T", "text": LIGHTS} for source in ("a", "b", "c")]
    told: list[float] = []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        del total, message
        told.append(progress)

    found: list[dict[str, Any]] = []

    async def call() -> None:
        async with scene.client() as client:
            done = await client.call_tool("put_documents", {"documents": documents}, progress_callback=tell)
            found.append(good(done))

    holder = await asyncpg.connect(scene.world.superuser_url)
    observer = await asyncpg.connect(scene.world.superuser_url)
    try:
        async with holder.transaction():
            await holder.execute("select 1 from rag.document where source = 'b' for update")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                while not await observer.fetch(TERMINATE_WAITING):  # noqa: ASYNC110  # the server's activity has no event
                    await anyio.sleep(0.02)
    finally:
        await holder.close()
        await observer.close()
    outcomes = [(one["source"], one["outcome"], one["code"]) for one in found[0]["results"]]
    assert outcomes == [("a", "created", None), ("b", "not_tried", "unavailable"), ("c", "not_tried", None)]
    assert (found[0]["stored"], found[0]["failed"]) == (1, 2)
    assert all(one["reason"] for one in found[0]["results"][1:])
    assert told == [1.0, 2.0]
    again = await scene.ask("put_documents", {"documents": documents})
    assert [one["outcome"] for one in again["results"]] == ["unchanged", "updated", "created"]


async def test_too_many_too_long_or_twice_the_same_is_refused_before_anything_is_stored(scene: McpScene) -> None:
    one = {"source": "a", "title": "A", "text": HARBOUR}
    async with scene.client() as client:
        for documents, reason in (
            ([], "at least 1"),
            ([{**one, "source": str(number)} for number in range(51)], "at most 50"),
            ([one, {**one, "source": "b", "text": "x" * MAX_CHARS}], "together"),
            ([one, {**one, "source": "é"}, {**one, "source": "e\u0301"}], "documents.1 and documents.2"),
            ([one, {"source": "b"}], "documents.1.title"),
        ):
            code, text = bad(await client.call_tool("put_documents", {"documents": documents}))
            assert (code, reason in text) == ("invalid_input", True), text
        assert good(await client.call_tool("document_stats"))["documents"] == 0


async def test_a_collection_is_counted_in_full(scene: McpScene) -> None:
    await put(scene, "a", HARBOUR, metadata={"tags": ["sea", "law", 5]})
    await put(scene, "b", "Größe", metadata={"tags": "sea"})
    await scene.embed()
    long = await put(
        scene, "c", f"# C\n\n{HARBOUR * 40}", media_type="text/markdown", metadata={"tags": {"not": "any"}}
    )
    stats = await scene.ask("document_stats", {})
    assert (stats["documents"], stats["embeddings_pending"], stats["corpus_version"]) == (3, 1, 3)
    assert stats["text_bytes"] == len(HARBOUR) + len("Größe".encode()) + len(f"# C\n\n{HARBOUR * 40}")
    assert stats["chunks"] == 2 + stats["largest"][0]["chunks"] > 3
    assert stats["media_types"] == {"text/plain": 2, "text/markdown": 1}
    assert list(stats["tags"].items()) == [("sea", 2), ("law", 1)]
    assert (stats["language"], stats["embedding_dimension"]) == ("english", 384)
    assert "MiniLM" in stats["embedding_model"]
    assert [one["source"] for one in stats["largest"]] == ["c", "a", "b"]
    assert (stats["newest"][0]["document_id"], stats["newest"][0]["source"]) == (long, "c")
    empty = await scene.ask("document_stats", {}, scene.rival)
    assert (empty["documents"], empty["chunks"], empty["largest"], empty["tags"]) == (0, 0, [], {})


async def test_usage_tells_the_limits_what_is_stored_and_ones_own_tasks(scene: McpScene) -> None:
    await put(scene, "a", HARBOUR)
    async with scene.client() as client:
        await client.call_tool("delegate_task", {"message": "Who keeps the lights?"})
        before = good(await client.call_tool("usage"))
        canceled = good(await client.call_tool("delegate_task", {"message": "Never mind."}))["task_id"]
        await client.call_tool("cancel_task", {"task_id": canceled})
        after = good(await client.call_tool("usage"))
    assert before["tasks"] == {"by_state": {"submitted": 1}, "started_this_month": 1}
    assert after["tasks"] == {"by_state": {"canceled": 1, "submitted": 1}, "started_this_month": 2}
    assert before["stored"] == {"documents": 1, "chunks": 1, "text_bytes": len(HARBOUR)}
    assert before["tier"]
    for standing in (before["organisation"], before["user"]):
        assert 0 < standing["remaining"] <= standing["burst"]
        assert 1 <= standing["running"] <= standing["concurrency"]
    other = await scene.ask("usage", {}, user="bob")
    assert other["tasks"] == {"by_state": {}, "started_this_month": 0}


async def test_a_tools_documents_are_named_for_the_audit_trail(scene: McpScene) -> None:
    """The ids are what the structured results hold; the trail itself has tests of its own."""
    document_id = await put(scene, "a", HARBOUR)
    other = await put(scene, "b", LIGHTS)
    await scene.embed()
    for tool in TOOLS:
        if tool.name in {"find_similar", "list_documents", "document_stats", "retrieve_document"}:
            output = tool.output.model_validate(
                await scene.ask(tool.name, arguments_of(tool, {"document_id": document_id}, limit=5))
            )
            used = {"find_similar": {other}, "retrieve_document": {document_id}}.get(tool.name, {document_id, other})
            assert set(output.documents_used()) == used, tool.name


async def test_the_likeness_of_a_tenant_without_a_settled_model_is_asked_of_the_default_one(scene: McpScene) -> None:
    """Before its first vector a tenant has no model; with another one, its vectors are that one's."""
    harbour = await put(scene, "harbour", HARBOUR)
    await put(scene, "lights", LIGHTS)
    await scene.embed()
    admin = await asyncpg.connect(scene.world.superuser_url)
    await admin.execute("update rag.tenant set model_id = null where tenant_id = $1", scene.acme.tenant_id)
    await admin.close()
    assert (await scene.ask("find_similar", {"document_id": harbour}))["by"] == "meaning"


async def test_admin_is_no_scope_that_opens_tools(scene: McpScene) -> None:
    async with scene.client(scopes=frozenset({Scope.ADMIN})) as client:
        assert (await client.list_tools()).tools == []
