"""Resources over real HTTP: what is listed and read in both revisions, and what is not there for whom."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import anyio
import asyncpg
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import PromptReference, TextResourceContents

from mcp_server.resources import TEMPLATES, find_resource
from mcp_server.resources.artifacts import ARTIFACT, MAX_DATA_BYTES
from mcp_server.resources.documents import CHUNK, DOCUMENT
from mcp_server.resources.handlers import PAGE
from rag.corpus.store import MAX_PART_CHARS
from rag.identity import cursors
from rag.identity.scopes import Scope
from tests.support.mcp_scene import ERAS, Era, McpScene, mcp_scene, refused
from tests.support.mcp_wire import LEGACY, MODERN, answered
from tests.support.world import Cluster, world

pytestmark = pytest.mark.anyio
TEXT = "# Harbour\n\nA ship in the harbour gives notice.\n\n## Fees\n\nThe fee is ten ducats.\n"
LONG = "".join(f"# Day {day}\n\n{'A ship lay in the harbour. ' * 20}\n\n" for day in range(8))
NOT_FOUND: dict[Era, int] = {"auto": -32602, "legacy": -32002}
READER = frozenset({Scope.CORPUS_READ})
RUNNER = frozenset({Scope.TASKS_RUN})


async def read(client: Client, uri: str) -> list[TextResourceContents]:
    """Return what a resource holds."""
    contents = (await client.read_resource(uri)).contents
    assert all(isinstance(one, TextResourceContents) for one in contents)
    return [one for one in contents if isinstance(one, TextResourceContents)]


async def read_raw(scene: McpScene, uri: str, *, revision: str = LEGACY) -> dict[str, Any]:
    """Return the answer to a read of any URI: a client's library would not send some."""
    response = await scene.send("resources/read", {"uri": uri}, revision=revision)
    assert response.status_code < 500, (uri, response.text)
    return answered(response)


async def listed(client: Client) -> list[str]:
    """Return the sources on all pages."""
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await client.list_resources(cursor=cursor)
        seen += [resource.name for resource in page.resources]
        cursor = page.next_cursor
        if cursor is None:
            return seen


@pytest.mark.parametrize("era", ERAS)
async def test_a_document_is_listed_and_read_with_its_type_size_and_age(scene: McpScene, era: Era) -> None:
    document_id = await scene.put("Harbour däues", text=TEXT, source="law/harbour.md", media_type="text/markdown")
    async with scene.client(era=era) as client:
        assert client.server_capabilities is not None
        capabilities = client.server_capabilities.model_dump(exclude_none=True, by_alias=True)
        assert capabilities["resources"] == {"listChanged": False, "subscribe": False}
        assert "logging" not in capabilities
        (resource,) = (await client.list_resources()).resources
        assert (resource.uri, resource.name) == (f"bulkhead://documents/{document_id}", "law/harbour.md")
        assert (resource.title, resource.mime_type) == ("Harbour däues", "text/markdown")
        assert resource.size == len(TEXT.encode())
        assert resource.annotations is not None
        assert resource.annotations.last_modified is not None
        changed = datetime.fromisoformat(resource.annotations.last_modified)
        (text,) = await read(client, resource.uri)
        assert (text.uri, text.mime_type, text.text) == (resource.uri, "text/markdown", TEXT)
        assert text.meta is not None
        assert datetime.fromisoformat(text.meta["bulkhead/updatedAt"]) == changed
        assert (text.meta["bulkhead/start"], text.meta["bulkhead/end"]) == (0, len(TEXT))
        assert "bulkhead/nextStart" not in text.meta


@pytest.mark.parametrize("era", ERAS)
async def test_templates_name_every_kind_and_read_by_their_own_expansion(scene: McpScene, era: Era) -> None:
    document_id = await scene.put("Harbour", text=LONG, media_type="text/markdown")
    task_id = await scene.artifact("the answer/50 %", [{"text": "Ten "}, {"text": "ducats."}, {"data": {"n": 1}}])
    async with scene.client(era=era) as client:
        templates = (await client.list_resource_templates()).resource_templates
        assert [template.uri_template for template in templates] == [
            "bulkhead://documents/{id}",
            "bulkhead://documents/{id}/chunks/{n}",
            "bulkhead://tasks/{id}/artifacts/{name}",
        ]
        assert all(template.description and template.title for template in templates)
        (chunk,) = await read(client, CHUNK.uri_of(id=document_id, n="1"))
        assert chunk.meta is not None
        assert chunk.text == LONG[chunk.meta["bulkhead/start"] : chunk.meta["bulkhead/end"]]
        assert (chunk.meta["bulkhead/chunk"], chunk.mime_type) == (1, "text/markdown")
        assert chunk.meta["bulkhead/document"] == DOCUMENT.uri_of(id=document_id)
        uri = ARTIFACT.uri_of(id=task_id, name="the answer/50 %")
        assert uri == f"bulkhead://tasks/{task_id}/artifacts/the%20answer%2F50%20%25"
        text, data = await read(client, uri)
        assert (text.mime_type, text.text, data.mime_type, data.text) == (
            "text/plain",
            "Ten ducats.",
            "application/json",
            '{"n":1}',
        )


async def test_a_long_document_says_where_to_go_on_and_both_ways_lead_to_its_end(scene: McpScene) -> None:
    sentences = [f"Ship {number:06} lies in the harbour at night.\n\n" for number in range(2_500)]
    text = "".join(sentences)
    assert len(text) > 2 * MAX_PART_CHARS
    document_id = await scene.put("Log", text=text)
    async with scene.client() as client:
        uri = DOCUMENT.uri_of(id=document_id)
        first, notice = await read(client, uri)
        assert first.text == text[:MAX_PART_CHARS]
        assert first.meta is not None
        assert notice.meta == {"bulkhead/notice": True}
        assert first.meta["bulkhead/characters"] == len(text)
        start = first.meta["bulkhead/nextStart"]
        assert start == MAX_PART_CHARS
        assert f"document_id {document_id} and start {start}" in notice.text
        assert first.meta["bulkhead/nextChunk"] in notice.text
        # by passages: from the one named on, they cover the rest
        number = int(first.meta["bulkhead/nextChunk"].rpartition("/")[2])
        reached = start
        for one in range(number, first.meta["bulkhead/chunks"]):
            (chunk,) = await read(client, CHUNK.uri_of(id=document_id, n=str(one)))
            assert chunk.meta is not None
            assert chunk.meta["bulkhead/start"] <= reached or not text[reached : chunk.meta["bulkhead/start"]].strip()
            reached = max(reached, chunk.meta["bulkhead/end"])
            if one > number + 3:
                break
        (last,) = await read(client, CHUNK.uri_of(id=document_id, n=str(first.meta["bulkhead/chunks"] - 1)))
        assert text.rstrip().endswith(last.text.rstrip())
        # by the tool
        rest = await client.call_tool("retrieve_document", {"document_id": document_id, "start": start})
        assert rest.structured_content["text"] == text[start : start + MAX_PART_CHARS]
        with refused(-32602):
            await read(client, CHUNK.uri_of(id=document_id, n=str(first.meta["bulkhead/chunks"])))


async def test_a_long_artifact_is_cut_and_says_so(scene: McpScene) -> None:
    large = {"quotes": ["\U00010348" * 1_000] * (MAX_DATA_BYTES // 4_000 - 1)}
    parts: list[dict[str, Any]] = [{"text": "\U00010348" * (MAX_PART_CHARS + 1)}, {"data": large}, {"data": large}]
    uri = ARTIFACT.uri_of(id=await scene.artifact("answer", parts), name="answer")
    async with scene.client() as client:
        text, data, notice = await read(client, uri)
        assert text.text == "\U00010348" * MAX_PART_CHARS
        assert orjson.loads(data.text) == large
        assert notice.meta == {"bulkhead/notice": True}
        assert "task_result" in notice.text
    for revision in (LEGACY, MODERN):
        response = await scene.send("resources/read", {"uri": uri}, revision=revision)
        assert answered(response)["result"]
        assert len(response.content) < 2**20


async def test_pages_of_250_documents_join_without_gap_in_the_order_of_their_source(scene: McpScene) -> None:
    for number in range(250):
        await scene.put("Same title", source=f"{number * 7919 % 250:03}.txt")
    await scene.put("Theirs", tenant=scene.rival)
    await scene.put("Hidden", source="100-hidden.txt", groups=("board",))
    expected = [f"{number:03}.txt" for number in range(250)]
    for era in ERAS:
        async with scene.client(era=era) as client:
            assert len((await client.list_resources()).resources) == PAGE
            assert await listed(client) == expected
            assert await listed(client) == expected
        async with scene.client(era=era, groups=("board",)) as client:
            assert await listed(client) == sorted([*expected, "100-hidden.txt"])


async def test_a_cursor_serves_its_own_list_of_its_own_tenant_only(scene: McpScene) -> None:
    for number in range(PAGE + 1):
        await scene.put("Same", source=f"{number:03}.txt")
    tools_own = cursors.mint(scene.server.runtime.cursor_key, "list_documents", scene.acme.tenant_id, ["050.txt"])
    for era in ERAS:
        async with scene.client(era=era) as client:
            cursor = (await client.list_resources()).next_cursor
            assert cursor is not None
            assert [one.name for one in (await client.list_resources(cursor=cursor)).resources] == ["100.txt"]
            flipped = cursor[:-1] + ("A" if cursor[-1] != "A" else "B")
            for forged in (flipped, cursor[1:], "AAAA", "%%%", "é", cursor + "A" * 9000, "", tools_own):
                with refused(-32602):
                    await client.list_resources(cursor=forged)
            with refused(-32602):
                await client.list_resource_templates(cursor=cursor)
        async with scene.client(era=era, tenant=scene.rival) as client:
            with refused(-32602) as error:
                await client.list_resources(cursor=cursor)
            assert error.value.data == {"code": "invalid_cursor"}


@pytest.mark.parametrize("era", ERAS)
async def test_absent_foreign_and_hidden_have_one_answer(scene: McpScene, era: Era) -> None:
    theirs = await scene.put("Theirs", tenant=scene.rival)
    hidden = await scene.put("Hidden", groups=("board",))
    their_task = await scene.artifact("answer", [{"text": "vinegar"}], tenant=scene.rival)
    own_task = await scene.artifact("answer", [{"text": "ducats"}])
    own = await scene.put("Own")
    missing = [
        *(DOCUMENT.uri_of(id=one) for one in (str(uuid4()), theirs, hidden)),
        *(CHUNK.uri_of(id=one, n="0") for one in (str(uuid4()), theirs, hidden)),
        CHUNK.uri_of(id=own, n="7"),
        *(ARTIFACT.uri_of(id=one, name="answer") for one in (str(uuid4()), their_task)),
        ARTIFACT.uri_of(id=own_task, name="question"),
        "file:///etc/passwd",
    ]
    async with scene.client(era=era) as client:
        answers: set[tuple[int, str, str]] = set()
        for uri in missing:
            with refused(NOT_FOUND[era]) as error:
                await read(client, uri)
            assert error.value.data == {"code": "not_found", "uri": uri}
            answers.add((error.value.code, error.value.message, error.value.data["code"]))
        assert len(answers) == 1
        assert (await read(client, DOCUMENT.uri_of(id=own)))[0].text
    async with scene.client(era=era, groups=("board",)) as client:
        assert (await read(client, DOCUMENT.uri_of(id=hidden)))[0].text
    async with scene.client(era=era, tenant=scene.rival) as client:
        assert (await read(client, ARTIFACT.uri_of(id=their_task, name="answer")))[0].text == "vinegar"


@pytest.mark.parametrize("era", ERAS)
async def test_without_the_scope_nothing_is_listed_and_a_read_names_the_scope(scene: McpScene, era: Era) -> None:
    document = DOCUMENT.uri_of(id=await scene.put("Harbour"))
    artifact = ARTIFACT.uri_of(id=await scene.artifact("answer", [{"text": "ducats"}]), name="answer")
    async with scene.client(era=era, scopes=READER) as client:
        kinds = [template.name for template in (await client.list_resource_templates()).resource_templates]
        assert kinds == ["document", "chunk"]
        assert len((await client.list_resources()).resources) == 1
        for uri in (artifact, ARTIFACT.uri_of(id=str(uuid4()), name="answer")):
            with refused(40300) as error:
                await read(client, uri)
            assert error.value.message == "this needs the scope tasks:run"
    async with scene.client(era=era, scopes=RUNNER) as client:
        kinds = [template.name for template in (await client.list_resource_templates()).resource_templates]
        assert kinds == ["artifact"]
        assert (await client.list_resources()).resources == []
        for uri in (document, DOCUMENT.uri_of(id=str(uuid4()))):
            with refused(40300) as error:
                await read(client, uri)
            assert error.value.message == "this needs the scope corpus:read"
        assert (await read(client, artifact))[0].text == "ducats"


def ways_to_write(document_id: str) -> list[str]:
    """Return URIs that a careless reader might take for that of the document."""
    return [
        f"BULKHEAD://documents/{document_id}",
        f"bulkhead://Documents/{document_id}",
        f"bulkhead://documents/{document_id.upper()}",
        f"bulkhead://documents/{document_id.replace('-', '')}",
        f"bulkhead://documents/{{{document_id}}}",
        f"bulkhead://documents/urn:uuid:{document_id}",
        f"bulkhead://documents/{document_id}/",
        f"bulkhead://documents//{document_id}",
        f"bulkhead://documents/./{document_id}",
        f"bulkhead://documents/x/../{document_id}",
        f"bulkhead://documents/x%2F..%2F{document_id}",
        f"bulkhead://documents/%2e%2e/documents/{document_id}",
        f"bulkhead://documents/{document_id}%00",
        f"bulkhead://documents/{document_id}\0",
        f"bulkhead://documents/{document_id}?start=1",
        f"bulkhead://documents/{document_id}#x",
        f"bulkhead://documents/{document_id} ",
        f" bulkhead://documents/{document_id}",
        f"bulkhead://documents/{quote(document_id[0])}%{ord(document_id[1]):02x}{document_id[2:]}",
        f"bulkhead://documents/{document_id}/chunks",
        f"bulkhead://documents/{document_id}/chunks/",
        *(
            f"bulkhead://documents/{document_id}/chunks/{number}"
            for number in ("00", "-1", "+0", "0x0", "1e1", "٠", "0.0", "9" * 9, "9" * 400, "%30", " 0", "1")
        ),
        f"bulkhead://documents/{document_id}/chunks/0/",
        f"bulkhead:///documents/{document_id}",
        f"bulkhead:documents/{document_id}",
        f"https://documents/{document_id}",
    ]


OUTLANDISH = [
    "",
    " ",
    "\0",
    "bulkhead://",
    "bulkhead://documents",
    "bulkhead://documents/",
    "bulkhead://documents/{id}",
    "bulkhead://documents/../../etc/passwd",
    "bulkhead://tasks//artifacts/",
    "file:///etc/passwd",
    "postgres://localhost/bulkhead",
    "javascript:alert(1)",
    "%",
    "%00",
    "../documents",
    "bulkhead://documents/" + "a" * 100_000,
    "bulkhead://documents/" + "%2F" * 30_000,
    "bulkhead://documents/' or 1=1 --",
    "\u202ebulkhead://documents/x",
    "bulkhead://documents/😀",
]


async def test_any_other_way_to_write_a_uri_names_nothing(scene: McpScene) -> None:
    document_id = await scene.put("Harbour", text="One passage.")
    ways = ways_to_write(document_id)
    for uri in (DOCUMENT.uri_of(id=document_id), CHUNK.uri_of(id=document_id, n="0")):
        assert (await read_raw(scene, uri))["result"]["contents"][0]["text"] == "One passage."
    told: set[str] = set()
    for uri in (*ways, *OUTLANDISH):
        error = (await read_raw(scene, uri))["error"]
        assert error["code"] == -32002, uri[:80]
        told.add(error["message"])
    assert len(told) == 1
    # what stands in a header too has no blanks around it
    for uri in (uri for uri in ways if uri.isascii() and uri.isprintable() and uri == uri.strip()):
        assert (await read_raw(scene, uri, revision=MODERN))["error"]["code"] == -32602, uri
    for raw in (b'"bulkhead://documents/\\ud800"', b"5", b"null", b"[]", b"{}"):
        body = b'{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":' + raw + b"}}"
        response = await scene.post(body, token=scene.token())
        assert response.status_code < 500
        assert b'"error"' in response.content
        assert b"-32603" not in response.content


HEADS = st.sampled_from(["bulkhead://documents/", "bulkhead://tasks/", "BULKHEAD://documents/", "bulkhead:", ""])
STEPS = st.one_of(
    st.uuids().map(str),
    st.text(max_size=12),
    st.sampled_from(["chunks", "artifacts", "..", ".", "%2F", "%00", "0", "-1", "{id}", "", "%", "é"]),
)
TAILS = st.sampled_from(["", "/", "?", "#", "?a=b", "%", "\0"])
ANYTHING = st.one_of(
    st.text(max_size=200), st.tuples(HEADS, st.lists(STEPS, max_size=6).map("/".join), TAILS).map("".join)
)


@given(uri=ANYTHING)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_matched_is_written_in_the_one_way(uri: str) -> None:
    found = find_resource(uri)
    if found is not None:
        template, variables = found
        assert template.uri_of(**variables) == uri


@given(kind=st.sampled_from(TEMPLATES), identity=st.uuids(), number=st.integers(0, 2**20), name=st.text(min_size=1))
@settings(max_examples=200, deadline=None)
def test_every_uri_of_ours_is_matched(kind: Any, identity: UUID, number: int, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    given_values = {"id": str(identity), "n": str(number), "name": name[:100]}
    variables = {key: given_values[key] for key in kind.completers}
    assert find_resource(kind.uri_of(**variables)) == (kind, variables)


async def test_random_uris_find_nothing_and_break_nothing(scene: McpScene) -> None:
    examples: list[str] = []

    @given(uri=ANYTHING)
    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    def collect(uri: str) -> None:
        examples.append(uri)

    collect()
    for uri in examples:
        with anyio.fail_after(5):
            error = (await read_raw(scene, uri))["error"]
        assert (error["code"], error["message"]) == (-32002, "there is no resource of that URI"), uri


async def test_reads_of_nothing_count_against_the_limits(cluster: Cluster) -> None:
    # a burst of ten seconds' worth: three requests
    async with world(cluster) as own, mcp_scene(own, request_limit_per_minute=18) as scene, scene.client() as client:
        codes: list[int] = []
        for _ in range(5):
            with pytest.raises(MCPError) as error:
                await read(client, "bulkhead://documents/nothing")
            codes.append(error.value.code)
        assert codes[0] == -32602
        assert codes[-1] == 42900


async def test_the_audit_trail_names_the_kind_and_the_documents_and_no_uri(scene: McpScene) -> None:
    document_id, hidden = await scene.put("Harbour"), await scene.put("Hidden", groups=("board",))
    task_id = await scene.artifact("answer", [{"data": {"citations": [{"document_id": document_id}]}}])
    compare = PromptReference(name="compare_sources")
    async with scene.client() as client:
        await listed(client)
        await read(client, DOCUMENT.uri_of(id=document_id))
        await read(client, CHUNK.uri_of(id=document_id, n="0"))
        await read(client, ARTIFACT.uri_of(id=task_id, name="answer"))
        for uri in (DOCUMENT.uri_of(id=hidden), "file:///etc/passwd"):
            with refused(-32602):
                await read(client, uri)
        await client.complete(compare, {"name": "document_a", "value": "har"})
        with refused(-32602):
            await client.get_prompt("compare_sources", {"question": "x", "document_a": "Harbour", "document_b": hidden})
    connection = await asyncpg.connect(scene.world.superuser_url)
    rows: list[tuple[str, str, str, list[str]]] = []
    with anyio.fail_after(10):
        while len(rows) < 8:  # refusals are written a little later
            found = await connection.fetch(
                "select method, target, outcome, documents from rag.audit where tenant_id = $1", scene.acme.tenant_id
            )
            rows = sorted((row["method"], row["target"], row["outcome"], list(row["documents"])) for row in found)
            await anyio.sleep(0.05)
    await connection.close()
    assert rows == [
        ("completion/complete", "compare_sources", "ok", [document_id]),
        ("prompts/get", "compare_sources", "not_found", []),
        ("resources/list", "", "ok", [document_id]),
        ("resources/read", "artifact", "ok", [document_id]),
        ("resources/read", "chunk", "ok", [document_id]),
        ("resources/read", "document", "not_found", []),
        ("resources/read", "document", "ok", [document_id]),
        ("resources/read", "unknown", "not_found", []),
    ]
