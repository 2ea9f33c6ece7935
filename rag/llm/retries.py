"""Whether a call that failed is made again at the same place, and after how long. No I/O and no waiting.

Above: `gateway`. Below: `failures`.

Again only where nothing was billed. When, is drawn at random, so that callers who failed together do not come back
together (full jitter: M. Brooker, "Exponential Backoff and Jitter", 2015). How often, is bounded for all callers of an
endpoint together: a server that sinks is not pushed under by everybody asking three times.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from rag.clock import Clock
from rag.llm.failures import MaybeBilled, NotBilled

__all__ = ["RetryBudget", "RetryBudgets", "RetryRules", "retry_after_s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRules:
    """Bounds of trying again."""

    attempts: int = 3
    """Of one request at one endpoint, the first included."""
    base_s: float = 0.25
    """The longest wait before the second attempt; doubled before each further one."""
    cap_s: float = 4.0
    patience_s: float = 10.0
    """A server that asks for a longer pause than this is not waited for: another may have time."""
    share: float = 0.1
    """Of the calls to an endpoint so many may be repetitions."""
    reserve: float = 3.0
    """And so many besides; what was used of them comes back, one every `refill_s`."""
    refill_s: float = 10.0
    most: float = 20.0
    """That a good time can lay up."""


class RetryBudget:
    """How many repetitions an endpoint may still be burdened with: a bucket that calls fill and repetitions empty."""

    def __init__(self, *, rules: RetryRules | None = None, clock: Clock = time.monotonic) -> None:
        """Start with the reserve."""
        self._rules = rules or RetryRules()
        self._clock = clock
        self._left = self._rules.reserve
        self._at = clock()

    @property
    def left(self) -> float:
        """Repetitions, and a fraction of the next."""
        self._refill()
        return self._left

    def called(self) -> None:
        """Note a call that is no repetition."""
        self._refill()
        self._left = max(self._left, min(self._rules.most, self._left + self._rules.share))

    def take(self) -> bool:
        """Use up one repetition; False: there is none."""
        self._refill()
        # sums of tenths fall a hair short of a whole
        if self._left < 1 - 1e-9:
            return False
        self._left = max(0.0, self._left - 1)
        return True

    def _refill(self) -> None:
        now = self._clock()
        elapsed, self._at = max(0.0, now - self._at), now
        if self._left < self._rules.reserve:
            self._left = min(self._rules.reserve, self._left + elapsed / self._rules.refill_s)


class RetryBudgets:
    """The budgets of this process's endpoints."""

    def __init__(self, *, rules: RetryRules | None = None, clock: Clock = time.monotonic) -> None:
        """Start without any."""
        self._rules = rules
        self._clock = clock
        self._budgets: dict[str, RetryBudget] = {}

    def of(self, endpoint: str) -> RetryBudget:
        """Return the endpoint's."""
        if endpoint not in self._budgets:
            self._budgets[endpoint] = RetryBudget(rules=self._rules, clock=self._clock)
        return self._budgets[endpoint]


def retry_after_s(
    failure: NotBilled | MaybeBilled,
    *,
    attempt: int,
    budget: RetryBudget,
    rules: RetryRules | None = None,
    chance: Callable[[], float] = random.random,
) -> float | None:
    """Return how many seconds to wait before the call is made again at this endpoint; None: it is not.

    Args:
        failure: How the last attempt ended.
        attempt: Its number, from 1.
        budget: The endpoint's; one repetition is taken from it where the answer is a number.
        rules: Bounds of one request.
        chance: Returns numbers from 0 to 1.
    """
    rules = rules or RetryRules()
    if not isinstance(failure, NotBilled) or not failure.retryable or attempt >= rules.attempts:
        return None
    asked_s = failure.retry_after_s or 0.0
    if asked_s > rules.patience_s or not budget.take():
        return None
    return asked_s + chance() * min(rules.cap_s, rules.base_s * 2 ** (attempt - 1))
