"""The rate limit's arithmetic: a whole burst is let in, and over any stretch of time no unit more than promised."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rag.limits.gcra import Rate, decide, remaining

EPOCH_US = 1_790_000_000_000_000
"""A date of our time: as seconds in a float it would be coarse."""
RATES = st.builds(Rate, interval_us=st.integers(1, 60_000_000), burst=st.integers(1, 300))


@given(rate=RATES, now_us=st.integers(EPOCH_US, EPOCH_US + 10**12))
def test_after_a_pause_the_whole_burst_is_let_in_and_not_one_unit_more(rate: Rate, now_us: int) -> None:
    due_us = 0
    for _ in range(rate.burst):
        wait_us, due_us = decide(rate, due_us=due_us, now_us=now_us, cost=1)
        assert wait_us == 0
    assert decide(rate, due_us=due_us, now_us=now_us, cost=1) == (rate.interval_us, due_us)


@given(
    rate=RATES,
    calls=st.lists(st.tuples(st.integers(0, 120_000_000), st.integers(1, 400)), max_size=60),
)
def test_no_stretch_of_time_lets_in_more_than_its_rate_and_one_burst(rate: Rate, calls: list[tuple[int, int]]) -> None:
    due_us, now_us = 0, EPOCH_US
    let_in: list[tuple[int, int]] = []
    for pause_us, cost in calls:
        now_us += pause_us
        wait_us, due_us = decide(rate, due_us=due_us, now_us=now_us, cost=cost)
        if wait_us == 0:
            let_in.append((now_us, min(cost, rate.burst)))
        else:
            # who comes back when told to is let in, if nobody else came meanwhile
            assert decide(rate, due_us=due_us, now_us=now_us + wait_us, cost=cost)[0] == 0
            assert decide(rate, due_us=due_us, now_us=now_us + wait_us - 1, cost=cost)[0] == 1
    for first, (start_us, _) in enumerate(let_in):
        units = 0
        for end_us, cost in let_in[first:]:
            units += cost
            assert units * rate.interval_us <= end_us - start_us + rate.burst * rate.interval_us


@given(
    rate=RATES,
    slower=RATES,
    calls=st.lists(st.tuples(st.integers(0, 120_000_000), st.integers(1, 400)), max_size=20),
)
def test_what_is_left_is_let_in_and_one_unit_more_is_not(
    rate: Rate, slower: Rate, calls: list[tuple[int, int]]
) -> None:
    due_us, now_us = 0, EPOCH_US
    for pause_us, cost in calls:
        now_us += pause_us
        _, due_us = decide(slower, due_us=due_us, now_us=now_us, cost=cost)
    # whatever was owed at another rate, no more than a whole burst is owed at this one
    _, asked_us = decide(rate, due_us=due_us, now_us=now_us, cost=0)
    assert 0 <= asked_us - now_us <= rate.interval_us * rate.burst
    left = remaining(rate, ahead_us=asked_us - now_us)
    assert 0 <= left <= rate.burst
    assert decide(rate, due_us=due_us, now_us=now_us, cost=left)[0] == 0
    if left < rate.burst:
        assert decide(rate, due_us=due_us, now_us=now_us, cost=left + 1)[0] > 0
