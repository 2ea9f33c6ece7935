"""The client of OpenAI-compatible embeddings against a server of our own in that shape (not vLLM), and its faults."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import anyio
import httpx
import numpy as np
import pytest

from rag.errors import EmbedderUnavailable, Misconfigured, Unavailable
from rag.llm.openai_embeddings import BATCH_TEXTS, OpenAiEmbedder
from tests.support.openai_server import Fault, OpenAiServer, serve_openai

KEY = "sk-very-secret"


@pytest.fixture
async def server() -> AsyncIterator[OpenAiServer]:
    async with serve_openai() as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as opened:
        yield opened


def embedder(
    server: OpenAiServer, client: httpx.AsyncClient, *, dimension: int = 8, timeout_s: float = 5
) -> OpenAiEmbedder:
    return OpenAiEmbedder(
        client=client,
        base_url=server.base_url + "/",
        model="e5",
        dimension=dimension,
        api_key=KEY,
        timeout_s=timeout_s,
        backoff_s=0,
    )


@pytest.mark.anyio
class TestEmbeddings:
    async def test_vectors_come_in_the_order_of_the_texts_in_batches(
        self, server: OpenAiServer, client: httpx.AsyncClient
    ) -> None:
        server.api_key = KEY
        texts = [f"text {number}" for number in range(2 * BATCH_TEXTS + 1)]
        vectors = await embedder(server, client).embed(texts)
        expected = np.array([server.vector(text) for text in texts], dtype=np.float32)
        np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-5)
        assert [len(request["input"]) for request in server.requests] == [BATCH_TEXTS, BATCH_TEXTS, 1]
        assert server.requests[0]["model"] == "e5"

    async def test_another_dimension_is_found_before_the_first_use(
        self, server: OpenAiServer, client: httpx.AsyncClient
    ) -> None:
        await embedder(server, client).check()
        with pytest.raises(Misconfigured, match="vectors of 8 numbers, 384 are configured"):
            await embedder(server, client, dimension=384).check()

    async def test_a_dimension_that_changes_later_is_unavailable(
        self, server: OpenAiServer, client: httpx.AsyncClient
    ) -> None:
        ours = embedder(server, client)
        await ours.check()
        server.dimension = 4
        with pytest.raises(EmbedderUnavailable, match="another length"):
            await ours.embed(["a"])

    async def test_a_wrong_key_is_a_matter_of_configuration_at_the_start(
        self, server: OpenAiServer, client: httpx.AsyncClient
    ) -> None:
        server.api_key = "another"
        with pytest.raises(Misconfigured, match="BULKHEAD_EMBEDDINGS_API_KEY"):
            await embedder(server, client).check()
        with pytest.raises(EmbedderUnavailable, match="HTTP 401"):
            await embedder(server, client).embed(["a"])
        assert len(server.requests) == 2  # what is refused is not tried again

    async def test_a_passing_fault_is_tried_again(self, server: OpenAiServer, client: httpx.AsyncClient) -> None:
        server.faults.extend([Fault(status=503), Fault(status=429)])
        assert (await embedder(server, client).embed(["a"])).shape == (1, 8)

    async def test_a_lasting_fault_is_given_up(self, server: OpenAiServer, client: httpx.AsyncClient) -> None:
        server.faults.extend([Fault(status=500)] * 6)
        with pytest.raises(EmbedderUnavailable):
            await embedder(server, client).embed(["a"])
        assert len(server.requests) == 3
        with pytest.raises(EmbedderUnavailable):
            await embedder(server, client).check()

    async def test_silence_is_given_up(self, server: OpenAiServer, client: httpx.AsyncClient) -> None:
        server.faults.append(Fault(hang=True))
        with anyio.fail_after(5), pytest.raises(EmbedderUnavailable):
            await embedder(server, client, timeout_s=0.2).embed(["a"])

    async def test_nobody_listening_is_unavailable(self, server: OpenAiServer, client: httpx.AsyncClient) -> None:
        nobody = OpenAiEmbedder(client=client, base_url="http://127.0.0.1:1/v1", model="m", dimension=8, backoff_s=0)
        with pytest.raises(EmbedderUnavailable):
            await nobody.check()

    @pytest.mark.parametrize(
        "body",
        [
            b"<html>",
            b"[]",
            b"{}",
            b'{"data": []}',
            b'{"data": [{"index": 1, "embedding": [1, 2, 3, 4, 5, 6, 7, 8]}]}',
            b'{"data": [{"index": 0, "embedding": [0, 0, 0, 0, 0, 0, 0, 0]}]}',
            b'{"data": [{"index": 0, "embedding": [NaN, 0, 0, 0, 0, 0, 0, 0]}]}',
            b'{"data": [{"index": 0, "embedding": "AAAA"}]}',
            b'{"data": [{"index": 0, "embedding": 5}]}',
        ],
    )
    async def test_an_answer_that_is_no_vectors_is_unavailable(
        self, server: OpenAiServer, client: httpx.AsyncClient, body: bytes
    ) -> None:
        server.faults.append(Fault(raw=body))
        with pytest.raises(EmbedderUnavailable, match="something else"):
            await embedder(server, client).embed(["a"])


@pytest.mark.anyio
async def test_the_key_and_the_texts_are_never_logged(
    server: OpenAiServer, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults.extend([Fault(status=500)] * 3 + [Fault(status=401)])
    with caplog.at_level(logging.DEBUG):
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                await embedder(server, client).embed(["The annual fee"])
            assert KEY not in repr(caught.value)
    assert caplog.records
    assert KEY not in caplog.text
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("rag")]
    assert not any("annual fee" in message for message in ours)
