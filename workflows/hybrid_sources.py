"""Two kinds of sources in one answer: stored text, and what somebody else's server said. Pure.

Above: `hybrid_graph`. Below: `citations`. An external passage is a span of a recorded result, as an internal one is a
span of a document; so the answerer sees no difference, and everything that is shown does. A quote of an external
passage is checked against the recorded result, and is never called verified: nobody here vouches for what it says.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

from rag.llm.sentences import content_words, sentence_spans
from workflows.citations import (
    Citation,
    Claim,
    Delivered,
    Key,
    Quote,
    Statement,
    Unverified,
    deliver,
    key_of,
    measured,
)

__all__ = [
    "Outcome",
    "Recorded",
    "Shown",
    "fused",
    "holding",
    "is_external",
    "passages_of",
    "shown",
]

MAX_PASSAGES = 10
MAX_PASSAGE_CHARS = 14_000
PIECE_CHARS = 1_000
"""An external result is cut into passages of about this length, at the ends of sentences."""
MAX_PIECES = 8
"""Of one result: those that share most words with the question."""
RRF_K = 60
NOTHING_VERIFIED = "Nothing of what was written holds against its sources, so there is no answer to give."
_PREFIX = "external:"
_OFFSET = 1_000_000
"""Added to the numbers of external citations while a text is put together: no answer has such a marker itself."""
_MARKER = re.compile(r"\[(\d+(?:, \d+)*)\]")


class Recorded(TypedDict):
    """What an external tool answered, as the run's record has it."""

    server: str
    tool: str
    at: str
    """When, in UTC (ISO 8601)."""
    sha256: str
    """Of `text` as UTF-8, hexadecimal."""
    text: str
    truncated: bool


class Outcome(TypedDict):
    """What became of asking one external server."""

    server: str
    status: Literal["asked", "not asked", "failed"]
    reason: str
    """Why it did not answer; "" where it did."""
    results: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An answer as the caller gets it."""

    text: str
    data: dict[str, Any]


def is_external(document_id: str) -> bool:
    """Tell whether a passage or quote is of an external result."""
    return document_id.startswith(_PREFIX)


def _id_of(recorded: Recorded) -> str:
    return f"{_PREFIX}{recorded['server']}:{recorded['tool']}:{recorded['sha256'][:16]}"


def passages_of(recorded: Recorded, question: str) -> list[dict[str, Any]]:
    """Return the result as passages, those first that share most words with the question."""
    text = recorded["text"]
    wanted = content_words(question)
    pieces: list[tuple[int, int]] = []
    for start, end in sentence_spans(text):
        if pieces and end - pieces[-1][0] <= PIECE_CHARS:
            pieces[-1] = (pieces[-1][0], end)
        else:
            pieces.append((start, end))
    ranked = sorted(pieces, key=lambda span: -len(wanted & content_words(text[span[0] : span[1]])))
    return [
        {
            "document_id": _id_of(recorded),
            "source": recorded["server"],
            "title": f"{recorded['server']} (external)",
            "heading": "",
            "version": 0,
            "start": start,
            "end": end,
            "text": text[start:end],
        }
        for start, end in ranked[:MAX_PIECES]
    ]


def fused(lists: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the best passages of all lists by reciprocal rank (k = 60), within the bounds; ties in the lists' order.

    Scores of different searches do not compare, so only the places count.
    """
    scored = [(1 / (RRF_K + rank), passage) for passages in lists for rank, passage in enumerate(passages, start=1)]
    kept: list[dict[str, Any]] = []
    left = MAX_PASSAGE_CHARS
    texts: set[str] = set()
    for score, passage in sorted(scored, key=lambda pair: -pair[0]):
        if len(kept) == MAX_PASSAGES:
            break
        if len(passage["text"]) <= left and passage["text"] not in texts:
            texts.add(passage["text"])
            kept.append({**passage, "score": round(score, 6)})
            left -= len(passage["text"])
    return kept


def holding(quotes: Iterable[Quote], results: Sequence[Recorded]) -> dict[Key, Citation]:
    """Return those of the quotes whose words stand at their place in the recorded result that they name."""
    by_id = {_id_of(one): one for one in results}
    found: dict[Key, Citation] = {}
    for quote in quotes:
        recorded = by_id.get(quote["document_id"])
        if recorded is None or hashlib.sha256(recorded["text"].encode()).hexdigest() != recorded["sha256"]:
            continue
        words = quote["quote"]
        if words and recorded["text"][quote["start"] : quote["end"]] == words:
            digest = hashlib.sha256(words.encode()).hexdigest()
            found[key_of(quote)] = Citation(**quote, version=0, quote_sha256=digest, verified=True)
    return found


def shown(
    text: str,
    of: Sequence[Statement],
    held: Mapping[Key, Citation],
    results: Sequence[Recorded],
    outcomes: Sequence[Outcome],
    *,
    unverified: Unverified,
) -> Shown:
    """Return the answer with its two kinds of citations told apart, in the text and in the data.

    Args:
        text: The answer.
        of: Its statements.
        held: The quotes that hold, against stored text or against a recorded result.
        results: The recorded results.
        outcomes: What became of each server.
        unverified: See `citations.deliver`.
    """

    def number(claim: Claim, citation: Citation) -> int:
        return claim["n"] + (_OFFSET if is_external(citation["document_id"]) else 0)

    delivered = deliver(text, of, held, unverified=unverified, number=number)
    if of and not delivered.statements:
        delivered = replace(delivered, text=NOTHING_VERIFIED)
    by_id = {_id_of(one): one for one in results}
    internal = [(n, one) for n, one in delivered.citations if n < _OFFSET]
    external = [
        _external(n - _OFFSET, one, by_id[one["document_id"]]) for n, one in delivered.citations if n >= _OFFSET
    ]
    return Shown(
        text=_MARKER.sub(_marked, delivered.text) + _missing(outcomes),
        data={
            "citations": [{"n": n, **one} for n, one in internal],
            "external": external,
            "claims": [_claim(one) for one in delivered.claims],
            **measured([_internal(delivered, of, held)], unverified=unverified),
            "sources": [dict(one) for one in outcomes],
        },
    )


def _external(n: int, quoted: Citation, recorded: Recorded) -> dict[str, Any]:
    return {
        "n": n,
        "server": recorded["server"],
        "tool": recorded["tool"],
        "at": recorded["at"],
        "result_sha256": recorded["sha256"],
        "start": quoted["start"],
        "end": quoted["end"],
        "quote": quoted["quote"],
        "quote_sha256": quoted["quote_sha256"],
        "verified": False,
        "checked_against": "recorded result",
    }


def _claim(one: Mapping[str, Any]) -> dict[str, Any]:
    numbers: list[int] = one["citations"]
    return {
        "text": one["text"],
        "verified": any(n < _OFFSET for n in numbers),
        "external": any(n >= _OFFSET for n in numbers),
        "citations": [n % _OFFSET for n in numbers],
    }


def _internal(delivered: Delivered, of: Sequence[Statement], held: Mapping[Key, Citation]) -> Delivered:
    """Return the counts of what rests on stored text alone: quoting a stranger correctly verifies nothing."""
    strangers = [
        claim
        for one in of
        for claim in one["claims"]
        if claim["quotes"] and all(key_of(q) in held and is_external(q["document_id"]) for q in claim["quotes"])
    ]
    covered = sum(any(n < _OFFSET for n in one["citations"]) for one in delivered.claims)
    return replace(
        delivered,
        claimed=delivered.claimed - len(strangers),
        verified=delivered.verified - len(strangers),
        covered=covered,
    )


def _marked(marker: re.Match[str]) -> str:
    numbers = [int(number) for number in marker[1].split(", ")]
    return f"[{', '.join(f'{n - _OFFSET} external' if n >= _OFFSET else str(n) for n in numbers)}]"


def _missing(outcomes: Sequence[Outcome]) -> str:
    lines = [f"- {one['server']}: {one['reason']}" for one in outcomes if one["status"] != "asked"]
    return "\n\nWithout these external servers:\n" + "\n".join(lines) if lines else ""
