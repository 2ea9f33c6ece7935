"""The product's own search statement, with its parameters taken out of the tables of the benchmark.

Above: `systems`, `asking`. Below: sql/queries/retrieval.sql, read by the same loader that the servers use: what pgbench
runs is what a server runs, whatever becomes of the statement.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sql import load_queries

__all__ = ["MODES", "search_statement"]

MODES: Mapping[str, tuple[str, str, str]] = {
    "keyword": ("1.0", "0.0", "null"),
    "semantic": ("0.0", "1.0", "q.vector"),
    "hybrid": ("null", "null", "q.vector"),
}
"""Lexical weight, dense weight and query vector as a server sends them: both null are the tenant's weights."""


def search_statement(mode: str, *, wanted: int, documents: str, number: str) -> str:
    """Return the statement for question `number` of the tenant of `documents`, both given as SQL."""
    lexical, dense, vector = MODES[mode]
    values = {
        "context": "c.seal",
        "query": "q.query",
        "phrases": "null",
        "phrase_words": "null",
        "query_vector": vector,
        "model_id": "c.model_id",
        "wanted": str(wanted),
        "candidates": str(max(100, 2 * wanted)),
        "lexical_weight": lexical,
        "dense_weight": dense,
        "fusion": "'convex'",
        "filter": "null",
        "per_document": "null",
    }
    query = load_queries("retrieval")["search"]
    call = re.sub(r"\$(\d+)", lambda match: values[query.parameters[int(match[1]) - 1]], query.text)
    return (
        "select s.*\nfrom bench.caller c\njoin bench.question q on q.documents = c.documents\n"
        f"cross join lateral (\n{call}\n) s\nwhere c.documents = {documents} and q.number = {number}"
    )
