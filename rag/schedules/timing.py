"""When a schedule comes due: a cron expression read in a time zone, or a fixed interval. Pure.

Above: `store`, the doors. Below: cronsim, which follows Debian's cron to the letter, also where clocks change: what was
due in an hour that is skipped comes due at its end, what is due in an hour that comes twice comes due once, and an
expression with a star for its minute or its hour follows real time.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from rag.errors import InvalidInput

__all__ = ["MAX_EVERY_S", "MIN_EVERY_S", "Timing", "duration_s", "next_after", "timing"]

MIN_EVERY_S = 60.0
MAX_EVERY_S = 366 * 86_400.0
MAX_CRON_CHARS = 256
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When: exactly one of `cron` and `every_s` is set. Made by `timing`, which checks it."""

    cron: str | None
    """Five fields: minute, hour, day of the month, month, day of the week."""
    time_zone: str
    """A name of the IANA database, such as Europe/Berlin, in which `cron` is read."""
    every_s: float | None


def timing(*, cron: str | None, time_zone: str | None, every_s: float | None) -> Timing:
    """Return a timing that has a next time from now on.

    Raises:
        InvalidInput: Not exactly one of the two is given, the expression or the zone cannot be read, the interval is
            out of bounds, or nothing ever comes due.
    """
    if (cron is None) == (every_s is None):
        raise InvalidInput("say when: a cron expression, or an interval")
    if every_s is not None:
        if time_zone is not None:
            raise InvalidInput("an interval has no time zone; a cron expression has")
        if not MIN_EVERY_S <= every_s <= MAX_EVERY_S:
            raise InvalidInput("an interval is one minute to 366 days")
        return Timing(cron=None, time_zone="UTC", every_s=every_s)
    assert cron is not None
    made = Timing(cron=" ".join(cron.split()), time_zone=time_zone or "UTC", every_s=None)
    _zone(made.time_zone)
    if next_after(made, datetime.now(UTC)) is None:
        raise InvalidInput("nothing ever comes due by this cron expression")
    return made


def next_after(when: Timing, after: datetime, *, due: datetime | None = None) -> datetime | None:
    """Return the first time later than `after`, in UTC; None if none comes within fifty years.

    Args:
        when: Made by `timing`.
        after: With a time zone.
        due: Of an interval, a time on its grid, so that what fires late does not move what comes later. None: `after`.

    Raises:
        InvalidInput: The expression or the zone cannot be read.
    """
    if when.every_s is not None:
        start = due or after
        steps = max(math.floor((after - start).total_seconds() / when.every_s), 0) + 1
        return start.astimezone(UTC) + timedelta(seconds=steps * when.every_s)
    assert when.cron is not None
    if len(when.cron) > MAX_CRON_CHARS or len(when.cron.split()) != 5:
        raise InvalidInput("a cron expression has five fields: minute, hour, day of month, month, day of week")
    try:
        for found in CronSim(when.cron, after.astimezone(_zone(when.time_zone))):
            # in the second pass through an hour that comes twice, it offers the first pass again
            if found.astimezone(UTC) > after:
                return found.astimezone(UTC)
    except CronSimError as exc:
        raise InvalidInput(f"the cron expression cannot be read: {str(exc).lower()}") from exc
    return None


def duration_s(text: str) -> float:
    """Return the seconds of a duration such as 90s, 15m, 6h, 7d or 2w.

    Raises:
        InvalidInput: It is none.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    if found is None:
        raise InvalidInput("a duration is a number and a unit, such as 15m, 6h, 7d or 2w")
    return float(int(found[1]) * _UNITS[found[2]])


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError) as exc:  # also for a path, a directory, a file that is no zone
        raise InvalidInput("there is no such time zone; name one such as Europe/Berlin or UTC") from exc
