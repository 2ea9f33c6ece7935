"""What a section of a report says: blocks of sentences with their claims, copied or written by a model. Pure.

Above: `research_graph`. Below: `research_units`, `citations`, `markdown`. A draft is plain JSON: it is
stored in a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from rag.llm.chat import Answer
from rag.llm.sentences import content_words
from workflows.citations import Statement, statements
from workflows.markdown import harmless, inert
from workflows.research_plan import Section, is_about
from workflows.research_profiles import CUES
from workflows.research_units import is_whole, units_of

__all__ = ["Block", "Draft", "candidates", "chosen", "copied", "filled", "picked", "told", "written"]

MAX_CANDIDATES = 60
MAX_CHOSEN = 5
MAX_OF_ONE = 1
"""Sentences of one document in an overview, which is to show how far the subject goes."""
MIN_SAYING_WORDS = 12
PICKED_LENIENCY = 0.8
NEAR_BEST = 0.55
"""A further sentence must stand at least this high beside the best one."""
_HASHES = re.compile(r"^ {0,3}#{1,6}[ \t]", re.MULTILINE)
_CONSTRUED = re.compile(
    r"\bbe construed\b|^\W*(?:Sub)?(?:section|paragraph) \S+ (?:of this \w+ )?shall\b", re.IGNORECASE
)
SAME_WORDS = 0.8
"""Of the shorter one: sentences that share more say the same."""


class Block(TypedDict):
    """A run of text under a label."""

    label: str
    """The document that the sentences are of; "" where they are of several."""
    text: str
    """Markdown."""
    statements: list[Statement]
    """Of `text`; a claim's n is its own number within the draft."""


class Draft(TypedDict):
    """One section before its claims were checked."""

    id: str
    kind: str
    """`extractive`, `model`, or "" where there was nothing to write from."""
    blocks: list[Block]
    passages: int
    documents: int
    """What was found for it."""


def candidates(
    section: Section, hits: Sequence[Mapping[str, Any]], used: Iterable[str], *, elsewhere: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Return what of the hits can be quoted in the section, each a passage of its own, best passages first.

    Args:
        section: Whose cue a sentence needs, and whose heading it stands under, where it names one.
        hits: Its passages, best first.
        used: What other sections say; see `told`.
        elsewhere: Headings that have a section of their own.
    """
    cue = CUES.get(section["cue"])
    taken = set(used)
    found: list[dict[str, Any]] = []
    for hit in hits:
        if hit["heading"] != section["heading"] if section["heading"] else hit["heading"] in elsewhere:
            continue
        for unit in units_of(hit["text"]):
            words = hit["text"][unit.start : unit.end]
            key = told(words)
            if key in taken or (cue is not None and not cue.search(words)):
                continue
            taken.add(key)
            start = int(hit["start"]) + unit.start
            found.append({**hit, "text": words, "start": start, "end": start + len(words)})
    return found[:MAX_CANDIDATES]


def chosen(
    section: Section,
    question: str,
    among: Sequence[Mapping[str, Any]],
    picks: Collection[int],
    *,
    leniency: float = 1.0,
) -> list[Mapping[str, Any]]:
    """Return the best of the candidates, best first, not more than MAX_CHOSEN and none that repeats another.

    Four things speak for a sentence: its passage has the question's words (weighed by how rare they are), its passage
    stands high in the search, it has itself words of the question or of the section's title, and the answerer picked
    it by its meaning. What stands in a passage about something else is left out; `leniency` says how strictly.
    """
    best = max((float(one["score"]) for one in among), default=1.0) or 1.0
    words = _stems(f"{question} {section['title']}")
    standing: list[tuple[float, int]] = []
    for place, one in enumerate(among):
        pick = place in picks
        if not is_about(one, leniency=leniency * (PICKED_LENIENCY if pick else 1.0)):
            continue
        shared = len(words & _stems(str(one["text"]))) / max(1, len(words))
        subject = max(float(one["covers"]), float(one["near"] or 0.0))
        score = 0.3 * subject + 0.2 * float(one["score"]) / best + 0.3 * shared + 0.3 * pick
        standing.append((score * _worth(section, str(one["text"])), place))
    kept: list[Mapping[str, Any]] = []
    each = MAX_CHOSEN if section["sources"] or section["cue"] else MAX_OF_ONE
    standing.sort(key=lambda pair: (-pair[0], pair[1]))
    for score, place in standing:
        if score < NEAR_BEST * standing[0][0]:
            break
        same = sum(one["document_id"] == among[place]["document_id"] for one in kept)
        if same < each and not any(_repeats(among[place], other) for other in kept):
            kept.append(among[place])
        if len(kept) == MAX_CHOSEN:
            break
    return kept


def filled(
    quoted: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], *, upto: int
) -> list[Mapping[str, Any]]:
    """Return what is quoted, and as many of the others as are wanted that do not repeat it."""
    kept = list(quoted)
    for other in others:
        if len(kept) < upto and not any(_repeats(other, one) for one in kept):
            kept.append(other)
    return kept


def _worth(section: Section, words: str) -> float:
    """Return the factor of a sentence's form: what is broken off, short, or about the reading of others, says less."""
    factor = 1.0 if is_whole(words) else 0.8
    if section["cue"] != "exceptions" and _CONSTRUED.search(words):
        factor *= 0.6
    return factor if len(content_words(words)) >= MIN_SAYING_WORDS else 0.8 * factor


def _stems(text: str) -> set[str]:
    """Return the beginnings of the words that say something: near enough to stems where only overlap counts."""
    return {word[:6] for word in content_words(text)}


def _repeats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    first, second = content_words(str(one["text"])), content_words(str(other["text"]))
    return len(first & second) > SAME_WORDS * min(len(first), len(second))


def told(words: str) -> str:
    """Return what makes two sentences the same: their words, without enumerators, white space and case."""
    return " ".join(re.sub(r"^(?:\(\w{1,5}\)\s*)+", "", words.strip()).casefold().split())


def picked(answer: Answer, among: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the candidates that an extractive answer took sentences of, best first."""
    return list(dict.fromkeys(cited.passage for cited in answer.citations if cited.passage < len(among)))


def copied(quoted: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Return candidates as lists of quotes, one list for each document, in the order of the text there."""
    documents = list(dict.fromkeys(str(one["document_id"]) for one in quoted))
    blocks: list[Block] = []
    number = 0
    for document in documents:
        own = sorted((one for one in quoted if one["document_id"] == document), key=lambda one: int(one["start"]))
        text = ""
        found: list[Statement] = []
        for one in own:
            number += 1
            words = inert(" ".join(_HASHES.sub(" ", str(one["text"])).split())) + (
                "" if is_whole(str(one["text"])) else " …"
            )
            text += "- "
            marker = f" [{number}]"
            start, end = len(text), len(text) + len(words) + len(marker)
            text += f"{words}{marker}\n"
            found.append(
                Statement(
                    start=start,
                    end=end,
                    markers=[end - len(marker), end],
                    claims=[{"n": number, "quotes": [_quote(one)]}],
                )
            )
        blocks.append(Block(label=str(own[0]["title"]), text=text, statements=found))
    return blocks


def _quote(one: Mapping[str, Any]) -> Any:
    named = {name: str(one[name]) for name in ("document_id", "source", "title")}
    return {**named, "start": int(one["start"]), "end": int(one["end"]), "quote": str(one["text"])}


def written(answer: Answer, passages: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Return a model's text as one block."""
    text = harmless(answer.text.strip())
    again = Answer(kind="model", model=answer.model, text=text)
    return [Block(label="", text=text, statements=statements(again, passages))] if text else []
