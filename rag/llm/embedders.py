"""The embedding models that a process can use, by the id under which the database keeps their vectors.

Above: retrieval, the embedding loop. Below: `ports`. Which of them a tenant's vectors are made with is the tenant's own
setting (`rag.tenant.model_id`); the installation's default serves those without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rag.errors import EmbedderUnavailable
from rag.llm.ports import Embedder

__all__ = ["Embedders"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedders:
    """One embedder for each `rag.embedding_model.model_id` that this process is configured for."""

    by_id: Mapping[int, Embedder]
    default_id: int

    @property
    def default(self) -> Embedder:
        """The embedder of the installation's default model."""
        return self.by_id[self.default_id]

    def get(self, model_id: int) -> Embedder:
        """Return the embedder of a model.

        Raises:
            EmbedderUnavailable: This process is not configured for that model.
        """
        try:
            return self.by_id[model_id]
        except KeyError:
            raise EmbedderUnavailable("this server is not configured for the tenant's embedding model") from None
