"""The reranking client, in both shapes, against an HTTP server of our own (it counts shared words) and its faults."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import httpx
import pytest

from rag.errors import Misconfigured, RerankerUnavailable
from rag.llm.rerank import HttpReranker, Shape
from rag.telemetry import carried_from
from tests.support.openai_server import Fault, OpenAiServer, serve_openai, word_overlap

pytestmark = pytest.mark.anyio
KEY = "sk-very-secret"
QUERY = "annual fee due"
TEXTS = ["nothing here", "the annual fee is due", "a fee", "the annual report is due"]
SHAPES = pytest.mark.parametrize("shape", list(Shape))


@pytest.fixture
async def server() -> AsyncIterator[OpenAiServer]:
    async with serve_openai() as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as opened:
        yield opened


def reranker(
    server: OpenAiServer,
    client: httpx.AsyncClient,
    shape: Shape = Shape.TEI,
    *,
    timeout_s: float = 5,
    batch_texts: int | None = None,
) -> HttpReranker:
    return HttpReranker(
        client=client,
        base_url=server.base_url + "/",
        shape=shape,
        model="bge" if shape is Shape.COHERE else None,
        api_key=KEY,
        timeout_s=timeout_s,
        batch_texts=batch_texts,
        backoff_s=0,
    )


@SHAPES
async def test_scores_come_in_the_order_of_the_texts(
    server: OpenAiServer, client: httpx.AsyncClient, shape: Shape
) -> None:
    server.api_key = KEY
    scores = await reranker(server, client, shape).rerank(QUERY, TEXTS)
    assert scores.tolist() == [0, 1, 1 / 3, 2 / 3]
    expected: dict[Shape, dict[str, object]] = {
        Shape.COHERE: {"model": "bge", "query": QUERY, "documents": TEXTS, "top_n": 4},
        Shape.TEI: {"query": QUERY, "texts": TEXTS, "truncate": True},
    }
    assert server.requests == [expected[shape]]


@SHAPES
async def test_more_texts_than_a_request_takes_are_asked_for_in_several(
    server: OpenAiServer, client: httpx.AsyncClient, shape: Shape
) -> None:
    texts = [" ".join(QUERY.split()[: number % 4]) for number in range(67)]
    scores = await reranker(server, client, shape, batch_texts=32).rerank(QUERY, texts)
    assert scores.tolist() == [word_overlap(QUERY, text) for text in texts]
    assert sorted(len(body["documents" if "documents" in body else "texts"]) for body in server.requests) == [3, 32, 32]


@SHAPES
async def test_no_texts_are_no_request(server: OpenAiServer, client: httpx.AsyncClient, shape: Shape) -> None:
    assert (await reranker(server, client, shape).rerank(QUERY, [])).shape == (0,)
    assert server.requests == []


async def test_the_call_is_part_of_the_callers_trace(server: OpenAiServer, client: httpx.AsyncClient) -> None:
    traceparent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    with carried_from({"traceparent": traceparent}):
        await reranker(server, client).rerank(QUERY, TEXTS)
    assert server.headers[0]["traceparent"] == traceparent


async def test_a_passing_fault_is_tried_again_and_a_lasting_one_given_up(
    server: OpenAiServer, client: httpx.AsyncClient
) -> None:
    server.faults.append(Fault(status=503))
    assert (await reranker(server, client).rerank(QUERY, TEXTS)).shape == (4,)
    server.faults.extend([Fault(status=503)] * 4)
    with pytest.raises(RerankerUnavailable) as caught:
        await reranker(server, client).rerank(QUERY, TEXTS)
    assert len(server.requests) == 4
    assert QUERY not in caught.value.message


async def test_one_failed_request_of_several_fails_the_whole(server: OpenAiServer, client: httpx.AsyncClient) -> None:
    server.faults.extend([Fault(hang=True), Fault(status=400), Fault(hang=True)])
    with anyio.fail_after(4), pytest.raises(RerankerUnavailable, match="HTTP 400"):
        await reranker(server, client, batch_texts=1).rerank(QUERY, TEXTS[:3])


async def test_the_callers_deadline_holds(server: OpenAiServer, client: httpx.AsyncClient) -> None:
    server.faults.append(Fault(hang=True))
    with pytest.raises(TimeoutError), anyio.fail_after(0.2):
        await reranker(server, client, timeout_s=60).rerank(QUERY, TEXTS)
    server.faults.append(Fault(hang=True))
    with anyio.fail_after(5), pytest.raises(RerankerUnavailable, match=r"in 0\.2 seconds|ReadTimeout"):
        await reranker(server, client, timeout_s=0.2).rerank(QUERY, TEXTS)


async def test_nobody_listening_is_unavailable(client: httpx.AsyncClient) -> None:
    nobody = HttpReranker(client=client, base_url="http://127.0.0.1:1", shape=Shape.TEI, backoff_s=0)
    with pytest.raises(RerankerUnavailable, match="not reachable"):
        await nobody.rerank(QUERY, TEXTS)


async def test_what_is_set_wrongly_is_told_at_the_start(server: OpenAiServer, client: httpx.AsyncClient) -> None:
    with pytest.raises(Misconfigured, match="BULKHEAD_RERANK_MODEL"):
        HttpReranker(client=client, base_url=server.base_url, shape=Shape.COHERE)
    await reranker(server, client).check()
    server.api_key = "another"
    with pytest.raises(Misconfigured, match="BULKHEAD_RERANK_API_KEY") as caught:
        await reranker(server, client).check()
    assert KEY not in caught.value.message


ANSWERS = [
    b"<html>",
    b"null",
    b"[]",
    b'{"results": null}',
    b"[1, 2]",
    b'[{"index": 0, "NAME": 1}]',
    b'[{"index": 0, "NAME": 1}, {"index": 0, "NAME": 1}]',
    b'[{"index": 0, "NAME": 1}, {"index": 2, "NAME": 1}]',
    b'[{"index": 0, "NAME": 1}, {"index": 1, "NAME": 1}, {"index": 2, "NAME": 1}]',
    b'[{"index": 0, "NAME": 1}, {"index": -1, "NAME": 1}]',
    b'[{"index": 0, "NAME": 1}, {"index": true, "NAME": 1}]',
    b'[{"index": 0, "NAME": 1}, {"index": "1", "NAME": 1}]',
    b'[{"index": 0, "NAME": 1}, {"index": 1.0, "NAME": 1}]',
    b'[{"index": 0, "NAME": 1}, {"index": 1, "NAME": NaN}]',
    b'[{"index": 0, "NAME": 1}, {"index": 1, "NAME": 1e999}]',
    b'[{"index": 0, "NAME": 1}, {"index": 1, "NAME": null}]',
    b'[{"index": 0, "NAME": 1}, {"index": 1, "NAME": "0.5"}]',
    b'[{"index": 0, "NAME": 1}, {"index": 1, "NAME": true}]',
    b'[{"index": 0, "NAME": 1}, {"index": 1, "other": 1}]',
    b"[" * 100_000,
]


@SHAPES
@pytest.mark.parametrize("body", ANSWERS, ids=range(len(ANSWERS)))
async def test_an_answer_that_is_not_one_number_for_each_text_is_unavailable(
    server: OpenAiServer, client: httpx.AsyncClient, shape: Shape, body: bytes
) -> None:
    name = b"relevance_score" if shape is Shape.COHERE else b"score"
    body = body.replace(b"NAME", name)
    server.faults.append(Fault(raw=b'{"results": %b}' % body if shape is Shape.COHERE else body))
    with pytest.raises(RerankerUnavailable, match="something else"):
        await reranker(server, client, shape).rerank(QUERY, TEXTS[:2])


async def test_the_other_shapes_answer_is_unavailable(server: OpenAiServer, client: httpx.AsyncClient) -> None:
    good = b'[{"index": 0, "score": 1}]'
    server.faults.extend([Fault(raw=good), Fault(raw=b'{"results": %b}' % good.replace(b"score", b"relevance_score"))])
    for shape in Shape:
        with pytest.raises(RerankerUnavailable, match="something else"):
            await reranker(server, client, shape).rerank(QUERY, TEXTS[:1])
