"""Completion over real HTTP: what is suggested, how much of it, and for whom it does not exist."""

from __future__ import annotations

from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.client import Client
from mcp_types import Completion, PromptReference, ResourceTemplateReference

from mcp_server.prompts import PROMPTS
from mcp_server.prompts.grounded_answer import STYLES
from mcp_server.resources import TEMPLATES
from mcp_server.suggestions import MAX_VALUES, _numbers, _uuids  # pyright: ignore[reportPrivateUsage]
from rag.corpus.titles import MAX_LOOKED_AT, titles_from
from rag.identity.scopes import Scope
from sql import Query, load_queries
from tests.support.mcp_scene import ERAS, Era, McpScene, mcp_scene, refused
from tests.support.world import Cluster, world

pytestmark = pytest.mark.anyio
DOCUMENT, CHUNK, ARTIFACT = (ResourceTemplateReference(uri=template.uri) for template in TEMPLATES)
COMPARE = PromptReference(name="compare_sources")
ANSWER = PromptReference(name="grounded_answer")
BRIEF = PromptReference(name="research_brief")
MANY = """
    insert into rag.document (
        tenant_id, document_id, source, title, media_type, content_hash, text, chunks, ordinal, audience
    )
    select $1::uuid, md5($1::text || n)::uuid, $2 || n, $2 || lpad(n::text, 5, '0'), 'text/plain', '', 'ships', 0,
        hashtext($1::text) * 100000::bigint - n, 0
    from generate_series(1, $3::integer) n
"""


async def asked(
    client: Client,
    ref: PromptReference | ResourceTemplateReference,
    name: str,
    typed: str,
    **others: str,
) -> Completion:
    """Return what is suggested."""
    return (await client.complete(ref, {"name": name, "value": typed}, others or None)).completion


async def values(
    client: Client,
    ref: PromptReference | ResourceTemplateReference,
    name: str,
    typed: str,
    **others: str,
) -> list[str]:
    """Return the suggested values, which must be all."""
    completion = await asked(client, ref, name, typed, **others)
    assert completion.total == len(completion.values)
    assert completion.has_more is False
    return completion.values


@pytest.mark.parametrize("era", ERAS)
async def test_titles_are_completed_from_their_beginning_whatever_the_letter_case(scene: McpScene, era: Era) -> None:
    ids = {
        title: await scene.put(title)
        for title in ("Harbour rules", "harbour FEES", "Éclair", "The harbour", "100% sure", "100 ducats", "a_b", "axb")
    }
    async with scene.client(era=era) as client:
        assert client.server_capabilities is not None
        assert client.server_capabilities.completions is not None
        assert await values(client, COMPARE, "document_a", "HARB") == ["harbour FEES", "Harbour rules"]
        assert await values(client, COMPARE, "document_b", "harbour  r") == ["Harbour rules"]
        assert await values(client, COMPARE, "document_a", "éc") == ["Éclair"]
        assert await values(client, COMPARE, "document_a", "e\u0301C") == ["Éclair"]
        # wildcards of LIKE and regular expressions are characters
        assert await values(client, COMPARE, "document_a", "100%") == ["100% sure"]
        assert await values(client, COMPARE, "document_a", "a_") == ["a_b"]
        for nothing in ("%", "_", "%harbour", "harbour%", "h.*", "\\", "'", "arbour", "x" * 1_000, "\ud7ff", "*"):
            assert await values(client, COMPARE, "document_a", nothing) == [], nothing
        everything = await values(client, COMPARE, "document_a", "")
        assert everything == sorted(ids, key=str.lower)
        assert await values(client, COMPARE, "document_a", "") == everything
        assert await values(client, DOCUMENT, "id", "harb") == [ids["harbour FEES"], ids["Harbour rules"]]
        assert await values(client, CHUNK, "id", "éclair") == [ids["Éclair"]]


async def test_an_id_is_completed_from_four_characters_on(scene: McpScene) -> None:
    document_id = await scene.put("Harbour")
    await scene.put("Other")
    async with scene.client() as client:
        for typed in (document_id[:4], document_id[:12], document_id.upper(), document_id):
            assert await values(client, DOCUMENT, "id", typed) == [document_id]
            assert await values(client, COMPARE, "document_a", typed) == [document_id]
        assert document_id not in await values(client, DOCUMENT, "id", document_id[:3])
        for typed in (document_id.replace("-", ""), document_id + "0", f"{{{document_id}}}", document_id[:8] + "%"):
            assert await values(client, DOCUMENT, "id", typed) == []


async def test_passages_are_counted_out_once_the_document_is_known(scene: McpScene) -> None:
    long = await scene.put(
        "Log", text="".join(f"# Day {day}\n\nA ship.\n\n" for day in range(120)), media_type="text/markdown"
    )
    theirs = await scene.put("Theirs", tenant=scene.rival)
    hidden = await scene.put("Hidden", groups=("board",))
    async with scene.client() as client:
        read = await client.read_resource(f"bulkhead://documents/{long}")
        assert read.contents[0].meta is not None
        count = int(read.contents[0].meta["bulkhead/chunks"])
        completion = await asked(client, CHUNK, "n", "", id=long)
        assert completion.values == [str(number) for number in range(min(count, MAX_VALUES))]
        assert completion.total == count
        expected = [str(number) for number in range(count) if str(number).startswith("1")]
        assert await values(client, CHUNK, "n", "1", id=long) == expected
        assert await values(client, CHUNK, "n", "0", id=long) == ["0"]
        for typed in ("00", "-1", "x", "٣", "9" * 5_000, " "):
            assert await values(client, CHUNK, "n", typed, id=long) == []
        for nobody in (theirs, hidden, str(uuid4()), "", "x", long.replace("-", "")):
            assert await values(client, CHUNK, "n", "", id=nobody) == []
        assert await values(client, CHUNK, "n", "") == []


@pytest.mark.parametrize("era", ERAS)
async def test_tasks_and_their_artifacts_are_completed_within_the_tenant(scene: McpScene, era: Era) -> None:
    first = await scene.artifact("answer", [{"text": "a"}, {"text": "b"}])
    second = await scene.artifact("Appendix", [{"text": "a"}])
    theirs = await scene.artifact("answer", [{"text": "a"}], tenant=scene.rival)
    async with scene.client(era=era) as client:
        assert await values(client, ARTIFACT, "id", "") == [second, first]
        assert await values(client, ARTIFACT, "id", first[:9]) == [first]
        assert await values(client, ARTIFACT, "id", theirs[:9]) == []
        assert await values(client, ARTIFACT, "id", "harbour") == []
        assert await values(client, ARTIFACT, "name", "A", id=second) == ["Appendix"]
        assert await values(client, ARTIFACT, "name", "", id=first) == ["answer"]
        assert await values(client, ARTIFACT, "name", "x", id=first) == []
        assert await values(client, ARTIFACT, "name", "", id=theirs) == []
        assert await values(client, ARTIFACT, "name", "") == []


async def test_fixed_lists_and_free_texts(scene: McpScene) -> None:
    async with scene.client() as client:
        assert await values(client, ANSWER, "style", "") == list(STYLES)
        assert await values(client, ANSWER, "style", "DE") == ["detailed"]
        assert await values(client, BRIEF, "audience", "b") == ["board"]
        assert await values(client, ANSWER, "question", "why") == []
        assert len(await values(client, BRIEF, "sections", "")) == 1


async def test_tags_are_completed_from_the_metadata_that_one_may_read(scene: McpScene) -> None:
    await scene.put("One", metadata={"tags": ["Sea law", "sea", 5, None, {"a": "b"}, ""]})
    await scene.put("Two", metadata={"tags": "seaside"})
    await scene.put("Three", metadata={"other": ["seat"]})
    await scene.put("Hidden", metadata={"tags": ["secret sea"]}, groups=("board",))
    await scene.put("Theirs", metadata={"tags": ["sea monster"]}, tenant=scene.rival)
    async with scene.client() as client:
        assert await values(client, ANSWER, "tag", "SEA") == ["sea", "Sea law", "seaside"]
        assert await values(client, BRIEF, "tag", "sea%") == []
        assert await values(client, ANSWER, "tag", "secret") == []
    async with scene.client(groups=("board",)) as client:
        assert await values(client, ANSWER, "tag", "se") == ["sea", "Sea law", "seaside", "secret sea"]


async def test_titles_of_others_neither_appear_nor_count(scene: McpScene) -> None:
    own = await scene.put("Harbour rules")
    for number in range(3):
        await scene.put(f"Harbour secret {number}", groups=("board",))
        await scene.put(f"Harbour rival {number}", tenant=scene.rival)
    async with scene.client() as client:
        for typed in ("", "harbour", "harbour r"):
            assert await values(client, COMPARE, "document_a", typed) == ["Harbour rules"]
            assert await values(client, DOCUMENT, "id", typed) == [own]
        assert await values(client, COMPARE, "document_a", "harbour s") == []
    async with scene.client(groups=("board",)) as client:
        assert len(await values(client, COMPARE, "document_a", "harbour s")) == 3


async def test_at_most_a_hundred_values_come_back_and_the_rest_is_counted_or_said_to_be(scene: McpScene) -> None:
    admin = await asyncpg.connect(scene.world.superuser_url)
    await admin.execute(MANY, scene.acme.tenant_id, "Ship ", 150)
    await admin.execute(MANY, scene.rival.tenant_id, "Ship ", MAX_LOOKED_AT + 1)
    await admin.close()
    async with scene.client() as client:
        completion = await asked(client, COMPARE, "document_a", "ship")
        assert completion.values == [f"Ship {number:05}" for number in range(1, 101)]
        assert (completion.total, completion.has_more) == (150, True)
        assert (await asked(client, COMPARE, "document_a", "ship")).values == completion.values
        for _ in range(3):
            await scene.put("Ship 00001")
        assert (await asked(client, COMPARE, "document_a", "ship")).values == completion.values
    async with scene.client(tenant=scene.rival) as client:
        completion = await asked(client, DOCUMENT, "id", "ship")
        assert (len(set(completion.values)), completion.total, completion.has_more) == (100, None, True)


@pytest.mark.parametrize("era", ERAS)
async def test_what_cannot_be_completed_is_refused(scene: McpScene, era: Era) -> None:
    unknown = [
        PromptReference(name="nothing"),
        PromptReference(name="n" * 10_000),
        ResourceTemplateReference(uri="bulkhead://documents/" + str(uuid4())),
        ResourceTemplateReference(uri="bulkhead://documents/{ID}"),
        ResourceTemplateReference(uri="file:///{path}"),
        ResourceTemplateReference(uri=""),
    ]
    async with scene.client(era=era) as client:
        for ref in unknown:
            with refused(-32602) as error:
                await asked(client, ref, "id", "")
            assert error.value.message.startswith("Unknown ref")
        for ref, name, names in ((DOCUMENT, "n", "id"), (ANSWER, "", "question, style, tag")):
            with refused(-32602) as error:
                await asked(client, ref, name, "")
            assert error.value.message.endswith(f"these arguments and no others: {names}")


async def test_without_the_scope_nothing_is_completed(scene: McpScene) -> None:
    await scene.put("Harbour")
    for era in ERAS:
        async with scene.client(era=era, scopes=frozenset({Scope.TASKS_RUN})) as client:
            for ref, name in ((COMPARE, "document_a"), (ANSWER, "style"), (DOCUMENT, "id")):
                with refused(40300) as error:
                    await asked(client, ref, name, "")
                assert error.value.message == "this needs the scope corpus:read"
            assert await values(client, ARTIFACT, "id", "") == []
        async with scene.client(era=era, scopes=frozenset({Scope.CORPUS_READ})) as client:
            with refused(40300):
                await asked(client, ARTIFACT, "id", "")


async def test_completion_is_limited_like_everything(cluster: Cluster) -> None:
    # a burst of ten seconds' worth: three requests
    async with world(cluster) as own, mcp_scene(own, request_limit_per_minute=18) as scene, scene.client() as client:
        with refused(42900) as error:
            for _ in range(5):
                await asked(client, ANSWER, "style", "")
        assert error.value.data["retryAfterMs"] > 0


async def test_every_value_that_can_be_completed_has_a_way(scene: McpScene) -> None:
    async with scene.client() as client:
        for prompt in PROMPTS:
            for argument in prompt.arguments:
                assert (await asked(client, PromptReference(name=prompt.name), argument.name, "")).values is not None
        for template in TEMPLATES:
            for variable in template.completers:
                await asked(client, ResourceTemplateReference(uri=template.uri), variable, "")


async def test_titles_are_found_through_their_index_among_many(scene: McpScene) -> None:
    admin = await asyncpg.connect(scene.world.superuser_url)
    await admin.execute(MANY, scene.acme.tenant_id, "Ship ", 20_000)
    await admin.execute(MANY, scene.rival.tenant_id, "Ship ", 20_000)
    await admin.execute("vacuum analyze rag.document")
    query = load_queries("corpus")["titles_from"]
    explained = Query(
        name="explained",
        description="",
        text=f"explain (analyze, format json) {query.text}",
        parameters=query.parameters,
    )
    principal = scene.principal()
    for prefix, wanted in (("ship 0", MAX_LOOKED_AT), ("ship 19999", 1), ("shop", 0)):
        assert len(await titles_from(scene.server.runtime.database, principal, prefix)) == wanted
        async with scene.server.runtime.database.tenant(principal) as session:
            plan = orjson.loads(
                await session.fetch_value(explained, tenant_id=principal.tenant_id, prefix=prefix, wanted=MAX_LOOKED_AT)
            )[0]["Plan"]
        nodes = [plan]
        for node in nodes:
            nodes += node.get("Plans", [])
        (access,) = [node for node in nodes if node.get("Index Name") == "document_by_title"]
        assert "title_key" in access["Index Cond"]
        assert access["Actual Rows"] <= MAX_LOOKED_AT
        assert not any(node["Node Type"] == "Seq Scan" for node in nodes)
    await admin.close()


@given(count=st.integers(0, 3_000), typed=st.text("0123456789", max_size=4))
@settings(max_examples=200, deadline=None)
def test_numbers_are_those_whose_digits_begin_so(count: int, typed: str) -> None:
    assert list(_numbers(typed, count)) == sorted(number for number in range(count) if str(number).startswith(typed))


@given(identity=st.uuids(), length=st.integers(1, 36))
@settings(max_examples=200, deadline=None)
def test_ids_that_begin_so_lie_between_two(identity: UUID, length: int) -> None:
    between = _uuids(str(identity)[:length])
    assert between is not None
    assert between[0] <= identity <= between[1]
    assert str(between[0])[:length] == str(between[1])[:length] == str(identity)[:length]
