"""Vectors on their way into PostgreSQL: the binary form of pgvector's halfvec.

Above: retrieval and the embedder, which know numpy only. Below: pgvector. A bare array would be bound as an SQL array.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector

__all__ = ["halfvec"]


def halfvec(vector: NDArray[np.float32]) -> object:
    """Return one row of an embedder's answer as a parameter of type `halfvec` (16-bit floats)."""
    return HalfVector(vector)
