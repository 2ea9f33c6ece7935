"""A search's surroundings for tests that bring their own embedder."""

from __future__ import annotations

from rag.db.pool import Database
from rag.llm.embedders import Embedders
from rag.llm.ports import Embedder
from rag.llm.rerank import Reranker
from rag.retrieval.cache import ResultCache
from rag.retrieval.search import Retriever

__all__ = ["MODEL", "only", "retriever"]

MODEL = 1
"""The installation's default model: the first row of `rag.embedding_model`."""


def only(embedder: Embedder) -> Embedders:
    """Return a process's models where there is none but `embedder`, which stands for the default one."""
    return Embedders(by_id={MODEL: embedder}, default_id=MODEL)


def retriever(
    database: Database, embedder: Embedder, *, cache: ResultCache | None = None, reranker: Reranker | None = None
) -> Retriever:
    """Return what a search works with."""
    return Retriever(database=database, embedders=only(embedder), cache=cache, reranker=reranker)
