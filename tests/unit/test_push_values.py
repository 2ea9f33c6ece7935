"""How patiently a webhook is told, and what may stand in its headers."""

from __future__ import annotations

import pytest

from rag.errors import InvalidInput
from rag.push.notice import RetryAfter
from rag.push.values import PACE, Credentials, NewWebhook, Pace


def test_waits_grow_are_spread_over_their_upper_half_and_end() -> None:
    longest = [PACE.delay_s(attempts, 1.0) for attempts in range(1, 9)]
    assert longest == [2.0, 10.0, 50.0, 250.0, 1250.0, 3600.0, 3600.0, None]
    assert [PACE.delay_s(attempts, 0.0) for attempts in range(1, 8)] == [
        None if wait is None else wait / 2 for wait in longest[:-1]
    ]


def test_a_lease_outlasts_a_delivery() -> None:
    assert PACE.lease_s > PACE.timeout_s + 10
    assert 10 <= PACE.timeout_s <= 30, "A2A 1.0, section 13.2"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("9" * 40, 3600.0),
        ("Thu, 01 Jan 1970 00:18:40 GMT", 120.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("soon", 0.0),
        ("-5", 0.0),
        ("\u0661\u0662", 0.0),
        ("Thu, 01 Jan 99999 00:00:00 GMT", 0.0),
    ],
)
def test_a_receivers_wish_to_be_left_alone_is_read_or_counts_for_nothing(text: str, seconds: float) -> None:
    assert RetryAfter(text).seconds(1000.0) == seconds


def test_one_attempt_may_be_all() -> None:
    assert Pace(attempts=1).delay_s(1, 0.5) is None


@pytest.mark.parametrize(
    "credentials",
    [
        Credentials(token="a\nb"),
        Credentials(token="t" * 1025),
        Credentials(token="schlüssel"),
        Credentials(scheme="Bearer", credentials="a\r\nx: y"),
        Credentials(scheme="Bearer", credentials="c" * 4097),
        Credentials(scheme="Be arer"),
        Credentials(scheme="B" * 65),
        Credentials(scheme=""),
        Credentials(credentials="without a scheme"),
    ],
)
def test_what_cannot_stand_in_a_header_is_refused(credentials: Credentials) -> None:
    with pytest.raises(InvalidInput):
        NewWebhook(url="https://hook.example/", credentials=credentials).check()


@pytest.mark.parametrize("config_id", ["", "i" * 257, "nul\0"])
def test_a_name_that_cannot_be_kept_is_refused(config_id: str) -> None:
    with pytest.raises(InvalidInput):
        NewWebhook(url="https://hook.example/", config_id=config_id).check()


def test_no_credential_shows_in_what_is_logged() -> None:
    hook = NewWebhook(
        url="https://hook.example/", credentials=Credentials(token="hush", scheme="Basic", credentials="hush")
    )
    assert "hush" not in repr(hook)
