"""The keys of an external issuer, held open: fetched at the start, kept fresh in the background, outlasting its outage.

Above: `external`, on whose behalf keys are looked up; `rag.runtime`, which opens this. Below: `jwks`, passed in as a
function. One task does all fetching, so that there is one fetch at a time, whoever asks for it:

    every REFRESH_S      so a key that the issuer removed is refused after at most this
    after a failure      every RETRY_S; the last good set goes on for `keep_s`, then none of its keys is good
    for an unknown key   at once, but COOLDOWN_S after the last attempt at the earliest: a flood of tokens with invented
                         key ids costs the issuer nothing
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import anyio
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from rag.clock import Clock, system_clock
from rag.errors import Unavailable
from rag.identity.jwks import FETCH_BOUND_S

__all__ = ["COOLDOWN_S", "REFRESH_S", "RETRY_S", "RemoteKeys", "remote_keys"]

_log = logging.getLogger(__name__)
REFRESH_S = 300.0
RETRY_S = 30.0
COOLDOWN_S = 10.0
Fetch = Callable[[], Awaitable[Mapping[str, RSAPublicKey]]]


class RemoteKeys:
    """What an issuer published last. Looking up a key waits for nothing."""

    def __init__(self, fetch: Fetch, *, keep_s: float, clock: Clock = system_clock) -> None:
        """Made by `remote_keys`. `fetch` raises Unavailable where there is no key set to be had."""
        self._fetch = fetch
        self._keep_s = keep_s
        self._clock = clock
        self._keys: Mapping[str, RSAPublicKey] | None = None
        self._generation = 0
        self._fetched_at = 0.0
        self._tried_at: float | None = None
        self._failing = False
        self._wanted = anyio.Event()
        self._done = anyio.Event()
        self._fetching = False

    @property
    def generation(self) -> int:
        """Another number whenever the keys are others: what was verified with the former ones is to be forgotten."""
        return self._generation

    def knows(self, kid: str) -> bool:
        """Tell whether there is a key of that id."""
        return self._keys is not None and kid in self._keys

    def find(self, kid: str) -> RSAPublicKey | None:
        """Return the key of that id; None where the issuer publishes none.

        Raises:
            Unavailable: There is no key set: it was never fetched, or too long ago.
        """
        if self._keys is None:
            raise Unavailable("this token's issuer cannot be reached; try again in a minute")
        return self._keys.get(kid)

    async def look_again(self) -> None:
        """Wait for the fetch that is under way, or for one that begins now; for none so soon after the last one."""
        if not self._fetching:
            if self._tried_at is not None and 0 <= self._clock() - self._tried_at < COOLDOWN_S:
                return
            self._wanted.set()
        done = self._done
        with anyio.move_on_after(2 * FETCH_BOUND_S):
            await done.wait()

    async def refresh(self) -> None:
        """Fetch once. A failure is logged and leaves the keys as they are until they are too old."""
        self._fetching, self._wanted = True, anyio.Event()
        try:
            keys = await self._fetch()
        except Unavailable as exc:
            self._failed(exc.message)
        else:
            self._succeeded(keys)
        finally:
            self._fetching, self._tried_at = False, self._clock()
            done, self._done = self._done, anyio.Event()
            done.set()

    async def keep_fresh(self, *, every_s: float) -> None:
        """Fetch whenever it is time to, for ever."""
        while True:
            with anyio.move_on_after(min(RETRY_S, every_s) if self._failing else every_s):
                await self._wanted.wait()
            await self.refresh()

    def _succeeded(self, keys: Mapping[str, RSAPublicKey]) -> None:
        before, self._keys = self._keys, keys
        self._fetched_at = self._clock()
        if self._failing or before is None or _numbers(before) != _numbers(keys):
            # an empty set is an answer too: the issuer takes back all its keys
            _log.log(logging.INFO if keys else logging.ERROR, "the external issuer publishes %d keys", len(keys))
        if before is None or _numbers(before) != _numbers(keys):
            self._generation += 1
        self._failing = False

    def _failed(self, reason: str) -> None:
        first, self._failing = not self._failing, True
        if self._keys is None:
            if first:
                _log.error("no keys of the external issuer, its tokens are refused until there are: %s", reason)
        elif self._clock() - self._fetched_at > self._keep_s:
            self._keys = None
            self._generation += 1
            _log.error("the external issuer's keys are too old, its tokens are refused from now on: %s", reason)
        elif first:
            _log.warning("the external issuer's keys cannot be refreshed, the known ones go on for now: %s", reason)


@asynccontextmanager
async def remote_keys(
    fetch: Fetch, *, keep_s: float, refresh_s: float = REFRESH_S, clock: Clock = system_clock
) -> AsyncGenerator[RemoteKeys]:
    """Yield the keys that `fetch` returns, kept fresh until the block ends.

    The block begins when the first fetch has succeeded or failed: a start must not depend on the issuer, whose outage
    would otherwise spread to our own tokens with the next restart.
    """
    keys = RemoteKeys(fetch, keep_s=keep_s, clock=clock)
    await keys.refresh()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(keys.keep_fresh, every_s=refresh_s))
        try:
            yield keys
        finally:
            tasks.cancel_scope.cancel()


def _numbers(keys: Mapping[str, RSAPublicKey]) -> dict[str, tuple[int, int]]:
    numbers = {kid: key.public_numbers() for kid, key in keys.items()}
    return {kid: (number.n, number.e) for kid, number in numbers.items()}
