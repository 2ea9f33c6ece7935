"""Verified citations: what an answer claims, which words it stands on, and what of it is shown. Pure.

Above: every graph that answers. Below: `rag.llm.citations`, the errors. `checking` does the reading in between.

1. `statements` cuts an answer into sentences; each marker [n] of a sentence is a claim: these words, at this place.
2. `reads` says which spans of which documents have to be read for that; `checking` reads them, now and as the caller.
3. `held` keeps a quote only if the stored text has exactly its words at exactly its place.
4. `deliver` drops or marks the claims of which a quote did not hold, and counts. Only quotes that held are citations.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict

from rag.errors import Unavailable
from rag.llm.chat import Answer, Passage
from rag.llm.citations import statements_of

__all__ = [
    "UNVERIFIED_MARK",
    "Citation",
    "Claim",
    "Delivered",
    "Key",
    "Quote",
    "Read",
    "Statement",
    "Unverified",
    "deliver",
    "held",
    "key_of",
    "measured",
    "quotes_of",
    "reads",
    "statements",
    "without_markers",
]

Unverified: TypeAlias = Literal["drop", "mark"]
"""What becomes of a statement of which no claim holds: it is taken out, or it stays and says so."""
UNVERIFIED_MARK = "[unverified]"
MAX_READ_CHARS = 20_000
"""Of one read: below what the server returns at a time (rag.corpus.store.MAX_PART_CHARS)."""
MAX_GAP_CHARS = 4_000
"""Two quotes nearer than this are read together: text is cheaper than a call."""
_SPACES = re.compile(r"[ \t]{2,}")
_EMPTY_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]*(?:\n|$)", re.MULTILINE)
_GAP = re.compile(r"\n{3,}")


class Quote(TypedDict):
    """Words, and where they were found."""

    document_id: str
    source: str
    title: str
    start: int
    end: int
    quote: str


class Citation(Quote):
    """A quote that the stored text bears out."""

    version: int
    """Of the document when it was checked."""
    quote_sha256: str
    """Of the quote as UTF-8, hexadecimal."""
    verified: Literal[True]


class Claim(TypedDict):
    """One marker of a sentence."""

    n: int
    quotes: list[Quote]
    """Empty: no words of its source bear the sentence out."""


class Statement(TypedDict):
    """A sentence of an answer."""

    start: int
    end: int
    markers: list[int]
    """[start, end) of its markers within the answer; empty where it names no source."""
    claims: list[Claim]


Key: TypeAlias = tuple[str, int, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One span of a document that bears on some quotes."""

    document_id: str
    start: int
    end: int
    quotes: tuple[Quote, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What is shown of an answer."""

    text: str
    citations: tuple[tuple[int, Citation], ...] = ()
    """(the marker's number, what it stands on), in the order of the text, without repetition."""
    claims: tuple[dict[str, Any], ...] = ()
    """{"text", "verified", "citations": their numbers} of each statement that named a source and is shown."""
    statements: int = 0
    """Sentences that are shown."""
    covered: int = 0
    """Those of them with a verified citation."""
    claimed: int = 0
    """Claims that the answer made, whatever became of them."""
    verified: int = 0


def statements(answer: Answer, passages: Sequence[Mapping[str, Any]]) -> list[Statement]:
    """Return the answer's sentences, their claims placed in the documents instead of in the passages.

    Args:
        answer: What was made of `passages`.
        passages: {"document_id", "source", "title", "start", "text", ...} in the order that the answerer saw.
    """
    if answer.kind == "extractive":
        return _copied(answer, passages)
    seen = [Passage(text=str(one["text"]), title=f"{one['title']} {one.get('heading') or ''}") for one in passages]
    return [
        Statement(
            start=one.start,
            end=one.end,
            markers=[] if one.markers is None else list(one.markers),
            claims=[
                Claim(n=n, quotes=[_quote(passages[cited.passage], cited.start, cited.end) for cited in citations])
                for n, citations in one.claims
            ],
        )
        for one in statements_of(answer.text, seen)
    ]


def _copied(answer: Answer, passages: Sequence[Mapping[str, Any]]) -> list[Statement]:
    """An extractive answer is its citations' quotes, each with its marker: a copied sentence needs no cutting again."""
    found: list[Statement] = []
    at = 0
    for cited in answer.citations:
        words, marker = " ".join(cited.quote.split()), f" [{cited.passage + 1}]"
        start = answer.text.find(f"{words}{marker}", at)
        if start < 0:
            raise Unavailable("the answerer answered in an unknown form")
        at = start + len(words) + len(marker)
        quote = _quote(passages[cited.passage], cited.start, cited.end)
        claim = Claim(n=cited.passage + 1, quotes=[quote])
        found.append(Statement(start=start, end=at, markers=[at - len(marker), at], claims=[claim]))
    return found


def _quote(passage: Mapping[str, Any], start: int, end: int) -> Quote:
    return Quote(
        document_id=str(passage["document_id"]),
        source=str(passage["source"]),
        title=str(passage["title"]),
        start=int(passage["start"]) + start,
        end=int(passage["start"]) + end,
        quote=str(passage["text"])[start:end],
    )


def quotes_of(of: Iterable[Statement]) -> list[Quote]:
    """Return the quotes that statements stand on, each once, in their order."""
    found = {key_of(quote): quote for one in of for claim in one["claims"] for quote in claim["quotes"]}
    return list(found.values())


def key_of(quote: Quote) -> Key:
    """Return what makes two quotes the same."""
    return quote["document_id"], quote["start"], quote["end"], quote["quote"]


def reads(quotes: Iterable[Quote]) -> list[Read]:
    """Return the spans to read, so that near quotes of a document share one, in the order of the documents' quotes."""
    of_document: dict[str, list[Quote]] = {}
    for quote in quotes:
        of_document.setdefault(quote["document_id"], []).append(quote)
    found: list[Read] = []
    for document_id, own in of_document.items():
        near: list[Quote] = []
        for quote in sorted(own, key=lambda quote: (quote["start"], quote["end"])):
            if near and not _fits(near, quote):
                found.append(_read(document_id, near))
                near = []
            near.append(quote)
        found.append(_read(document_id, near))
    return found


def _fits(near: Sequence[Quote], quote: Quote) -> bool:
    end = max(one["end"] for one in near)
    return quote["start"] - end <= MAX_GAP_CHARS and max(end, quote["end"]) - near[0]["start"] <= MAX_READ_CHARS


def _read(document_id: str, near: Sequence[Quote]) -> Read:
    end = max(quote["end"] for quote in near)
    return Read(document_id=document_id, start=near[0]["start"], end=end, quotes=tuple(near))


def held(read: Read, stored: Mapping[str, Any]) -> dict[Key, Citation]:
    """Return those of the read's quotes whose words stand at their place in what is stored.

    Args:
        read: What was to be read.
        stored: retrieve_document's result for it.

    Raises:
        Unavailable: The result does not have the form that the tool declares.
    """
    try:
        text, start, version = str(stored["text"]), int(stored["start"]), int(stored["document"]["version"])
    except (KeyError, TypeError, ValueError) as exc:
        raise Unavailable("a document was returned in an unknown form") from exc
    found: dict[Key, Citation] = {}
    for quote in read.quotes:
        words, at = quote["quote"], quote["start"] - start
        if words and at >= 0 and text[at : quote["end"] - start] == words:
            digest = hashlib.sha256(words.encode()).hexdigest()
            found[key_of(quote)] = Citation(**quote, version=version, quote_sha256=digest, verified=True)
    return found


def deliver(
    text: str,
    of: Sequence[Statement],
    holding: Mapping[Key, Citation],
    *,
    unverified: Unverified,
    number: Callable[[Claim, Citation], int] = lambda claim, _: claim["n"],
) -> Delivered:
    """Return `text` with what holds shown as verified, and nothing else.

    A claim holds if it has quotes and all of them hold. A statement that made claims of which none holds is dropped or
    marked; one that made none is left as it is, and counts against the coverage.

    Args:
        text: The answer.
        of: Its statements, in order.
        holding: The quotes that hold.
        unverified: What becomes of the statements that do not.
        number: What to put between the brackets for a citation; by default what the answer has there.
    """
    pieces: list[str] = []
    citations: dict[tuple[int, Key], tuple[int, Citation]] = {}
    claims: list[dict[str, Any]] = []
    at = shown = covered = claimed = verified = 0
    for one in of:
        holds = [
            claim for claim in one["claims"] if claim["quotes"] and all(key_of(q) in holding for q in claim["quotes"])
        ]
        claimed += len(one["claims"])
        verified += len(holds)
        pieces.append(text[at : one["start"]])
        at = one["end"]
        if one["claims"] and not holds and unverified == "drop":
            continue
        shown += 1
        covered += bool(holds)
        numbers: dict[int, None] = {}
        for claim in holds:
            for quote in claim["quotes"]:
                citation = holding[key_of(quote)]
                numbered = number(claim, citation)
                numbers[numbered] = None
                citations.setdefault((numbered, key_of(quote)), (numbered, citation))
        pieces.append(_shown(text, one, list(numbers)))
        if one["claims"]:
            said = " ".join(_without_markers(text, one).split())
            claims.append({"text": said, "verified": bool(holds), "citations": list(numbers)})
    pieces.append(text[at:])
    return Delivered(
        text=_tidy("".join(pieces)),
        citations=tuple(citations.values()),
        claims=tuple(claims),
        statements=shown,
        covered=covered,
        claimed=claimed,
        verified=verified,
    )


def measured(delivered: Iterable[Delivered], *, unverified: Unverified) -> dict[str, Any]:
    """Return how far what was delivered is borne out, for an artifact's data part.

    precision: verified claims of all that were made, shown or not. coverage: sentences with a verified citation of all
    that are shown. Each is None where there is nothing to divide.
    """
    parts = list(delivered)
    claimed, verified = sum(one.claimed for one in parts), sum(one.verified for one in parts)
    shown, covered = sum(one.statements for one in parts), sum(one.covered for one in parts)
    return {
        "unverified": unverified,
        "claimed": claimed,
        "verified": verified,
        "dropped": claimed - verified,
        "precision": round(verified / claimed, 4) if claimed else None,
        "coverage": round(covered / shown, 4) if shown else None,
    }


def without_markers(text: str, of: Sequence[Statement]) -> str:
    """Return `text` as it reads before anything of it was checked."""
    pieces: list[str] = []
    at = 0
    for one in of:
        pieces.extend((text[at : one["start"]], _without_markers(text, one)))
        at = one["end"]
    return "".join((*pieces, text[at:])).strip()


def _shown(text: str, one: Statement, numbers: Sequence[int]) -> str:
    if not one["markers"]:
        return text[one["start"] : one["end"]]
    start, end = one["markers"]
    space = " " if start > one["start"] else ""
    marker = f"{space}[{', '.join(map(str, numbers))}]" if numbers else f"{space}{UNVERIFIED_MARK}"
    return text[one["start"] : start] + marker + text[end : one["end"]]


def _without_markers(text: str, one: Statement) -> str:
    if not one["markers"]:
        return text[one["start"] : one["end"]]
    start, end = one["markers"]
    return text[one["start"] : start] + text[end : one["end"]]


def _tidy(text: str) -> str:
    """Close the gaps that statements leave where they are dropped."""
    return _GAP.sub("\n\n", _EMPTY_ITEM.sub("", _SPACES.sub(" ", text))).strip()
