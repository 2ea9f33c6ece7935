"""`bulkhead secrets`: everything that the deployments refer to is made once, private, and never shown."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from rag.cli.secrets import secrets
from rag.errors import Misconfigured
from rag.identity.keys import load_public_keys, load_signing_key
from rag.identity.outward import load_outward_key
from rag.identity.seal import load_seal_keys
from tests.support.deployment import init_secrets

PUBLIC = {"ca.pem", "server.pem"}


def _contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def _rotate(directory: Path, kind: str) -> None:
    result = CliRunner().invoke(secrets, ["rotate", str(directory), kind], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_the_files_are_private_and_git_ignores_them(tmp_path: Path) -> None:
    init_secrets(tmp_path / "secrets")
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    for path in _contents(tmp_path / "secrets"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o644 if path.name in PUBLIC else 0o600), path.name
    assert (tmp_path / "secrets" / ".gitignore").read_text() == "*\n"


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    init_secrets(tmp_path)
    before = _contents(tmp_path)
    assert "nothing, all was there" in init_secrets(tmp_path, "--host", "elsewhere")
    assert _contents(tmp_path) == before


def test_a_lost_file_comes_back_and_the_others_stay(tmp_path: Path) -> None:
    init_secrets(tmp_path)
    before = _contents(tmp_path)
    (tmp_path / "admin-database-url").unlink()
    init_secrets(tmp_path)
    assert _contents(tmp_path) == before, "the administrator's URL follows from the password that was kept"


def test_no_secret_is_printed_and_none_is_used_twice(tmp_path: Path) -> None:
    output = init_secrets(tmp_path)
    logins = ("admin", "owner", "app", "worker", "maintenance")
    urls = [(tmp_path / f"{name}-database-url").read_text() for name in logins]
    words = [str(urlsplit(url).password) for url in urls]
    words += [(tmp_path / name).read_text() for name in ("redis-password", "llm-api-key")]
    assert len(set(words)) == len(words)
    assert all(len(word) >= 32 and word not in output for word in words)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Misconfigured, match="choose another folder"):
        init_secrets(tmp_path / "file" / "secrets")


def test_a_new_signing_key_signs_and_the_old_one_still_verifies(tmp_path: Path) -> None:
    init_secrets(tmp_path)
    old = load_signing_key(tmp_path / "signing").kid
    _rotate(tmp_path, "signing")
    new = load_signing_key(tmp_path / "signing").kid
    assert new != old
    assert set(load_public_keys(tmp_path / "signing")) == {new, old}
    assert f"SIGNING_KID={new}\n" in (tmp_path / "compose.env").read_text()


def test_a_new_outward_key_signs_and_the_one_before_it_stays_published(tmp_path: Path) -> None:
    init_secrets(tmp_path)
    first = load_outward_key(tmp_path / "outward")
    _rotate(tmp_path, "outward")
    second = load_outward_key(tmp_path / "outward")
    assert first is not None
    assert second is not None
    assert [key["kid"] for key in json.loads(second.jwks)["keys"]] == [second.kid, first.kid]
    assert f"OUTWARD_KID={second.kid}\n" in (tmp_path / "compose.env").read_text()


def test_a_folder_of_the_version_before_gets_an_outward_key_when_another_is_rotated(tmp_path: Path) -> None:
    init_secrets(tmp_path)
    shutil.rmtree(tmp_path / "outward")
    _rotate(tmp_path, "signing")
    assert load_outward_key(tmp_path / "outward") is not None


def test_two_seal_keys_are_held_during_a_rotation_and_the_oldest_goes(tmp_path: Path) -> None:
    init_secrets(tmp_path)
    first = load_seal_keys(tmp_path / "seal-keys.json")
    _rotate(tmp_path, "seal")
    second = load_seal_keys(tmp_path / "seal-keys.json")
    assert set(second.keys) == {first.active, second.active}
    assert second.keys[first.active] == first.keys[first.active]
    _rotate(tmp_path, "seal")
    third = load_seal_keys(tmp_path / "seal-keys.json")
    assert set(third.keys) == {second.active, third.active}
    assert stat.S_IMODE((tmp_path / "seal-keys.json").stat().st_mode) == 0o600


def test_a_folder_with_anything_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("a checkout, or a home", encoding="utf-8")
    with pytest.raises(Misconfigured, match=r"holds README\.md"):
        CliRunner().invoke(secrets, ["init", str(tmp_path)], catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_keys_are_rotated_only_where_they_were_made(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="was not made by"):
        CliRunner().invoke(secrets, ["rotate", str(tmp_path), "signing"], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []
