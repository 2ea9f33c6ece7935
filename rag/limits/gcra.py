"""The generic cell rate algorithm as a pure function: one number per tenant says when the next request is due.

Above: `limiter`, which holds the numbers in this process or in Redis (the Lua below computes the same). Below: nothing.
ITU-T I.371, annex A; the virtual scheduling form.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["REDIS_SCRIPT", "Rate", "decide"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How much is let in: one unit each `interval_s`, and up to `burst` units at once after a pause."""

    interval_s: float
    burst: int


def decide(rate: Rate, *, due_s: float, now_s: float, cost: int) -> tuple[float, float]:
    """Return the seconds to wait (0: the request is let in) and the due time to keep.

    A cost above the burst counts as the burst: it waits for all of it and is not refused for ever.
    """
    increment = rate.interval_s * min(cost, rate.burst)
    new_due = max(due_s, now_s) + increment
    wait = new_due - rate.interval_s * rate.burst - now_s
    # a nanosecond of slack: sums of floats must not refuse the last unit of a burst
    return (wait, due_s) if wait > 1e-9 else (0.0, new_due)


REDIS_SCRIPT = """
local interval, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local due = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now) + interval * math.min(cost, burst)
local wait = due - interval * burst - now
if wait > 0.000001 then
    return tostring(wait)
end
redis.call('SET', KEYS[1], string.format('%.6f', due), 'PX', math.ceil((due - now) * 1000) + 1000)
return '0'
"""
"""The same decision on the server's clock, atomic because Redis runs one script at a time."""
