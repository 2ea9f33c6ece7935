"""The circuit breaker as a state machine: calls begin and end in any order, time passes, and one probe is one probe."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import anyio
import anyio.lowlevel
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rag.llm.breaker import BreakerOpen, BreakerRules, Breakers, BreakerState, Trial

RULES = BreakerRules(in_a_row=5, window=10, window_s=60, share=0.5, pause_s=10, max_pause_s=40, jitter=0.5, probe_s=300)


@dataclass(slots=True)
class Hands:
    """A clock that the test turns."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def end(breakers: Breakers, *outcomes: bool | None) -> None:
    """Make calls that end so; None: nobody says how."""
    for outcome in outcomes:
        with breakers.trial("here", "small") as trial:
            if outcome is not None:
                (trial.succeeded if outcome else trial.failed)()


def opened(clock: Hands, *, chance: float = 0.0) -> Breakers:
    breakers = Breakers(rules=RULES, clock=clock, chance=lambda: chance)
    end(breakers, *[False] * 5)
    return breakers


def state(breakers: Breakers) -> BreakerState:
    (only,) = breakers.state()
    return only


def lets_in(breakers: Breakers) -> bool:
    return breakers.lets_in("here", "small")


def test_it_opens_at_the_fifth_failure_in_a_row() -> None:
    breakers = Breakers(rules=RULES, clock=Hands())
    end(breakers, *[False] * 4, True, *[False] * 4)
    assert lets_in(breakers)
    end(breakers, False)
    assert not lets_in(breakers)


def test_it_opens_when_half_of_the_last_calls_failed_though_never_many_in_a_row() -> None:
    breakers = Breakers(rules=RULES, clock=Hands())
    end(breakers, *[False, True] * 4, True)
    assert lets_in(breakers)
    end(breakers, False)
    assert not lets_in(breakers)


def test_failures_of_long_ago_do_not_count_towards_the_share() -> None:
    clock = Hands()
    breakers = Breakers(rules=RULES, clock=clock)
    for _ in range(30):
        end(breakers, False, True)
        clock.now += 20
    assert lets_in(breakers)


def test_failures_before_a_recovery_do_not_count_after_it() -> None:
    clock = Hands()
    breakers = opened(clock)
    clock.now += 10
    end(breakers, True, *[True] * 4, False)
    assert lets_in(breakers)


def test_a_call_that_nobody_judges_says_nothing() -> None:
    breakers = Breakers(rules=RULES, clock=Hands())
    end(breakers, *[False] * 4, None, None)
    assert state(breakers).failures == 4
    end(breakers, False)
    assert not lets_in(breakers)


def test_an_open_one_lets_nobody_in_and_says_until_when() -> None:
    clock = Hands()
    breakers = opened(clock, chance=0.5)
    clock.now += 4
    assert state(breakers) == BreakerState(endpoint="here", model="small", state="open", failures=5, retry_after_s=8.5)
    with pytest.raises(BreakerOpen) as refused:
        end(breakers, True)
    assert refused.value.retry_after_s == 8.5


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_recovery() -> None:
    clock = Hands()
    breakers = opened(clock)
    pauses: list[float] = []
    for _ in range(4):
        pauses.append(state(breakers).retry_after_s)
        clock.now += pauses[-1]
        end(breakers, False)
    assert pauses == [10, 20, 40, 40]
    clock.now += 40
    end(breakers, True, *[False] * 5)
    assert state(breakers).retry_after_s == 10


def test_two_processes_do_not_come_back_at_the_same_time() -> None:
    assert {state(opened(Hands(), chance=chance)).retry_after_s for chance in (0.0, 0.4, 1.0)} == {10, 12, 15}


@pytest.mark.anyio
async def test_a_probe_that_is_cancelled_gives_its_place_back() -> None:
    clock = Hands()
    breakers = opened(clock)
    clock.now += 10
    with anyio.CancelScope() as scope, breakers.trial("here", "small"):
        assert not lets_in(breakers)
        scope.cancel()
        await anyio.lowlevel.checkpoint()
    assert state(breakers).state == "half_open"
    end(breakers, True)
    assert state(breakers).state == "closed"


def test_a_probe_that_never_ends_does_not_keep_a_server_out_for_ever() -> None:
    clock = Hands()
    breakers = opened(clock)
    clock.now += 10
    with breakers.trial("here", "small") as lost:
        clock.now += 300
        with breakers.trial("here", "small") as second:
            assert not lets_in(breakers)
            second.succeeded()
        lost.failed()
    assert state(breakers).state == "closed", "and when it ends after all, it says nothing of what is now"


def test_calls_that_began_before_it_opened_do_not_decide_for_the_probe() -> None:
    clock = Hands()
    breakers = Breakers(rules=RULES, clock=clock, chance=lambda: 0.0)
    with breakers.trial("here", "small") as late_success, breakers.trial("here", "small") as late_failure:
        end(breakers, *[False] * 5)
        late_success.succeeded()
        late_failure.failed()
    assert state(breakers).retry_after_s == 10, "neither closed by the one nor opened anew by the other"


def test_a_model_and_its_endpoint_stand_for_themselves() -> None:
    clock = Hands()
    breakers = opened(clock)
    assert breakers.lets_in("here", "large")
    assert breakers.lets_in("there", "small")
    with breakers.trial("there", "small") as trial:
        trial.succeeded()
    assert [(one.endpoint, one.model, one.state) for one in breakers.state()] == [
        ("here", "small", "open"),
        ("there", "small", "closed"),
    ]


class AnyOrder(RuleBasedStateMachine):
    """Calls overlap and end in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Hands()
        self.breakers = Breakers(rules=RULES, clock=self.clock, chance=lambda: 0.0)
        self.open: list[tuple[ExitStack, Trial, bool]] = []
        """Calls under way; the last says whether the call is a probe."""

    @rule()
    def begin(self) -> None:
        was, likely = self.state(), lets_in(self.breakers)
        stack = ExitStack()
        try:
            trial = stack.enter_context(self.breakers.trial("here", "small"))
        except BreakerOpen:
            assert not likely
            return
        assert likely
        assert was != "open"
        self.open.append((stack, trial, was == "half_open"))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 100), outcome=st.sampled_from([True, False, None]))
    def finish(self, which: int, outcome: bool | None) -> None:
        stack, trial, probe = self.open.pop(which % len(self.open))
        was = self.state()
        if outcome is not None:
            (trial.succeeded if outcome else trial.failed)()
        stack.close()
        if probe:
            assert self.state() == {True: "closed", False: "open", None: "half_open"}[outcome]
        elif was != "closed":
            assert self.state() == was, "only the probe moves it"

    @rule(seconds=st.sampled_from([0.5, 5.0, 20.0]))
    def wait(self, seconds: float) -> None:
        # less than a probe's time: lost probes have a test of their own
        if not any(probe for *_, probe in self.open):
            self.clock.now += seconds

    @invariant()
    def one_probe(self) -> None:
        probes = sum(probe for *_, probe in self.open)
        assert probes <= 1
        if probes:
            assert not lets_in(self.breakers)

    def state(self) -> str:
        return next((one.state for one in self.breakers.state()), "closed")

    def teardown(self) -> None:
        for stack, *_ in self.open:
            stack.close()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
