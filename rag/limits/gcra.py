"""The generic cell rate algorithm as a pure function: one number per account says when its next request is due.

Above: `counts`, which holds the numbers in this process or in Redis (the Lua below computes the same). Below: nothing.
ITU-T I.371, annex A; the virtual scheduling form. Time is whole microseconds: they add up exactly, in Lua's doubles too
(below 2^53), while seconds since 1970 in a float are a quarter of a microsecond coarse and refuse the end of a burst.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["REDIS_SCRIPT", "Rate", "decide", "redis_script", "remaining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How much is let in: one unit each `interval_us`, and up to `burst` units at once after a pause."""

    interval_us: int
    burst: int


def decide(rate: Rate, *, due_us: int, now_us: int, cost: int) -> tuple[int, int]:
    """Return the microseconds to wait (0: the request is let in) and the due time to keep.

    A cost above the burst counts as the burst: it waits for all of it and is not refused for ever. A due time further
    ahead than a whole burst was kept at a slower rate, and counts as a spent burst. Cost 0 only asks.
    """
    full_us = rate.interval_us * rate.burst
    due_us = min(max(due_us, now_us), now_us + full_us)
    new_due_us = due_us + rate.interval_us * min(cost, rate.burst)
    wait_us = new_due_us - full_us - now_us
    return (wait_us, due_us) if wait_us > 0 else (0, new_due_us)


def remaining(rate: Rate, *, ahead_us: int) -> int:
    """Return the units that are let in at once when the next request is due in `ahead_us`."""
    return max(0, rate.burst - -(-ahead_us // rate.interval_us))


def redis_script(now_us: str) -> str:
    """Return the decision over two accounts as Lua, on the clock that the Lua expression `now_us` reads.

    Atomic, because Redis runs one script at a time: both accounts are charged or neither is.

    KEYS: the tenant's account, the user's, the replicas. ARGV: cost; interval and burst of the tenant, and of the user;
    the replica's id, or '' where it has been announced lately; microseconds for which an announcement counts.
    Returns the tenant's wait and the user's, how far ahead each one's next request is due then, and the number of
    replicas (0: not asked for).
    """
    return f"local now = {now_us}\n{_DECISION}"


_DECISION = """
local cost = tonumber(ARGV[1])
local waits, dues = {}, {}
for i = 1, 2 do
    local interval, burst = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
    local full = interval * burst
    local due = math.min(math.max(tonumber(redis.call('GET', KEYS[i]) or '0'), now), now + full)
    local charged = due + interval * math.min(cost, burst)
    waits[i] = math.max(0, charged - full - now)
    dues[i] = {due, charged}
end
local let_in = waits[1] == 0 and waits[2] == 0
for i = 1, 2 do
    local due = dues[i][let_in and 2 or 1]
    if let_in and cost > 0 then
        redis.call('SET', KEYS[i], string.format('%.0f', due), 'PX', math.ceil((due - now) / 1000) + 1000)
    end
    dues[i] = due - now
end
local replicas = 0
if ARGV[6] ~= '' then
    local window = tonumber(ARGV[7])
    redis.call('ZADD', KEYS[3], string.format('%.0f', now), ARGV[6])
    redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now - window))
    redis.call('PEXPIRE', KEYS[3], math.ceil(window / 1000))
    replicas = redis.call('ZCARD', KEYS[3])
end
return {waits[1], waits[2], dues[1], dues[2], replicas}
"""

REDIS_SCRIPT = "local time = redis.call('TIME')\n" + redis_script("tonumber(time[1]) * 1000000 + tonumber(time[2])")
"""On the server's clock, which all replicas share."""
