"""What a model says it took from a passage is checked here against the passage, word for word.

Above it: `rag.llm.openai_chat`. Below it: `rag.llm.sentences`. Pure.

For each marker `[n]` in the answer:

1. n must count one of the passages.
2. The claim is the sentence that the marker closes (or opens, when nothing precedes it).
3. If the claim quotes words, each quotation must stand in the passage, white space aside; that place is the citation.
4. If it quotes nothing, the citation is the passage's sentence that shares most words with the claim, if they suffice.
5. A marker that fails any of these is counted as unverified. No citation is ever built from the model's own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rag.llm.chat import Citation, Passage
from rag.llm.sentences import content_words, sentence_spans

__all__ = ["Verified", "verify_citations"]

MIN_SHARED_WORDS = 2
MIN_SHARED_PART = 0.4
"""Of the claim's content words."""
MAX_QUOTE_CHARS = 600

_MARKERS = re.compile(r"(?:\s*\[\d{1,3}(?:\s*[,;]\s*\d{1,3})*\])+")
_NUMBER = re.compile(r"\d+")
_QUOTATION = re.compile(r"“([^“”]{8,600})”|\"([^\"]{8,600})\"")
_QUOTE_MARKS = re.compile(r"[“”\"‘’']")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The citations that hold, and the number of those that do not."""

    citations: tuple[Citation, ...]
    unverified: int


def verify_citations(answer: str, passages: Sequence[Passage]) -> Verified:
    """Check every marker of `answer` as this module's docstring says."""
    found: dict[Citation, None] = {}
    unverified = 0
    for claim, numbers in _claims(answer):
        for number in numbers:
            within = passages[number - 1].text if 1 <= number <= len(passages) else None
            spans = _evidence(claim, within) if within is not None else []
            unverified += not spans
            if within is not None:
                found.update(
                    (Citation(passage=number - 1, start=start, end=end, quote=within[start:end]), None)
                    for start, end in spans
                )
    return Verified(citations=tuple(found), unverified=unverified)


def _claims(answer: str) -> Iterator[tuple[str, list[int]]]:
    before = 0
    for marker in _MARKERS.finditer(answer):
        claim = _last_sentence(answer[before : marker.start()]) or _first_sentence(answer[marker.end() :])
        before = marker.end()
        yield claim, list(dict.fromkeys(int(number) for number in _NUMBER.findall(marker[0])))


def _last_sentence(text: str) -> str:
    spans = [span for span in sentence_spans(text) if content_words(text[span[0] : span[1]])]
    return text[spans[-1][0] : spans[-1][1]] if spans else ""


def _first_sentence(text: str) -> str:
    text = _MARKERS.split(text, maxsplit=1)[0]
    spans = sentence_spans(text)
    return text[spans[0][0] : spans[0][1]] if spans else ""


def _evidence(claim: str, passage: str) -> list[tuple[int, int]]:
    quotations = [one or other for one, other in _QUOTATION.findall(claim)]
    if quotations:
        places = [_place(quotation, passage) for quotation in quotations]
        return [place for place in places if place is not None] if all(places) else []
    wanted = content_words(claim)
    best, best_shared = None, 0
    for start, end in sentence_spans(passage):
        shared = len(wanted & content_words(passage[start:end]))
        if shared > best_shared:
            best, best_shared = (start, end), shared
    enough = best_shared >= MIN_SHARED_WORDS and best_shared >= MIN_SHARED_PART * len(wanted)
    return [best] if best is not None and enough else []


def _place(quotation: str, passage: str) -> tuple[int, int] | None:
    """Find `quotation` in `passage`; white space, kinds of quotation marks and a closing comma or stop may differ."""
    words = quotation.strip().rstrip(",.").split()
    if not words:
        return None
    pattern = r"\s+".join("[“”\"‘’']".join(re.escape(part) for part in _QUOTE_MARKS.split(word)) for word in words)
    match = re.search(pattern, passage)
    return match.span() if match else None
