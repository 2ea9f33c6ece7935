"""What a model says it took from a passage is checked here against the passage, word for word.

Above it: `rag.llm.answerer`, the workflows. Below it: `rag.llm.sentences`. Pure.

For each marker `[n]` in the answer:

1. n must count one of the passages.
2. The claim is the sentence that the marker closes (or opens, when nothing precedes it).
3. If the claim quotes words, each quotation must stand in the passage, white space aside; that place is the citation.
   A quotation that the claim only opens, or only closes, is its words to the claim's end, or from its beginning.
4. If it quotes nothing, the citation is the passage's sentence that shares most words with the claim, if they suffice,
   among those that have every number of the claim. (A number of the passage's title may stand there alone.)
5. A marker that fails any of these is unverified. No citation is ever built from the model's own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rag.llm.chat import Citation, Passage
from rag.llm.sentences import content_words, sentence_spans

__all__ = ["Statement", "Verified", "statements_of", "verify_citations"]

MIN_SHARED_WORDS = 2
MIN_SHARED_PART = 0.4
"""Of the claim's content words."""
MIN_QUOTATION_CHARS = 8
MAX_RANGE = 20
"""Passages that a marker like [2-5] can name; of a longer one the ends are taken."""

_SOURCE = r"(?:\^|(?:sources?|passages?)\s+)?\d{1,3}"
_MARKERS = re.compile(rf"(?:[\s,;]*[\[【]\s*{_SOURCE}(?:\s*[,;–—-]\s*{_SOURCE})*\s*[\]】])+", re.IGNORECASE)
"""[2], [2, 3], [2][3], and what models make of it: [2-4], [ 2 ], [source 2], [^2], 【2】. None is left unchecked."""
_NUMBERS = re.compile(r"(\d+)(?:\s*[–—-]\s*(\d+))?")
_QUOTATIONS = (
    re.compile(r"[“„]([^“”„]+)(?:[”“]|$)|^([^“”„]+)”"),
    re.compile(r"«([^«»]+)(?:»|$)"),
    re.compile(r"‘([^‘]+)’(?!\w)|(?<!\w)'((?:[^']|(?<=\w)'(?=\w))+)'(?!\w)"),
)
_STRAIGHT = '"'
_NUMERAL = re.compile(r"\d+(?:[.,]\d+)*")
_ENUMERATOR = re.compile(r"\A\s*\(?\d{1,3}[.)]\s")
_QUOTE_MARKS = re.compile(r"[“”\"‘’']")
_CLOSING = re.compile(r"[.,;:!?…)”\"’]*")

Span = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The citations that hold, and the number of those that do not."""

    citations: tuple[Citation, ...]
    unverified: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One sentence of an answer, and what it claims to rest on."""

    start: int
    end: int
    """Where it stands in the answer, its markers and closing punctuation included."""
    markers: Span | None = None
    """Where its markers stand, with the space before them; None: it names no source."""
    claims: tuple[tuple[int, tuple[Citation, ...]], ...] = ()
    """(n, the words of passage n that bear the sentence out) for each of its markers. No words: it is unverified."""


def verify_citations(answer: str, passages: Sequence[Passage]) -> Verified:
    """Check every marker of `answer` as this module's docstring says."""
    claims = [claim for statement in statements_of(answer, passages) for claim in statement.claims]
    found = dict.fromkeys(citation for _, citations in claims for citation in citations)
    return Verified(citations=tuple(found), unverified=sum(not citations for _, citations in claims))


def statements_of(answer: str, passages: Sequence[Passage]) -> list[Statement]:
    """Return the sentences of `answer` in order, each with its markers checked as this module's docstring says."""
    found: list[Statement] = []
    markers = list(_MARKERS.finditer(answer))
    before = 0
    opening: tuple[Span, list[int]] | None = None  # markers that nothing precedes: they open what follows
    for number, marker in enumerate([*markers, None]):
        spans = _sentences(answer, before, len(answer) if marker is None else marker.start())
        if opening is not None and spans:
            place, numbers = opening
            start, end = spans.pop(0)
            claims = _checked(answer[start:end], numbers, passages)
            found.append(Statement(start=place[0], end=end, markers=place, claims=claims))
            opening = None
        closed = spans.pop() if marker is not None and spans else None
        found.extend(Statement(start=start, end=end) for start, end in spans)
        if marker is None:
            break
        numbers = _numbered(marker[0])
        limit = markers[number + 1].start() if number + 1 < len(markers) else len(answer)
        closing = _CLOSING.match(answer, marker.end(), limit)
        before = marker.end() if closing is None else closing.end()
        if closed is not None:
            claims = _checked(answer[closed[0] : closed[1]], numbers, passages)
            found.append(Statement(start=closed[0], end=before, markers=marker.span(), claims=claims))
        elif opening is None:
            opening = (marker.span(), numbers)
        else:
            opening = ((opening[0][0], marker.end()), list(dict.fromkeys((*opening[1], *numbers))))
    if opening is not None:  # nothing but markers: they stand for themselves
        place, numbers = opening
        found.append(Statement(start=place[0], end=before, markers=place, claims=tuple((n, ()) for n in numbers)))
    return found


def _sentences(answer: str, start: int, end: int) -> list[Span]:
    """Return the spans of what says something between two markers."""
    spans = [(start + left, start + right) for left, right in sentence_spans(answer[start:end])]
    return [span for span in spans if content_words(answer[span[0] : span[1]])]


def _checked(
    claim: str, numbers: Sequence[int], passages: Sequence[Passage]
) -> tuple[tuple[int, tuple[Citation, ...]], ...]:
    return tuple((number, tuple(_citations(claim, number, passages))) for number in numbers)


def _citations(claim: str, number: int, passages: Sequence[Passage]) -> Iterator[Citation]:
    if not 1 <= number <= len(passages):
        return
    within = passages[number - 1]
    for start, end in _evidence(claim, within.text, within.title):
        yield Citation(passage=number - 1, start=start, end=end, quote=within.text[start:end])


def _numbered(markers: str) -> list[int]:
    """Return the passages' numbers that markers name, each once."""
    found: dict[int, None] = {}
    for first, last in ((int(one), int(other or one)) for one, other in _NUMBERS.findall(markers)):
        whole = first <= last <= first + MAX_RANGE
        found |= dict.fromkeys(range(first, last + 1) if whole else (first, last))
    return list(found)


def _quotations(claim: str) -> list[str]:
    """Return what stands in quotation marks of any kind."""
    found = [words for kind in _QUOTATIONS for match in kind.finditer(claim) for words in match.groups() if words]
    pieces = claim.split(_STRAIGHT)
    begun_before = not len(pieces) % 2 and bool(pieces[0]) and (pieces[0][-1].isalnum() or pieces[0][-1] in ".,;!?")
    found += pieces[0::2] if begun_before else pieces[1::2]
    return [words for words in found if len(words) >= MIN_QUOTATION_CHARS]


def _numerals(text: str) -> frozenset[str]:
    return frozenset(one.replace(",", "") for one in _NUMERAL.findall(text))


def _evidence(claim: str, passage: str, title: str) -> list[Span]:
    quotations = _quotations(claim)
    if quotations:
        places = [_place(quotation, passage) for quotation in quotations]
        return [place for place in places if place is not None] if all(places) else []
    wanted = content_words(claim)
    figures = _numerals(_ENUMERATOR.sub("", claim)) - _numerals(title)
    best, best_shared = None, 0
    for start, end in sentence_spans(passage):
        if not figures <= _numerals(passage[start:end]):
            continue
        shared = len(wanted & content_words(passage[start:end]))
        if shared > best_shared:
            best, best_shared = (start, end), shared
    enough = best_shared >= MIN_SHARED_WORDS and best_shared >= MIN_SHARED_PART * len(wanted)
    return [best] if best is not None and enough else []


def _place(quotation: str, passage: str) -> Span | None:
    """Find `quotation` in `passage`; white space, kinds of quotation marks and a closing comma or stop may differ."""
    words = quotation.strip().rstrip(",.").split()
    if not words:
        return None
    pattern = r"\s+".join("[“”\"‘’']".join(re.escape(part) for part in _QUOTE_MARKS.split(word)) for word in words)
    match = re.search(pattern, passage)
    return match.span() if match else None
