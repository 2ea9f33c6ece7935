"""Vectors from any server with the OpenAI embeddings API (vLLM, text-embeddings-inference, a hosted one).

Above it: whoever asks for an `Embedder`. Below it: an httpx client, passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import httpx
import numpy as np

from rag.errors import EmbedderUnavailable, Misconfigured
from rag.llm import openai_http
from rag.llm.openai_http import Refused
from rag.llm.ports import Vectors

__all__ = ["OpenAiEmbedder"]

BATCH_TEXTS = 64
TIMEOUT_S = 30.0
"""For one batch, over all of its attempts."""
_PROBE = "The bank keeps the assets."
_WHAT = "the embedding server"


class OpenAiEmbedder:
    """Satisfies `rag.llm.ports.Embedder`. Holds no connection of its own: the client is its owner's to close."""

    def __init__(
        self,
        *,
        client: httpx.AsyncClient,
        base_url: str,
        model: str,
        dimension: int,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        attempts: int = openai_http.ATTEMPTS,
        backoff_s: float = openai_http.BACKOFF_S,
    ) -> None:
        """`base_url` ends in /v1. Call `check` once before use."""
        self._client = client
        self._url = base_url.rstrip("/") + "/embeddings"
        self._model = model
        self._dimension = dimension
        self._headers = openai_http.headers(api_key)
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._backoff_s = backoff_s

    @property
    def model(self) -> str:
        """The model's name at the server."""
        return self._model

    @property
    def dimension(self) -> int:
        """Length of each vector, as configured; `check` compares it with the server's."""
        return self._dimension

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """See `rag.llm.ports.Embedder.embed`."""
        out = np.empty((len(texts), self._dimension), dtype=np.float32)
        for first in range(0, len(texts), BATCH_TEXTS):
            batch = texts[first : first + BATCH_TEXTS]
            vectors = await self._embed_batch(batch)
            if vectors.shape[1] != self._dimension:
                raise EmbedderUnavailable(f"{_WHAT} now answers vectors of another length than configured")
            out[first : first + len(batch)] = vectors
        return out

    async def check(self) -> None:
        """Embed a probe, before the first use.

        Raises:
            Misconfigured: The server refuses the request (key, model, path) or its vectors have another length.
            EmbedderUnavailable: The server cannot be reached now.
        """
        try:
            found = (await self._embed_batch([_PROBE])).shape[1]
        except EmbedderUnavailable as exc:
            if isinstance(exc.__cause__, Refused):
                raise Misconfigured(
                    f"{_WHAT} refuses requests (HTTP {exc.__cause__.status}): "
                    "check BULKHEAD_EMBEDDINGS_URL, BULKHEAD_EMBEDDINGS_MODEL and BULKHEAD_EMBEDDINGS_API_KEY, "
                    "or the model's entry in BULKHEAD_EMBEDDINGS_FILE"
                ) from exc
            raise
        if found != self._dimension:
            raise Misconfigured(
                f"{_WHAT} answers vectors of {found} numbers, {self._dimension} are configured: "
                "set BULKHEAD_EMBEDDINGS_DIMENSION or the entry in BULKHEAD_EMBEDDINGS_FILE, or another model"
            )

    async def aclose(self) -> None:
        """Nothing to let go of: the client is its owner's."""

    async def _embed_batch(self, texts: Sequence[str]) -> Vectors:
        body = {"model": self._model, "input": list(texts), "encoding_format": "float"}

        async def attempt() -> Any:
            response = await self._client.post(self._url, json=body, headers=self._headers, timeout=self._timeout_s)
            openai_http.raise_for_status(response)
            return response.json()

        try:
            with anyio.fail_after(self._timeout_s):
                answer = await openai_http.with_retries(
                    attempt,
                    attempts=self._attempts,
                    backoff_s=self._backoff_s,
                    failure=EmbedderUnavailable,
                    what=_WHAT,
                )
            return _vectors(answer, count=len(texts))
        except TimeoutError as exc:
            raise EmbedderUnavailable(f"{_WHAT} did not answer in {self._timeout_s:g} seconds") from exc
        except (ValueError, TypeError, KeyError, IndexError) as exc:
            raise EmbedderUnavailable(f"{_WHAT} answered something else than embeddings") from exc


def _vectors(answer: Any, *, count: int) -> Vectors:
    """Read the rows by their index, and scale each to length 1."""
    data = sorted(answer["data"], key=lambda entry: entry["index"])
    if [entry["index"] for entry in data] != list(range(count)):
        raise ValueError("not one vector for each text")
    rows = np.array([entry["embedding"] for entry in data], dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if rows.ndim != 2 or not np.isfinite(lengths).all() or not (lengths > 0).all():
        raise ValueError("not vectors")
    return rows / lengths
