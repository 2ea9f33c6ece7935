"""Files become a tenant's documents through the MCP client; broken ones are named, and a second run changes nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from uuid import uuid4

import anyio
import orjson
import pytest
from rich.console import Console

from rag.cli.ingest import find_files, run_ingest
from rag.cli.search import show
from rag.clients.mcp import McpClient, mcp_client
from rag.errors import (
    Forbidden,
    InvalidInput,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from rag.identity.scopes import Audience, Scope
from tests.support.servers import McpServer, mcp_server
from tests.support.world import World

pytestmark = pytest.mark.anyio
BOUND_S = 20.0
ROOT = Path(__file__).parents[2]


@pytest.fixture(name="server")
async def server_fixture(world: World) -> AsyncGenerator[McpServer]:
    """A running MCP server."""
    async with mcp_server(world) as server:
        yield server


@pytest.fixture(name="client")
async def client_fixture(world: World, server: McpServer) -> AsyncGenerator[McpClient]:
    """A client of a new tenant."""
    token = world.token(await world.tenant("acme"), audience=Audience.MCP)
    with anyio.fail_after(BOUND_S):
        async with mcp_client(server.url, token) as client:
            yield client


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    """A folder with good files, broken ones, and some that are none of ours."""
    (tmp_path / "law" / "old").mkdir(parents=True)
    (tmp_path / "law" / "fraud.md").write_text("# Fraud\n\nA manipulative device is unlawful.")
    (tmp_path / "law" / "old" / "plain.txt").write_text("Ships shall carry lanterns.")
    (tmp_path / "law" / "page.html").write_text("<title>Page</title><p>Bridges shall carry ships.</p>")
    (tmp_path / "law" / "empty.md").write_text("")
    (tmp_path / "law" / "broken.pdf").write_bytes(b"%PDF-1.7 nonsense")
    (tmp_path / "law" / "binary.txt").write_bytes(b"\x00\x01\x02")
    (tmp_path / "law" / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "law" / ".hidden.md").write_text("# Hidden")
    lines = [
        {"id": "one", "text": "The first line."},
        {"text": 5},
        {"id": "two", "text": "# Second\n\nline", "format": "markdown"},
    ]
    (tmp_path / "law" / "lines.jsonl").write_bytes(b"\n".join(orjson.dumps(line) for line in lines))
    return tmp_path / "law"


async def sources(client: McpClient) -> list[str]:
    """Return what the tenant holds."""
    return [document["source"] for document in (await client.call("list_documents", {}))["documents"]]


async def test_a_folder_is_taken_in_broken_files_are_named_and_a_second_run_changes_nothing(
    client: McpClient, folder: Path
) -> None:
    first = await run_ingest([folder], client)
    assert (first.created, first.updated, first.unchanged, first.interrupted) == (5, 0, 0, False)
    # the version that a search waits for to find all of them: four puts at a time, which need not count one another
    assert first.corpus_version is not None
    assert 5 - 3 <= first.corpus_version <= 5
    refused = {refusal.source: refusal.reason for refusal in first.refused}
    assert sorted(refused) == ["binary.txt", "broken.pdf", "empty.md", "lines.jsonl line 2"]
    assert refused["empty.md"] == "the file is empty"
    expected = ["fraud.md", "lines.jsonl#one", "lines.jsonl#two", "old/plain.txt", "page.html"]
    assert await sources(client) == expected
    second = await run_ingest([folder], client)
    assert (second.created, second.updated, second.unchanged, second.refused) == (0, 0, 5, first.refused)
    (folder / "fraud.md").write_text("# Fraud\n\nA new edition.")
    third = await run_ingest([folder], client)
    assert (third.created, third.updated, third.unchanged) == (0, 1, 4)


async def test_a_file_in_another_encoding_is_taken_in_and_its_owner_told(client: McpClient, tmp_path: Path) -> None:
    (tmp_path / "old.html").write_bytes('<meta charset="latin-1"><p>Straße und Öl'.encode("latin-1"))
    report = await run_ingest([tmp_path], client)
    assert [(note.source, note.text) for note in report.notes] == [
        ("old.html", "is not UTF-8; it was read as iso8859-1")
    ]
    found = await client.call("hybrid_search", {"query": "Straße", "limit": 1})
    assert "Öl" in found["hits"][0]["text"]


async def test_what_was_taken_in_is_found_and_shown(client: McpClient, folder: Path) -> None:
    await run_ingest([folder], client)
    result = await client.call("hybrid_search", {"query": "manipulative device", "limit": 3})
    assert result["hits"][0]["source"] == "fraud.md"
    console = Console(record=True, width=100)
    show(result, console)
    assert "fraud.md" in console.export_text()


async def test_once_stopped_nothing_more_is_begun(client: McpClient, folder: Path) -> None:
    stop = anyio.Event()
    stop.set()
    report = await run_ingest([folder], client, stop=stop)
    assert (report.created, report.interrupted) == (0, True)
    assert await sources(client) == []


def test_files_folders_and_globs_name_files_by_the_path_below_them(folder: Path) -> None:
    def named(*paths: str | Path) -> list[str]:
        return sorted(file.source for file in find_files(paths)[0])

    assert named(folder / "fraud.md") == ["fraud.md"]
    assert named(f"{folder}/*.md") == ["empty.md", "fraud.md"]
    assert named(f"{folder}/**/*.txt") == ["binary.txt", "old/plain.txt"]
    assert "picture.png" not in named(folder)
    assert named(folder, folder / "fraud.md") == named(folder)
    assert named(folder / "picture.png") == ["picture.png"]


def test_nothing_and_two_files_of_one_name_are_refused_rather_than_lost(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "fraud.md").write_text("# Other")
    files, refused = find_files([folder / "fraud.md", tmp_path / "other", tmp_path / "absent", f"{folder}/*.xyz"])
    assert [file.path for file in files] == [folder / "fraud.md"]
    assert len(refused) == 3


def test_a_file_whose_name_is_no_text_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.md")).write_text("# Latin")
    (tmp_path / "fine.md").write_text("# Fine")
    files, (refusal,) = find_files([tmp_path])
    assert [file.source for file in files] == ["fine.md"]
    assert "not UTF-8" in refusal.reason
    refusal.source.encode()


async def test_the_clients_errors_are_ours(world: World, server: McpServer, client: McpClient) -> None:
    with pytest.raises(NotFound, match="there is no document of that id"):
        await client.call("retrieve_document", {"document_id": str(uuid4())})
    with pytest.raises(InvalidInput, match="limit: must be less than or equal to 50"):
        await client.call("hybrid_search", {"query": "x", "limit": 51})
    with pytest.raises(InvalidInput, match="Unknown tool"):
        await client.call("absent", {})
    assert "put_document" in await client.tools()
    tenant = await world.tenant("reader")
    reader = world.token(tenant, audience=Audience.MCP, scopes=frozenset({Scope.CORPUS_READ}))
    async with mcp_client(server.url, reader) as limited:
        with pytest.raises(Forbidden, match="corpus:write"):
            await limited.call("delete_document", {"document_id": str(uuid4())})
    async with mcp_client(server.url, world.token(tenant, audience=Audience.A2A)) as stranger:
        with pytest.raises(Unauthenticated):
            await stranger.call("list_documents", {})


async def test_a_server_that_is_not_there_is_unavailable_and_the_next_call_may_succeed(world: World) -> None:
    token = world.token(await world.tenant("acme"), audience=Audience.MCP)
    async with mcp_server(world) as server:
        port_url = server.url
    async with mcp_client(port_url, token) as client:
        for _ in range(2):
            with pytest.raises(Unavailable, match="cannot be reached"):
                await client.call("list_documents", {})


async def test_a_rate_limit_reaches_the_caller_with_its_wait(world: World) -> None:
    token = world.token(await world.tenant("acme"), audience=Audience.MCP)
    async with mcp_server(world, request_limit_per_minute=6) as server, mcp_client(server.url, token) as client:
        await client.call("list_documents", {})
        with pytest.raises(RateLimited) as caught:
            await client.call("list_documents", {})
        assert 0 < caught.value.retry_after_s <= 10


async def test_calls_may_run_at_the_same_time(client: McpClient) -> None:
    async def put(number: int) -> None:
        await client.call("put_document", {"source": f"{number:02}", "title": "t", "text": f"text {number}"})

    async with anyio.create_task_group() as group:
        for number in range(12):
            group.start_soon(put, number)
    assert await sources(client) == [f"{number:02}" for number in range(12)]


BULKHEAD = [sys.executable, "-c", "from rag.cli import main; main()"]


async def test_the_command_prints_json_and_its_status_tells_of_refusals(
    world: World, server: McpServer, folder: Path
) -> None:
    token = world.token(await world.tenant("acme"), audience=Audience.MCP)
    environment = {"BULKHEAD_TOKEN": token, "BULKHEAD_MCP_URL": server.url, "PYTHONPATH": str(ROOT)}
    with anyio.fail_after(BOUND_S):
        done = await anyio.run_process(
            [*BULKHEAD, "ingest", str(folder), "--json"], env=environment, cwd=folder, check=False
        )
        report = orjson.loads(done.stdout)
        assert (done.returncode, report["created"], len(report["refused"])) == (1, 5, 4)
        plain = await anyio.run_process([*BULKHEAD, "ingest", "fraud.md"], env=environment, cwd=folder, check=False)
        assert (plain.returncode, plain.stdout) == (0, b"1 documents, all unchanged\n")
        found = await anyio.run_process(
            [*BULKHEAD, "search", "manipulative device", "--json"], env=environment, cwd=folder, check=False
        )
        assert orjson.loads(found.stdout)["hits"][0]["source"] == "fraud.md"


async def test_ctrl_c_finishes_what_is_under_way_and_says_what_was_done(
    world: World, server: McpServer, tmp_path: Path
) -> None:
    for number in range(400):
        (tmp_path / f"{number:03}.txt").write_text(f"Section {number}. " + "Ships shall carry lanterns. " * 40)
    token = world.token(await world.tenant("acme"), audience=Audience.MCP)
    environment = {"BULKHEAD_TOKEN": token, "BULKHEAD_MCP_URL": server.url, "PYTHONPATH": str(ROOT)}
    with anyio.fail_after(BOUND_S):
        async with (
            mcp_client(server.url, token) as client,
            await anyio.open_process(
                [*BULKHEAD, "ingest", str(tmp_path), "--json"], env=environment, cwd=tmp_path, stderr=None
            ) as process,
        ):
            while not await sources(client):  # each look waits for the server
                assert process.returncode is None
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            report = orjson.loads(b"".join([part async for part in process.stdout]))
            assert await process.wait() == 130
            assert report["interrupted"]
            assert 0 < report["created"] < 400
            # everything that it counted is there, and nothing else
            listed = 0
            cursor: dict[str, str] = {}
            while True:
                page = await client.call("list_documents", {"limit": 100, **cursor})
                listed += len(page["documents"])
                if page["next_cursor"] is None:
                    break
                cursor = {"cursor": page["next_cursor"]}
            assert listed == report["created"]
