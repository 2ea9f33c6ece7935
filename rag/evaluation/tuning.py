"""A tenant's fusion weights from its own questions, without telling a weight's score on questions it was chosen on.

Above: the command line. Below: `evaluate.ask_all` (the real search, once per weight) and numpy. `cross_validated` is
pure: it sees a table of scores and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rag.errors import InvalidInput, Unavailable
from rag.evaluation.collection import SEED, Collection
from rag.evaluation.evaluate import ask_all, documents_of
from rag.evaluation.legs import Leg, Searcher, remembering
from rag.evaluation.load import Progress
from rag.evaluation.measures import measure
from rag.retrieval.values import DEFAULT_WEIGHTS

__all__ = ["FOLDS", "MIN_QUESTIONS", "VECTOR_SHARES", "Tuning", "cross_validated", "enough", "tune", "tuning_json"]

VECTOR_SHARES = tuple(round(step * 0.05, 2) for step in range(21))
"""The settings that are tried: the vectors' share of the convex combination; 0 and 1 are one leg alone."""
MEASURE = "ndcg@10"
FOLDS = 5
MIN_QUESTIONS = 20
"""Fewer say nothing: with 20, the interval of a difference is about as wide as the range of the scores."""
RESAMPLES = 10_000
CONFIDENCE = 95.0
_AT_ONCE = 4_000_000
"""Drawn question numbers that are held in memory at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What the choice is worth. No score in here is of a setting on questions that it was chosen on."""

    chosen: float
    """The vectors' share that is best on all questions: the one to use. Its own score on them is not told."""
    chosen_by_fold: tuple[float, ...]
    """What was chosen for each fold, on the questions of the others."""
    questions: int
    tried: int
    """Settings among which was chosen."""
    default: float
    """Mean nDCG@10 of the default weights over all questions; they were not chosen on them."""
    out_of_fold: float
    """Mean nDCG@10 of choosing like this, each question answered by what was chosen without its fold."""
    difference: float
    interval: tuple[float, float]
    """CONFIDENCE per cent of the difference's mean, by paired bootstrap over the questions."""

    @property
    def weights(self) -> tuple[float, float]:
        """The weights of the words and of the vectors to use."""
        return round(1 - self.chosen, 2), self.chosen

    @property
    def safe(self) -> bool:
        """Whether something was gained and the interval excludes a loss."""
        return self.difference > 0 and self.interval[0] >= 0


async def tune(searcher: Searcher, collection: Collection, *, progress: Progress) -> Tuning:
    """Answer every question by the real search under each setting, and cross-validate the choice.

    Raises:
        InvalidInput: There are fewer than MIN_QUESTIONS questions.
        SealRefused, Revoked, Unavailable: The database or the embedder does not answer, or not in time.
    """
    questions = collection.questions
    enough(len(questions))
    searcher = remembering(searcher)
    scores = np.zeros((len(VECTOR_SHARES), len(questions)))
    for row, share in enumerate(VECTOR_SHARES):
        progress("tuning", row, len(VECTOR_SHARES))
        answers = await ask_all(searcher, questions, Leg.FUSED, weights=(1 - share, share))
        if any(answer.degraded for answer in answers.values()):
            raise Unavailable("some questions had no vector in time; tune when the machine is less busy")
        values = measure(collection.judgements, documents_of(answers))[MEASURE]
        scores[row] = [values[question.question_id] for question in questions]
    progress("tuning", len(VECTOR_SHARES), len(VECTOR_SHARES))
    return cross_validated(scores, VECTOR_SHARES, default=DEFAULT_WEIGHTS[1] / sum(DEFAULT_WEIGHTS))


def cross_validated(
    scores: NDArray[np.float64], shares: tuple[float, ...], *, default: float, folds: int = FOLDS, seed: int = SEED
) -> Tuning:
    """Judge the choice of a setting by questions that it was not made on.

    In order: 1 the questions are shuffled by `seed` and dealt into `folds`; 2 for each fold the setting with the best
    mean over the other folds is chosen (of equals, the one nearest to the default); 3 the fold's questions are scored
    by it; 4 the differences to the default, question by question, are resampled. The bootstrap takes the folds'
    choices as they are: what a different draw of questions would have chosen is not in its interval.

    Args:
        scores: One row for each setting, one column for each question.
        shares: The vectors' share of each row; the default's among them.
        default: The default's share.
        folds: Into how many parts the questions are dealt.
        seed: Of the shuffle and of the resampling.

    Raises:
        InvalidInput: There are fewer than MIN_QUESTIONS questions.
    """
    number = scores.shape[1]
    enough(number)
    nearest = int(np.argmin([abs(share - default) for share in shares]))
    random = np.random.default_rng(seed)
    fold_of = np.empty(number, dtype=np.int64)
    fold_of[random.permutation(number)] = np.arange(number) % folds
    out_of_fold = np.empty(number)
    chosen: list[float] = []
    for fold in range(folds):
        held_out = fold_of == fold
        best = _best(scores[:, ~held_out], nearest)
        out_of_fold[held_out] = scores[best, held_out]
        chosen.append(shares[best])
    difference = out_of_fold - scores[nearest]
    return Tuning(
        chosen=shares[_best(scores, nearest)],
        chosen_by_fold=tuple(chosen),
        questions=number,
        tried=len(shares),
        default=float(scores[nearest].mean()),
        out_of_fold=float(out_of_fold.mean()),
        difference=float(difference.mean()),
        interval=_bootstrap(difference, random),
    )


def tuning_json(tuning: Tuning) -> dict[str, object]:
    """Return the tuning as it is written down."""
    lexical, dense = tuning.weights
    return {
        "weights": {"bm25_weight": lexical, "vector_weight": dense},
        "vector_weight_by_fold": list(tuning.chosen_by_fold),
        "questions": tuning.questions,
        "folds": len(tuning.chosen_by_fold),
        "settings_tried": tuning.tried,
        "default_ndcg@10": round(tuning.default, 4),
        "out_of_fold_ndcg@10": round(tuning.out_of_fold, 4),
        "difference": round(tuning.difference, 4),
        "interval_95": [round(bound, 4) for bound in tuning.interval],
        "safe_to_apply": tuning.safe,
        "seed": SEED,
        "resamples": RESAMPLES,
    }


def enough(questions: int) -> None:
    """Return only if so many questions can tell something about weights.

    Raises:
        InvalidInput: There are fewer than MIN_QUESTIONS.
    """
    if questions < MIN_QUESTIONS:
        raise InvalidInput(f"tuning needs at least {MIN_QUESTIONS} questions with judgements; there are {questions}")


def _best(scores: NDArray[np.float64], nearest: int) -> int:
    # rounded, so that sums in another order do not decide between equals
    means = np.round(scores.mean(axis=1), 9)
    return min(np.flatnonzero(means == means.max()).tolist(), key=lambda row: (abs(row - nearest), row))


def _bootstrap(difference: NDArray[np.float64], random: np.random.Generator) -> tuple[float, float]:
    number = len(difference)
    step = max(1, min(RESAMPLES, _AT_ONCE // number))
    means: list[NDArray[np.float64]] = []
    for first in range(0, RESAMPLES, step):
        size = (min(step, RESAMPLES - first), number)
        means.append(difference[random.integers(0, number, size=size)].mean(axis=1))
    outside = (100 - CONFIDENCE) / 2
    low, high = np.percentile(np.concatenate(means), [outside, 100 - outside])
    return float(low), float(high)
