"""A task's question at the prompt: shown, answered, and turned into the response that the server reads.

Above: `ask`. Below: click. The forms are kagent's human-in-the-loop extension (workflows/forms.py, which is above us).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.text import Text as Line

from rag.cli.common import printable
from rag.clients.a2a import Needs

__all__ = ["Answer", "ask_at_prompt", "how_to_answer", "show_needs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was answered."""

    text: str
    """In words."""
    response: Mapping[str, Any] | None = None
    """In the extension's form."""


def show_needs(needs: Needs, console: Console) -> None:
    """Print what a task asks."""
    console.print(Line("\nthe task needs an authorization" if needs.auth else "\nthe task asks", style="bold yellow"))
    form = needs.form or {}
    if form.get("type") == "ask_user_request":
        for question in form["questions"]:
            console.print(Line(printable(question["question"])))
            for number, choice in enumerate(question["choices"], 1):
                console.print(Line(f"  {number}. {printable(choice)}"))
    elif form.get("type") == "tool_approval_request":
        console.print(Line(printable(form["hint"])))
        for tool in form["tools"]:
            told = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in tool["args"].items())
            console.print(Line(printable(f"  {tool['name']}({told})")))
    else:
        console.print(Line(printable(needs.text)))


def ask_at_prompt(needs: Needs) -> Answer:
    """Have the form answered at the terminal.

    Raises:
        click.Abort: It was not: Ctrl-C, or the end of the input.
    """
    form = needs.form or {}
    if form.get("type") == "ask_user_request":
        answers = [_answered(question) for question in form["questions"]]
        response = {
            "type": "ask_user_response",
            "id": form["id"],
            "answers": [{"answer": answer} for answer in answers],
        }
        return Answer(text="; ".join(", ".join(answer) for answer in answers), response=response)
    if form.get("type") == "tool_approval_request":
        approvals = [_approved(tool) for tool in form["tools"]]
        response = {"type": "tool_approval_response", "id": form["id"], "approvals": approvals}
        return Answer(text="yes" if all(one["approved"] for one in approvals) else "no", response=response)
    return Answer(text=str(click.prompt("answer", err=True)))


def how_to_answer(needs: Needs, command: str) -> str:
    """Return how to answer where nobody sits at a prompt; `command` is what comes back to the task."""
    form = needs.form or {}
    if form.get("type") == "ask_user_request" and len(form["questions"]) > 1:
        return f"answer it at a terminal: {command}"
    if form.get("type") == "tool_approval_request":
        return f"answer it with: {command} --answer yes (or no)"
    return f"answer it with: {command} --answer '...'"


def _answered(question: Mapping[str, Any]) -> list[str]:
    choices = [str(choice) for choice in question["choices"]]
    hint = " (number, several with commas)" if question["multiple"] else " (number)" if choices else ""
    while True:
        said = str(click.prompt(f"answer{hint}", err=True)).strip()
        given = [one.strip() for one in said.split(",")] if question["multiple"] else [said]
        chosen = [choices[int(one) - 1] if one.isdecimal() and 0 < int(one) <= len(choices) else one for one in given]
        if chosen and all(chosen) and (not choices or set(chosen) <= set(choices)):
            return chosen
        click.echo("choose from the list", err=True)


def _approved(tool: Mapping[str, Any]) -> dict[str, Any]:
    if click.confirm(f"approve {printable(tool['name'])}?", err=True):
        return {"id": tool["id"], "approved": True}
    reason = str(click.prompt("why not", default="", show_default=False, err=True))
    return {"id": tool["id"], "approved": False, **({"rejection_reason": reason} if reason else {})}
