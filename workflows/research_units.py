"""What of a passage can be quoted alone: whole sentences, and lists together with the words that lead into them. Pure.

Above: `research_writing`. Below: `rag.llm.sentences`.

Statutes and contracts put one sentence over many paragraphs ("The term X means", "(A) ...", "(B) ..."). A quote of one
of them alone says nothing, so a sentence that does not end is joined with what follows it, verbatim, up to a bound.
Captions, and items whose lead is not in the passage, are no units.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rag.llm.sentences import content_words, sentence_spans

__all__ = ["MAX_UNIT_CHARS", "Unit", "is_whole", "units_of"]

MAX_UNIT_CHARS = 900
MIN_WORDS = 6
"""Content words; below it a sentence is a caption or says too little."""
_ENUMERATOR = re.compile(r"^(?:[\"“'‘(\[]*(?:\(?[0-9A-Za-z]{1,5}[).]|[-•*§])\s+)+")
_END = re.compile(r"[.!?。！？][\"”’')\]]*(?:\s*\d{1,2})?$")
_HANGING = re.compile(r"[,;:\s]+(?:and|or)?\s*\Z")
"""A list that is broken off leaves its conjunction behind."""
_VERB = re.compile(
    r"\b(?:shall|may|must|can|is|are|was|were|be|been|has|have|had|will|would|means?|includes?|applies|apply|"
    r"requires?|provides?|does|do|did)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A span of a passage's text that can be read alone."""

    start: int
    end: int


def units_of(text: str) -> list[Unit]:
    """Return the units of a passage, in order, none of which overlaps another."""
    found: list[Unit] = []
    spans = [span for span in sentence_spans(text) if not _is_caption(text[span[0] : span[1]])]
    place = 0
    while place < len(spans):
        start, end = spans[place]
        place += 1
        if not _begins(text[start:end]):
            continue
        while not is_whole(text[start:end]) and place < len(spans) and spans[place][1] - start <= MAX_UNIT_CHARS:
            end = spans[place][1]
            place += 1
        hanging = _HANGING.search(text, start, end)
        end = end if hanging is None else hanging.start()
        if len(content_words(text[start:end])) >= MIN_WORDS:
            found.append(Unit(start=start, end=end))
    return found


def is_whole(words: str) -> bool:
    """Tell whether `words` end as a sentence does."""
    return bool(_END.search(words.rstrip()))


def _begins(words: str) -> bool:
    said = _ENUMERATOR.sub("", words)
    first = said.lstrip("\"“'‘([")[:1]
    return (first.isdigit() and said == words) or (first.isalpha() and not first.islower())


def _is_caption(words: str) -> bool:
    return not is_whole(words) and not words.rstrip().endswith((":", ";", ",", "—", "–")) and not _VERB.search(words)
