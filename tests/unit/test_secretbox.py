"""The secret box: what it closes opens only under its keys, for its purpose, at its place."""

from __future__ import annotations

import pytest

from rag.errors import InvalidInput, Unavailable
from rag.identity.seal import SealKeys
from rag.identity.secretbox import MAX_SECRET_CHARS, SecretBox

KEYS = SealKeys(active="new", keys={"new": b"n" * 32, "old": b"o" * 32})
PLACE = ("tenant", "server", "https://example.com/mcp")


def box(keys: SealKeys = KEYS, purpose: str = "push") -> SecretBox:
    return SecretBox.derive(keys, purpose=purpose)


def test_a_secret_comes_back_and_stands_nowhere_in_what_is_stored() -> None:
    sealed = box().seal("s3cret-of-acme", bound_to=PLACE)
    assert b"s3cret" not in sealed
    assert box().open(sealed, bound_to=PLACE) == "s3cret-of-acme"
    assert sealed != box().seal("s3cret-of-acme", bound_to=PLACE)


def test_another_purpose_or_place_does_not_open_it() -> None:
    sealed = box().seal("s3cret", bound_to=PLACE)
    for other, place in (
        (box(purpose="external servers"), PLACE),
        (box(), ("rival", "server", "https://example.com/mcp")),
        (box(), ("tenant", "server", "https://evil.example/mcp")),
        (box(), ("tenantserver", "", "https://example.com/mcp")),
    ):
        with pytest.raises(Unavailable):
            other.open(sealed, bound_to=place)


def test_what_was_tampered_with_does_not_open() -> None:
    sealed = box().seal("s3cret", bound_to=PLACE)
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(Unavailable):
            box().open(bytes(changed), bound_to=PLACE)
    for length in range(len(sealed)):
        with pytest.raises(Unavailable):
            box().open(sealed[:length], bound_to=PLACE)


def test_a_rotation_keeps_the_older_key_and_the_next_one_does_not() -> None:
    sealed = SecretBox.derive(SealKeys(active="old", keys={"old": b"o" * 32}), purpose="push").seal(
        "s3cret", bound_to=PLACE
    )
    assert box().open(sealed, bound_to=PLACE) == "s3cret"
    assert not box().is_current(sealed)
    assert box().is_current(box().seal("s3cret", bound_to=PLACE))
    with pytest.raises(Unavailable, match="set again"):
        box(SealKeys(active="new", keys={"new": b"n" * 32})).open(sealed, bound_to=PLACE)


def test_a_box_shows_no_key() -> None:
    assert "keys" not in repr(box())


@pytest.mark.parametrize("secret", ["", "x" * (MAX_SECRET_CHARS + 1)])
def test_a_secret_is_bounded(secret: str) -> None:
    with pytest.raises(InvalidInput):
        box().seal(secret, bound_to=PLACE)
