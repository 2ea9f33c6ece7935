"""When a call is made again, and how often at most: pure decisions, with chance and time in the test's hands."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.llm.failures import MaybeBilled, NotBilled
from rag.llm.retries import RetryBudget, RetryBudgets, RetryRules, retry_after_s

BUSY = NotBilled("busy", retryable=True, status=503)
RULES = RetryRules(attempts=4, base_s=0.5, cap_s=1.5, patience_s=10)


@dataclass(slots=True)
class Hands:
    """A clock that the test turns."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def wait_s(failure: NotBilled | MaybeBilled, *, attempt: int = 1, chance: float = 1.0) -> float | None:
    budget = RetryBudget(rules=RULES, clock=Hands())
    return retry_after_s(failure, attempt=attempt, budget=budget, rules=RULES, chance=lambda: chance)


def test_only_what_was_not_billed_and_may_succeed_is_made_again() -> None:
    assert wait_s(BUSY) is not None
    assert wait_s(NotBilled("bad", retryable=False, status=400)) is None
    assert wait_s(MaybeBilled("broke off", emitted=False)) is None
    assert wait_s(MaybeBilled("broke off", emitted=True)) is None


def test_the_longest_wait_doubles_up_to_a_cap_and_then_there_is_no_more() -> None:
    assert [wait_s(BUSY, attempt=attempt) for attempt in (1, 2, 3, 4)] == [0.5, 1.0, 1.5, None]


def test_a_wait_is_drawn_from_nothing_up_to_the_longest() -> None:
    assert [wait_s(BUSY, attempt=2, chance=chance) for chance in (0.0, 0.25, 0.5)] == [0.0, 0.25, 0.5]


def test_a_pause_that_the_server_asks_for_is_kept_and_not_all_come_back_when_it_ends() -> None:
    asked = NotBilled("busy", retryable=True, retry_after_s=4.0, status=429)
    assert [wait_s(asked, chance=chance) for chance in (0.0, 1.0)] == [4.0, 4.5]


def test_a_pause_that_is_too_long_is_not_waited_for() -> None:
    assert wait_s(NotBilled("busy", retryable=True, retry_after_s=10.1, status=429)) is None


def test_what_is_not_made_again_takes_nothing_from_the_budget() -> None:
    budget = RetryBudget(rules=RULES, clock=Hands())
    for failure in (MaybeBilled("x", emitted=False), NotBilled("bad", retryable=False)):
        assert retry_after_s(failure, attempt=1, budget=budget, rules=RULES) is None
    assert retry_after_s(BUSY, attempt=4, budget=budget, rules=RULES) is None
    assert budget.left == 3


def test_a_sinking_server_is_asked_a_tenth_more_and_not_three_times_as_often() -> None:
    budget = RetryBudget(rules=RULES, clock=Hands())
    again = 0
    for _ in range(1000):
        budget.called()
        attempt = 1
        while retry_after_s(BUSY, attempt=attempt, budget=budget, rules=RULES) is not None:
            again += 1
            attempt += 1
    assert again == 3 + 100


def test_the_reserve_comes_back_with_time_and_no_more_than_it() -> None:
    clock = Hands()
    budget = RetryBudget(rules=RULES, clock=clock)
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    clock.now += 10
    assert [budget.take() for _ in range(2)] == [True, False]
    clock.now += 10_000
    assert budget.left == 3


def test_a_clock_that_goes_backwards_gives_nothing() -> None:
    clock = Hands()
    budget = RetryBudget(rules=RULES, clock=clock)
    budget.take()
    clock.now -= 500
    assert budget.left == 2


def test_one_endpoints_repetitions_are_not_another_ones() -> None:
    budgets = RetryBudgets(rules=RULES, clock=Hands())
    while budgets.of("here").take():
        pass
    assert budgets.of("there").left == 3
    assert not budgets.of("here").take()


@settings(deadline=None)
@given(st.lists(st.sampled_from(["call", "again", "time"]), max_size=300))
def test_repetitions_never_exceed_their_share_whatever_the_order(events: list[str]) -> None:
    clock = Hands()
    budget = RetryBudget(rules=RULES, clock=clock)
    calls = again = 0
    for event in events:
        if event == "call":
            budget.called()
            calls += 1
        elif event == "again":
            again += budget.take()
        else:
            clock.now += 1
        assert 0 <= budget.left <= RULES.most
        seconds = clock.now - 1000
        assert again <= RULES.reserve + RULES.share * calls + seconds / RULES.refill_s + 1e-6


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_a_good_time_lays_up_no_more_than_allowed(share: float) -> None:
    budget = RetryBudget(rules=RetryRules(share=share), clock=Hands())
    for _ in range(10_000):
        budget.called()
    assert budget.left == (20 if share else 3)
