"""What the verbs share: others' words command no terminal, options are JSON or words, and hints can be pasted."""

from __future__ import annotations

import io
import shlex
from typing import Any

import click
import pytest
from rich.console import Console

from rag.cli.ask_forms import show_needs
from rag.cli.common import Caller, options_of, printable
from rag.clients.a2a import Needs


def test_words_of_others_command_no_terminal_and_keep_their_lines() -> None:
    assert printable("a\x1b[2Jb\x9b1A\rc\u202ed\n\te") == "a\ufffd[2Jb\ufffd1A\ufffdc\ufffdd\n\te"
    assert printable("naïve 数 👩‍👩‍👧") == "naïve 数 👩‍👩‍👧"


def test_what_is_to_be_approved_is_shown_as_it_is() -> None:
    hidden = {"source": "a.md\x1b[1A\x1b[2K", "text": "x\n  list_documents()"}
    pending = {"id": "call", "name": "put_document", "args": hidden}
    form = {"type": "tool_approval_request", "id": "approve", "hint": "It wants\x1b[8m to", "tools": [pending]}
    shown = io.StringIO()
    show_needs(Needs(text="", form=form, auth=False), Console(file=shown, force_terminal=True, color_system=None))
    assert "\x1b[1A" not in shown.getvalue()
    assert "\x1b[8m" not in shown.getvalue()
    assert "\n  list_documents()" not in shown.getvalue()
    assert r"\u001b[1A" in shown.getvalue()


@pytest.mark.parametrize(
    ("pair", "value"),
    [("a=5", 5), ('a={"b": [1]}', {"b": [1]}), ("a=two words", "two words"), ("a=b=c", "b=c"), ("a=", "")],
)
def test_an_option_is_json_or_words(pair: str, value: Any) -> None:
    assert options_of((pair,)) == {"a": value}


@pytest.mark.parametrize("pair", ["a", "=5", ""])
def test_an_option_without_a_name_or_a_value_is_refused(pair: str) -> None:
    with pytest.raises(click.UsageError):
        options_of((pair,))


def test_a_caller_is_named_again_by_the_same_options() -> None:
    caller = Caller(tenant="acme", user="o'hara", groups=("a b", "c"))
    expected = ["--tenant", "acme", "--user", "o'hara", "--as-group", "a b", "--as-group", "c"]
    assert shlex.split(caller.arguments()) == expected
    assert Caller(tenant=None, user=None, groups=()).arguments() == ""
