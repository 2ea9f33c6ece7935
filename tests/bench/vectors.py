"""Vectors for volume: a seeded space with the shape of real sentence embeddings, and no meaning.

Above: `loading` and the benchmarks. Below: numpy. Embedding 230 000 real chunks takes the default model half an hour on
one core; what a search costs and what an index finds depends on the vectors' geometry, not on what they mean.

The space is a mixture: topics, documents around them, chunks around their document, all in a few latent dimensions;
then one direction that all share and a little noise in every dimension. Its numbers were fitted to 2 500 chunks of 900
random sections of the United States Code embedded by all-MiniLM-L6-v2 (int8), here in brackets: cosine of two random
chunks 0.24 [0.25] with deviation 0.11 [0.11], median cosine of the nearest chunk 0.75 [0.72], of the tenth 0.59 [0.57],
of the hundredth 0.44 [0.43], intrinsic dimension (Levina and Bickel, k = 20) 15 [17].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIMENSION", "VectorSpace", "Vectors"]

DIMENSION = 384
TOPICS = 40
LATENT = 48
DOCUMENT_SPREAD = 0.9
CHUNK_SPREAD = 0.8
SHARED = 0.6
NOISE = 0.4

Vectors = NDArray[np.float32]


class VectorSpace:
    """Hands out unit vectors; the same seed and the same calls give the same vectors."""

    def __init__(self, seed: int) -> None:
        """Draw the topics; `seed` also fixes everything drawn later."""
        self._draw = np.random.default_rng(seed)
        self._basis = np.linalg.qr(self._draw.standard_normal((DIMENSION, LATENT)))[0].T
        shared = self._draw.standard_normal(DIMENSION)
        self._shared = SHARED * shared / np.linalg.norm(shared)
        self._topics = self._draw.standard_normal((TOPICS, LATENT))

    def chunks(self, counts: list[int]) -> Vectors:
        """Return a vector for every chunk of documents that have `counts` chunks, in their order."""
        documents = self._documents(len(counts))
        return self._vectors(np.repeat(documents, counts, axis=0))

    def queries(self, count: int) -> Vectors:
        """Return vectors of questions: as a chunk of a document that nobody stored would have."""
        return self._vectors(self._documents(count))

    def _documents(self, count: int) -> NDArray[np.float64]:
        topics = self._topics[self._draw.integers(TOPICS, size=count)]
        return topics + DOCUMENT_SPREAD * self._draw.standard_normal((count, LATENT))

    def _vectors(self, documents: NDArray[np.float64]) -> Vectors:
        latent = documents + CHUNK_SPREAD * self._draw.standard_normal(documents.shape)
        latent /= np.linalg.norm(latent, axis=1, keepdims=True)
        noise = self._draw.standard_normal((len(latent), DIMENSION)) * (NOISE / np.sqrt(DIMENSION))
        vectors = latent @ self._basis + self._shared + noise
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
