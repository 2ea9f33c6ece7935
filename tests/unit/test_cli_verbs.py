"""The list of verbs, which is written down so that `bulkhead` need not import them all to show it."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from rag.cli import VERBS, cli

PROTOCOLS = ("mcp", "a2a", "langgraph")


@pytest.mark.parametrize("name", VERBS)
def test_the_list_says_of_each_verb_what_it_says_of_itself(name: str) -> None:
    verb = cli.get_command(click.Context(cli), name)
    assert verb is not None
    assert (verb.name, verb.get_short_help_str(limit=200)) == (name, VERBS[name].summary)


def test_a_verb_that_there_is_not_is_none() -> None:
    assert cli.get_command(click.Context(cli), "fly") is None


def test_the_list_is_shown_without_the_protocols_clients() -> None:
    code = f"import sys, rag.cli; print([name for name in {PROTOCOLS} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
