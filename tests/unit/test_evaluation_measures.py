"""Quality is what trec_eval says it is, and a weight is never praised on the questions that it was chosen on."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.errors import InvalidInput
from rag.evaluation.measures import MEASURES, mean, measure
from rag.evaluation.scratch import scratch_name
from rag.evaluation.tuning import FOLDS, VECTOR_SHARES, cross_validated, tuning_json

SHARES = (0.0, 0.5, 0.8, 1.0)
DEFAULT = 0.8


def test_measures_are_those_of_the_textbook() -> None:
    judgements = {"q": {"a": 2, "b": 1, "c": 0}}
    values = measure(judgements, {"q": ["c", "b", "x", "a"]})
    ideal = 2 + 1 / log2(3)
    assert values["ndcg@10"]["q"] == pytest.approx((1 / log2(3) + 2 / log2(5)) / ideal)
    assert values["recall@100"]["q"] == 1.0
    assert values["mrr@10"]["q"] == 0.5


def test_a_question_without_an_answer_counts_as_nothing_and_is_not_left_out() -> None:
    values = measure({"q": {"a": 1}, "silent": {"b": 1}}, {"q": ["a"]})
    for name in MEASURES:
        assert values[name] == {"q": 1.0, "silent": 0.0}
        assert mean(values[name]) == 0.5


def test_depth_is_bounded_where_the_measure_says_so() -> None:
    deep = [f"x{i}" for i in range(10)] + ["a"]
    values = measure({"q": {"a": 1}}, {"q": deep})
    assert (values["ndcg@10"]["q"], values["mrr@10"]["q"], values["recall@100"]["q"]) == (0.0, 0.0, 1.0)
    assert measure({"q": {"a": 1}}, {"q": [f"x{i}" for i in range(100)] + ["a"]})["recall@100"]["q"] == 0.0


def test_the_order_given_is_the_order_judged() -> None:
    """trec_eval breaks ties by document id; ours must not reach it as ties."""
    for order in (["a", "z"], ["z", "a"]):
        assert measure({"q": {"a": 1}}, {"q": order})["mrr@10"]["q"] == 1 / (1 + order.index("a"))


def test_no_setting_is_scored_on_questions_that_it_was_chosen_on() -> None:
    """On noise the best of 21 settings looks better than the default on its own questions; here it must not."""
    default = VECTOR_SHARES.index(DEFAULT)
    flattered: list[float] = []
    told: list[float] = []
    for seed in range(40):
        noise = np.random.default_rng(seed).random((len(VECTOR_SHARES), 100))
        flattered.append(float(noise.mean(axis=1).max() - noise[default].mean()))
        told.append(cross_validated(noise, VECTOR_SHARES, default=DEFAULT).difference)
    assert sum(flattered) / len(flattered) > 0.04, "the trap is set"
    assert abs(sum(told) / len(told)) < 0.02


def test_a_folds_own_questions_have_no_say_in_what_is_chosen_for_it() -> None:
    """One question alone, however loud, cannot choose its own setting."""
    scores = np.full((4, 20), 0.5)
    scores[0, 3] = 1.0  # only this one likes setting 0
    tuning = cross_validated(scores, SHARES, default=DEFAULT)
    assert tuning.chosen == 0.0
    assert sorted(tuning.chosen_by_fold) == [0.0] * (FOLDS - 1) + [DEFAULT]
    assert tuning.out_of_fold == tuning.default == 0.5


def test_a_real_gain_is_found_with_an_interval_that_excludes_a_loss() -> None:
    random = np.random.default_rng(11)
    scores = random.random((4, 100)) * 0.2
    scores[1] += 0.3
    tuning = cross_validated(scores, SHARES, default=DEFAULT)
    assert tuning.chosen == 0.5
    assert tuning.weights == (0.5, 0.5)
    assert tuning.chosen_by_fold == (0.5,) * FOLDS
    assert tuning.interval[0] <= tuning.difference <= tuning.interval[1]
    assert tuning.interval[0] > 0.2
    assert tuning.safe


def test_among_equals_the_default_stays_and_nothing_is_claimed() -> None:
    tuning = cross_validated(np.full((4, 40), 0.5), SHARES, default=DEFAULT)
    assert tuning.chosen == DEFAULT
    assert (tuning.difference, tuning.interval) == (0.0, (0.0, 0.0))
    assert not tuning.safe


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least 20"):
        cross_validated(np.zeros((4, 19)), SHARES, default=DEFAULT)


def test_the_same_scores_give_the_same_report() -> None:
    scores = np.random.default_rng(3).random((4, 57))
    first, again = (tuning_json(cross_validated(scores, SHARES, default=DEFAULT)) for _ in range(2))
    assert first == again
    assert first["settings_tried"] == 4
    assert "in_sample" not in str(first)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), questions=st.integers(20, 60))
def test_the_interval_holds_its_mean_whatever_the_scores(seed: int, questions: int) -> None:
    scores = np.random.default_rng(seed).random((4, questions))
    tuning = cross_validated(scores, SHARES, default=DEFAULT, seed=seed)
    assert tuning.interval[0] <= tuning.difference <= tuning.interval[1]
    assert tuning.out_of_fold - tuning.default == pytest.approx(tuning.difference)


@pytest.mark.parametrize(
    ("collection", "name"),
    [
        ("scifact", "eval-scifact-1"),
        ("CQADupStack/android", "eval-cqadupstack-android-1"),
        ("__", "eval-collection-1"),
        ("x" * 200, f"eval-{'x' * 50}-1"),
    ],
)
def test_a_scratch_tenants_name_is_one_that_a_tenant_may_have(collection: str, name: str) -> None:
    assert scratch_name(collection, 1) == name
    assert len(name) <= 63
