"""When schedules come due: cron in time zones, where clocks change, and intervals that do not drift."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rag.errors import InvalidInput
from rag.schedules.timing import Timing, duration_s, next_after, timing


def _cron(expression: str, zone: str = "Europe/Berlin") -> Timing:
    return Timing(cron=expression, time_zone=zone, every_s=None)


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _times(when: Timing, after: str, number: int) -> list[str]:
    """Fire `number` times, each time asking anew, as the loop does."""
    found: list[str] = []
    at = _utc(after)
    for _ in range(number):
        due = next_after(when, at)
        assert due is not None
        assert due > at
        found.append(f"{due:%m-%d %H:%M}")
        at = due
    return found


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        # summer time begins on 2026-03-29 at 02:00, which is 03:00 (01:00 UTC)
        ("30 2 * * *", "2026-03-28T00:00", ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
        ("0 7 * * *", "2026-03-28T00:00", ["03-28 06:00", "03-29 05:00", "03-30 05:00"]),
        ("0 * * * *", "2026-03-28T23:30", ["03-29 00:00", "03-29 01:00", "03-29 02:00"]),
        # and ends on 2026-10-25 at 03:00, which is 02:00 again (01:00 UTC)
        ("30 2 * * *", "2026-10-24T12:00", ["10-25 00:30", "10-26 01:30"]),
        ("*/30 * * * *", "2026-10-25T00:15", ["10-25 00:30", "10-25 01:00", "10-25 01:30", "10-25 02:00"]),
        ("0 7 * * *", "2026-10-24T12:00", ["10-25 06:00", "10-26 06:00"]),
    ],
)
def test_clocks_that_change_are_followed_as_debian_cron_does(expression: str, after: str, expected: list[str]) -> None:
    assert _times(_cron(expression), after, len(expected)) == expected


def test_in_the_second_pass_of_an_hour_nothing_that_is_past_comes_due() -> None:
    second_pass = _utc("2026-10-25T01:40")  # 02:40 in Berlin, for the second time
    assert next_after(_cron("50 2 * * *"), second_pass) == _utc("2026-10-26T01:50")


def test_weekdays_days_and_months_are_read() -> None:
    assert _times(_cron("30 7 * * mon-fri", "UTC"), "2026-11-20T12:00", 2) == ["11-23 07:30", "11-24 07:30"]
    assert _times(_cron("0 0 L * *", "UTC"), "2026-02-01T00:00", 2) == ["02-28 00:00", "03-31 00:00"]
    assert _times(_cron("0 0 29 2 *", "UTC"), "2026-02-01T00:00", 1) == ["02-29 00:00"]


@pytest.mark.parametrize(
    ("cron", "zone"),
    [
        ("", None),
        ("* * * *", None),
        ("* * * * * *", None),  # with seconds
        ("61 * * * *", None),
        ("* * * * bogus", None),
        ("0 0 30 2 *", None),  # there is no such day
        ("@daily", None),
        ("0 7 * * *", "Europe/Atlantis"),
        ("0 7 * * *", "../etc/passwd"),
        ("0 7 * * *", "/etc/localtime"),
        ("0 7 * * *", ""),
        ("0 7 * * *", "\0"),
        ("0," * 200 + "0 7 * * *", None),
    ],
)
def test_what_cannot_be_read_is_refused(cron: str, zone: str | None) -> None:
    if zone == "":
        assert timing(cron=cron, time_zone=zone, every_s=None).time_zone == "UTC"
        return
    with pytest.raises(InvalidInput):
        timing(cron=cron, time_zone=zone, every_s=None)


def test_exactly_one_way_to_say_when_is_taken() -> None:
    for cron, every_s in ((None, None), ("0 7 * * *", 3600.0)):
        with pytest.raises(InvalidInput, match="say when"):
            timing(cron=cron, time_zone=None, every_s=every_s)
    with pytest.raises(InvalidInput, match="no time zone"):
        timing(cron=None, time_zone="UTC", every_s=3600.0)
    for every_s in (59.0, 367 * 86_400.0, float("nan")):
        with pytest.raises(InvalidInput, match="an interval is"):
            timing(cron=None, time_zone=None, every_s=every_s)


def test_an_interval_stays_on_its_grid_however_late_it_fires() -> None:
    every = timing(cron=None, time_zone=None, every_s=3600.0)
    due = _utc("2026-11-20T10:00")
    assert next_after(every, due + timedelta(seconds=59), due=due) == _utc("2026-11-20T11:00")
    assert next_after(every, due + timedelta(hours=5, minutes=1), due=due) == _utc("2026-11-20T16:00")
    assert next_after(every, due - timedelta(minutes=1), due=due) == _utc("2026-11-20T11:00")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("6h", 21_600), ("7D", 604_800), ("2w", 1_209_600)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "6", "h", "-6h", "6 h", "1.5h", "6y", "9999999999d", "６h"])
def test_durations_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="such as 15m"):
        duration_s(text)
