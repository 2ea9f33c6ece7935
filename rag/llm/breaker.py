"""Circuit breakers, one for each model at each endpoint: what fails is left alone for a while, then tried once.

Above: `gateway`. Below: nothing. No I/O and no waiting; time and chance are passed in.

    closed -> open          so many failures in a row, or too many of the last calls
    open -> half-open       after a pause, which is longer each time and never the same for two processes
    half-open -> closed     the one call that was let in succeeded; `-> open: it failed

A library would do if one let just one call in while it is half-open. In purgatory 3.0.1 and aiobreaker 1.2.0 every
caller that waited gets through at once, to a server about to recover; purgatory counts a cancelled call as a failure.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from rag.clock import Clock

__all__ = ["BreakerOpen", "BreakerRules", "BreakerState", "Breakers", "Trial"]

State = Literal["closed", "open", "half_open"]


class BreakerOpen(Exception):
    """The server is being left alone: nothing was sent. Never leaves `rag.llm`."""

    def __init__(self, retry_after_s: float) -> None:
        """`retry_after_s`: nobody is let in before."""
        super().__init__("the model server failed repeatedly and is left alone for a while")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRules:
    """When a breaker opens, and for how long."""

    in_a_row: int = 5
    """So many failures, no success between them."""
    window: int = 20
    """So many of the last calls, all within `window_s`, are looked at for `share`."""
    window_s: float = 60.0
    share: float = 0.5
    """Failures among them."""
    pause_s: float = 5.0
    """The first time; doubled each time that the one call fails."""
    max_pause_s: float = 120.0
    jitter: float = 0.5
    """A pause is longer by up to this share of it."""
    probe_s: float = 300.0
    """The one call's place is given on after so long, should its owner never say how it ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerState:
    """What a breaker looks like now."""

    endpoint: str
    model: str
    state: State
    failures: int
    """In a row."""
    retry_after_s: float
    """0 unless it is open."""


@dataclass(slots=True, kw_only=True)
class Trial:
    """One call that was let in. Its owner says once how it ended, or nothing if that tells nothing of the server."""

    outcome: bool | None = None

    def succeeded(self) -> None:
        """The server answered to the end."""
        self.outcome = True

    def failed(self) -> None:
        """The server was at fault."""
        self.outcome = False


@dataclass(slots=True, kw_only=True)
class _Breaker:
    era: int = 0
    """Counts changes of state: how a call ended that began in another era says nothing about this one."""
    in_a_row: int = 0
    last: deque[tuple[float, bool]] = field(default_factory=deque[tuple[float, bool]])
    """When calls ended, and whether they failed."""
    pause_s: float | None = None
    """Of this opening. None: closed."""
    until: float = 0.0
    probe_until: float | None = None
    """The one call is under way, and keeps its place until then."""


class Breakers:
    """Every breaker of this process. They are not shared between processes: each sees for itself."""

    def __init__(
        self,
        *,
        rules: BreakerRules | None = None,
        clock: Clock = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`chance` returns numbers from 0 to 1."""
        self._rules = rules or BreakerRules()
        self._clock = clock
        self._chance = chance
        self._breakers: dict[tuple[str, str], _Breaker] = {}

    def lets_in(self, endpoint: str, model: str) -> bool:
        """Tell whether a call would be let in now. Changes nothing: of two that are told yes, one may get in."""
        breaker = self._breakers.get((endpoint, model))
        return breaker is None or self._wait_s(breaker) == 0

    @contextmanager
    def trial(self, endpoint: str, model: str) -> Generator[Trial]:
        """Let a call in for as long as the block lasts.

        However the block is left, a place as the one call is given back; without a word on how the call ended, as when
        it was cancelled, nothing is learnt from it and the next caller is let in.

        Raises:
            BreakerOpen: Nobody is let in, or the one call is under way.
        """
        breaker = self._breakers.setdefault((endpoint, model), _Breaker())
        wait_s = self._wait_s(breaker)
        if wait_s > 0:
            raise BreakerOpen(wait_s)
        era = breaker.era
        if breaker.pause_s is not None:
            # A later probe, let in because this one's time was over, is another era.
            breaker.era = era = era + 1
            breaker.probe_until = self._clock() + self._rules.probe_s
        trial = Trial()
        try:
            yield trial
        finally:
            if breaker.era == era:
                self._end(breaker, succeeded=trial.outcome)

    def state(self) -> tuple[BreakerState, ...]:
        """Return every breaker that a call has passed, by endpoint and model."""
        return tuple(
            BreakerState(
                endpoint=endpoint,
                model=model,
                state=self._state(breaker),
                failures=breaker.in_a_row,
                retry_after_s=self._wait_s(breaker),
            )
            for (endpoint, model), breaker in sorted(self._breakers.items())
        )

    def _state(self, breaker: _Breaker) -> State:
        if breaker.pause_s is None:
            return "closed"
        return "open" if self._clock() < breaker.until else "half_open"

    def _wait_s(self, breaker: _Breaker) -> float:
        now = self._clock()
        if breaker.pause_s is None:
            return 0.0
        if breaker.probe_until is not None and breaker.probe_until > now:
            # How long the one call takes nobody knows. Who asks again soon finds out.
            return min(self._rules.pause_s, breaker.probe_until - now)
        return max(0.0, breaker.until - now)

    def _end(self, breaker: _Breaker, *, succeeded: bool | None) -> None:
        breaker.probe_until = None
        if succeeded is None:
            return
        if breaker.pause_s is not None:
            if succeeded:
                self._close(breaker)
            else:
                breaker.in_a_row += 1
                self._open(breaker, pause_s=min(self._rules.max_pause_s, 2 * breaker.pause_s))
            return
        breaker.in_a_row = 0 if succeeded else breaker.in_a_row + 1
        if self._noted(breaker, failed=not succeeded) or breaker.in_a_row >= self._rules.in_a_row:
            self._open(breaker, pause_s=self._rules.pause_s)

    def _noted(self, breaker: _Breaker, *, failed: bool) -> bool:
        """Note how a call ended; return whether too many of the last ones failed."""
        now = self._clock()
        breaker.last.append((now, failed))
        while len(breaker.last) > self._rules.window or breaker.last[0][0] < now - self._rules.window_s:
            breaker.last.popleft()
        failures = sum(failed for _, failed in breaker.last)
        return len(breaker.last) == self._rules.window and failures >= self._rules.share * self._rules.window

    def _open(self, breaker: _Breaker, *, pause_s: float) -> None:
        breaker.era += 1
        breaker.pause_s = pause_s
        breaker.until = self._clock() + pause_s * (1 + self._rules.jitter * self._chance())
        breaker.last.clear()

    def _close(self, breaker: _Breaker) -> None:
        breaker.era += 1
        breaker.pause_s = None
        breaker.in_a_row = 0
