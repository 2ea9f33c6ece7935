"""The values that go into an answerer and come out of one.

Above it: `rag.llm.ports` and the answerers. Below it: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["NO_ANSWER", "Answer", "Citation", "Completion", "Passage", "Served", "Usage", "answer_of"]

NO_ANSWER = "The documents found do not answer this question."


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One chunk of a document, as untrusted as the document."""

    text: str
    title: str = ""
    """Of the document, with the heading path if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """`passages[passage].text[start:end] == quote`, always: a citation that cannot be shown so is dropped."""

    passage: int
    """Counts from 0 in the order that the answerer was given."""
    start: int
    end: int
    """Offsets in characters."""
    quote: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens, as the model server counted them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Of the prompt's, those that the server had in its prefix cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Who wrote a text in the end, why this one, and what it has cost: what a result and a span say of it."""

    model: str
    endpoint: str
    tier: str
    """The model's: small, medium or large."""
    required: str
    """The tier that the rules asked for."""
    downgraded: bool = False
    """Whether the model is of a lower tier than required, as the caller's policy allows."""
    fallback: Literal["endpoint", "model"] | None = None
    """What stood in for the first choice; None: it was the first choice."""
    attempts: int = 1
    """Physical calls that were started for this text, this one included."""
    cost: str | None = None
    """Of all of them, a decimal in the installation's currency; None: the model has no price."""
    estimated: bool = False
    """Whether the server did not count, so that the cost is the upper bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer and what it rests on."""

    kind: Literal["extractive", "model"]
    """`extractive`: sentences copied from the passages, no model wrote anything."""
    model: str | None
    text: str
    citations: tuple[Citation, ...] = ()
    """In the order of the text, without repetition."""
    unverified: int = 0
    """Citations in the text that no words of the passages bear out; they are not among `citations`."""
    usage: Usage | None = None
    cut: bool = False
    """Whether the model was stopped by its token limit."""
    served: Served | None = None
    """None: no model was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a model wrote to a prompt of ours. Nobody has checked it."""

    text: str
    usage: Usage | None = None
    """None: the server does not count."""
    cut: bool = False
    """Whether the model was stopped by its token limit."""
    served: Served | None = None
    """None: no model was asked."""


def answer_of(stored: Mapping[str, Any]) -> Answer:
    """Return the answer that `dataclasses.asdict` made `stored` of, which may have been JSON in between."""
    made: dict[str, Any] = dict(stored)
    made["citations"] = tuple(Citation(**one) for one in made["citations"])
    made["usage"] = Usage(**made["usage"]) if made["usage"] is not None else None
    made["served"] = Served(**made["served"]) if made.get("served") is not None else None  # older rows know none
    return Answer(**made)
