"""Scores for passages from a reranking server: vLLM, Jina or Cohere in one shape, text-embeddings-inference in another.

Above it: whoever asks for a `Reranker`. Below it: an httpx client, passed in. The caller's deadline is what bounds a
search; the client's own bound only keeps a forgotten deadline from waiting for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

import anyio
import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from rag.errors import Misconfigured, RerankerUnavailable
from rag.llm import openai_http
from rag.llm.openai_http import Refused
from rag.telemetry import carrier

__all__ = ["HttpReranker", "Reranker", "Scores", "Shape"]

Scores = NDArray[np.float64]
"""One for each text, in their order; higher is better. Only their order means something: servers scale differently."""

BATCH_TEXTS = {"cohere": 1000, "tei": 32}
"""The most that Cohere's API takes; what text-embeddings-inference takes unless told otherwise
(`--max-client-batch-size`)."""
TIMEOUT_S = 10.0
ATTEMPTS = 2
BACKOFF_S = 0.05
"""Once more after a dropped connection; a server that stays away must not use up the search's time."""
_WHAT = "the reranking server"


class Shape(StrEnum):
    """What the server's /rerank speaks."""

    COHERE = "cohere"
    """{model, query, documents, top_n} -> {"results": [{"index", "relevance_score"}]}; vLLM, Jina and others too."""
    TEI = "tei"
    """{query, texts} -> [{"index", "score"}]."""


class Reranker(Protocol):
    """Judges how well each text answers a query."""

    async def rerank(self, query: str, texts: Sequence[str]) -> Scores:
        """Return a score for each text; bounded by the caller.

        Raises:
            RerankerUnavailable: The server cannot be reached or answers nonsense.
        """
        ...


class HttpReranker:
    """Satisfies `Reranker`. Holds no connection of its own: the client is its owner's to close."""

    def __init__(
        self,
        *,
        client: httpx.AsyncClient,
        base_url: str,
        shape: Shape,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        batch_texts: int | None = None,
        attempts: int = ATTEMPTS,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        """`base_url` is what stands before /rerank; `model` is needed in the cohere shape.

        Raises:
            Misconfigured: The cohere shape without a model.
        """
        if shape is Shape.COHERE and not model:
            raise Misconfigured("a reranker of the cohere shape needs a model: set BULKHEAD_RERANK_MODEL")
        self._client = client
        self._url = base_url.rstrip("/") + "/rerank"
        self._shape = shape
        self._model = model
        self._headers = openai_http.headers(api_key)
        self._timeout_s = timeout_s
        self._batch_texts = batch_texts or BATCH_TEXTS[shape]
        self._attempts = attempts
        self._backoff_s = backoff_s

    async def rerank(self, query: str, texts: Sequence[str]) -> Scores:
        """See `Reranker.rerank`; texts beyond one request's are asked for at the same time."""
        scores = np.empty(len(texts), dtype=np.float64)
        failures: list[RerankerUnavailable] = []

        async def score(first: int) -> None:
            try:
                batch = texts[first : first + self._batch_texts]
                scores[first : first + len(batch)] = await self._rerank_batch(query, batch)
            except RerankerUnavailable as exc:
                failures.append(exc)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for first in range(0, len(texts), self._batch_texts):
                group.start_soon(score, first)
        if failures:
            raise failures[0]
        return scores

    async def check(self) -> None:
        """Rerank a probe, before the first use.

        Raises:
            Misconfigured: The server refuses the request (key, model, path, shape).
            RerankerUnavailable: The server cannot be reached now, or answers in another shape.
        """
        try:
            await self._rerank_batch("What does the bank keep?", ["The bank keeps the assets."])
        except RerankerUnavailable as exc:
            if isinstance(exc.__cause__, Refused):
                raise Misconfigured(
                    f"{_WHAT} refuses requests (HTTP {exc.__cause__.status}): check BULKHEAD_RERANK_URL, "
                    "BULKHEAD_RERANK_SHAPE, BULKHEAD_RERANK_MODEL and BULKHEAD_RERANK_API_KEY"
                ) from exc
            raise

    async def _rerank_batch(self, query: str, texts: Sequence[str]) -> Scores:
        body = self._body(query, texts)

        async def attempt() -> Any:
            headers = {**self._headers, **carrier()}
            response = await self._client.post(self._url, json=body, headers=headers, timeout=self._timeout_s)
            openai_http.raise_for_status(response)
            return orjson.loads(response.content)

        try:
            with anyio.fail_after(self._timeout_s):
                answer = await openai_http.with_retries(
                    attempt,
                    attempts=self._attempts,
                    backoff_s=self._backoff_s,
                    failure=RerankerUnavailable,
                    what=_WHAT,
                )
            return _scores(answer["results"] if self._shape is Shape.COHERE else answer, self._shape, count=len(texts))
        except TimeoutError as exc:
            raise RerankerUnavailable(f"{_WHAT} did not answer in {self._timeout_s:g} seconds") from exc
        except (ValueError, TypeError, KeyError) as exc:
            raise RerankerUnavailable(f"{_WHAT} answered something else than one score for each text") from exc

    def _body(self, query: str, texts: Sequence[str]) -> Mapping[str, object]:
        if self._shape is Shape.COHERE:
            return {"model": self._model, "query": query, "documents": list(texts), "top_n": len(texts)}
        # without truncate a text beyond the model's window is an error
        return {"query": query, "texts": list(texts), "truncate": True}


def _scores(entries: Any, shape: Shape, *, count: int) -> Scores:
    """Read the scores by their index.

    Raises:
        ValueError, TypeError, KeyError: There is not exactly one finite number for each text.
    """
    name = "relevance_score" if shape is Shape.COHERE else "score"
    by_index: dict[int, float] = {}
    for entry in entries:
        index, score = entry["index"], entry[name]
        # True is an int to Python
        if type(index) is not int or type(score) not in {int, float} or index in by_index:
            raise ValueError("not one number for each text")
        by_index[index] = score
    scores = np.array([by_index[index] for index in range(count)], dtype=np.float64)
    if len(by_index) != count or not np.isfinite(scores).all():
        raise ValueError("not one finite number for each text")
    return scores
