"""The generic cell rate algorithm as a pure function: one number per tenant says when the next request is due.

Above: `limiter`, which holds the numbers in this process or in Redis (the Lua below computes the same). Below: nothing.
ITU-T I.371, annex A; the virtual scheduling form. Time is whole microseconds: they add up exactly, in Lua's doubles too
(below 2^53), while seconds since 1970 in a float are a quarter of a microsecond coarse and refuse the end of a burst.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["REDIS_SCRIPT", "Rate", "decide"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How much is let in: one unit each `interval_us`, and up to `burst` units at once after a pause."""

    interval_us: int
    burst: int


def decide(rate: Rate, *, due_us: int, now_us: int, cost: int) -> tuple[int, int]:
    """Return the microseconds to wait (0: the request is let in) and the due time to keep.

    A cost above the burst counts as the burst: it waits for all of it and is not refused for ever.
    """
    new_due_us = max(due_us, now_us) + rate.interval_us * min(cost, rate.burst)
    wait_us = new_due_us - rate.interval_us * rate.burst - now_us
    return (wait_us, due_us) if wait_us > 0 else (0, new_due_us)


REDIS_SCRIPT = """
local interval, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local due = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now) + interval * math.min(cost, burst)
local wait = due - interval * burst - now
if wait > 0 then
    return wait
end
redis.call('SET', KEYS[1], string.format('%.0f', due), 'PX', math.ceil((due - now) / 1000) + 1000)
return 0
"""
"""The same decision on the server's clock, atomic because Redis runs one script at a time."""
