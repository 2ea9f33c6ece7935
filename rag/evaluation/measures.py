"""Quality of rankings by `ir-measures`, which computes as trec_eval does. Pure: values in, values out.

Above: `evaluate`, `tuning`. A question without an answer counts as 0 and is never left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import ir_measures
from ir_measures import RR, Qrel, R, ScoredDoc, nDCG

__all__ = ["MEASURES", "Rankings", "mean", "measure"]

Rankings = Mapping[str, Sequence[str]]
"""Question id -> document ids, best first."""
_NAMES = {nDCG @ 10: "ndcg@10", R @ 100: "recall@100", RR @ 10: "mrr@10"}
MEASURES = tuple(_NAMES.values())


def measure(judgements: Mapping[str, Mapping[str, int]], rankings: Rankings) -> dict[str, dict[str, float]]:
    """Return measure -> question id -> value, for every question that is judged."""
    values = {name: dict.fromkeys(judgements, 0.0) for name in MEASURES}
    qrels = [
        Qrel(question, document, grade) for question, grades in judgements.items() for document, grade in grades.items()
    ]
    for found in ir_measures.iter_calc(list(_NAMES), qrels, _scored(rankings)):
        values[_NAMES[found.measure]][found.query_id] = float(found.value)
    return values


def mean(values: Mapping[str, float]) -> float:
    """Return the mean over the questions."""
    return sum(values.values()) / len(values)


def _scored(rankings: Rankings) -> Iterable[ScoredDoc]:
    # NOTE: the place, not the score: trec_eval sorts again and would order equal scores by document id, not as we did
    for question, documents in rankings.items():
        for place, document in enumerate(documents):
            yield ScoredDoc(question, document, float(len(documents) - place))
