"""An answerer without a model that writes: the passages' own sentences that stand nearest to the question, verbatim.

Above it: the rag workflow, through the `Chat` port. Below it: an `Embedder` and `rag.llm.sentences`.

1. Cut the passages into sentences; keep the `MAX_CANDIDATES` that share most words with the question.
2. Score each: cosine of its vector to the question's, and the part of the question's words that it holds.
3. Take the best while they are near enough to the best one and do not repeat a sentence already taken.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from rag.errors import EmbedderUnavailable, Unavailable
from rag.llm.chat import NO_ANSWER, Answer, Citation, Passage
from rag.llm.ports import Embedder, Emit, Vectors
from rag.llm.sentences import content_words, sentence_spans

__all__ = ["MAX_SENTENCES", "ExtractiveChat"]

MAX_SENTENCES = 4
MAX_CANDIDATES = 64
"""Sentences that are embedded for one answer: about 0.3 s with the local model on one thread."""
MIN_SENTENCE_CHARS = 25
COSINE_WEIGHT = 0.7
MIN_SCORE = 0.32
"""Below it the best sentence is about something else: over samples/, questions that these answer scored 0.5 to 0.7,
questions of other fields 0.1 to 0.31; a paraphrase that shares no word with the sentence scores about 0.35."""
NEAR_BEST = 0.65
"""A further sentence must score at least this part of the best one's score."""
FRAGMENT = 0.8
"""Factor of what does not end as a sentence does: a caption, a line of a list."""
SAME_COSINE = 0.92

_ENDS = (".", ";", ":", "!", "?", "…", ")", '"', "”", "。", "！", "？")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    citation: Citation
    words: frozenset[str]
    overlap: float


class ExtractiveChat:
    """Satisfies `rag.llm.ports.Chat`."""

    def __init__(self, embedder: Embedder) -> None:
        """The embedder stays its owner's to close. While it is unavailable, words alone are compared."""
        self._embedder = embedder

    @property
    def model(self) -> str | None:
        """None: nothing here writes."""
        return None

    async def answer(
        self,
        question: str,
        passages: Sequence[Passage],
        *,
        emit: Emit,
        key: str = "",  # noqa: ARG002  # nothing is paid for
    ) -> Answer:
        """See `rag.llm.ports.Chat.answer`; raises nothing of its own."""
        candidates = _candidates(question, passages)
        vectors = await self._vectors([question, *(candidate.citation.quote for candidate in candidates)])
        chosen = [candidates[i].citation for i in _choose(candidates, vectors)]
        if not chosen:
            await emit(NO_ANSWER)
            return Answer(kind="extractive", model=None, text=NO_ANSWER)
        pieces = [f"{'' if i == 0 else ' '}{_flowing(c.quote)} [{c.passage + 1}]" for i, c in enumerate(chosen)]
        for piece in pieces:
            await emit(piece)
        return Answer(kind="extractive", model=None, text="".join(pieces), citations=tuple(chosen))

    async def complete(
        self,
        system: str,  # noqa: ARG002  # the port's arguments, of which none could make a difference
        user: str,  # noqa: ARG002
        *,
        max_tokens: int,  # noqa: ARG002
        key: str = "",  # noqa: ARG002
        step: str = "",  # noqa: ARG002
        schema: Mapping[str, Any] | None = None,  # noqa: ARG002
    ) -> NoReturn:
        """Raise Unavailable: whoever needs a model looks at `model` first."""
        raise Unavailable("this needs a language model, and none is configured")

    async def _vectors(self, texts: list[str]) -> Vectors | None:
        if len(texts) < 2:
            return None
        try:
            return await self._embedder.embed(texts)
        except EmbedderUnavailable:
            logger.warning("the embedder is unavailable: sentences are chosen by their words alone")
            return None


def _flowing(quote: str) -> str:
    return " ".join(quote.split())


def _candidates(question: str, passages: Sequence[Passage]) -> list[_Candidate]:
    wanted = content_words(question)
    seen: set[str] = set()
    found: list[_Candidate] = []
    for number, passage in enumerate(passages):
        for start, end in sentence_spans(passage.text):
            quote = passage.text[start:end]
            key = _flowing(quote).casefold()
            if len(quote) < MIN_SENTENCE_CHARS or key in seen:
                continue
            seen.add(key)
            words = content_words(quote)
            citation = Citation(passage=number, start=start, end=end, quote=quote)
            overlap = len(wanted & words) / len(wanted) if wanted else 0.0
            found.append(_Candidate(citation=citation, words=words, overlap=overlap))
    found.sort(key=lambda candidate: -candidate.overlap)  # stable: equal ones stay in the order of the passages
    return found[:MAX_CANDIDATES]


def _choose(candidates: list[_Candidate], vectors: Vectors | None) -> list[int]:
    overlaps = np.array([candidate.overlap for candidate in candidates], dtype=np.float32)
    if vectors is None:
        scores = overlaps
    else:
        scores = COSINE_WEIGHT * (vectors[1:] @ vectors[0]) + (1 - COSINE_WEIGHT) * overlaps
    scores = scores * np.array([1 if c.citation.quote.endswith(_ENDS) else FRAGMENT for c in candidates])
    chosen: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if scores[i] < max(MIN_SCORE, NEAR_BEST * float(scores[chosen[0]]) if chosen else 0.0):
            break
        if not any(_same(i, j, candidates, vectors) for j in chosen):
            chosen.append(i)
        if len(chosen) == MAX_SENTENCES:
            break
    return chosen


def _same(i: int, j: int, candidates: list[_Candidate], vectors: Vectors | None) -> bool:
    if vectors is not None:
        return float(vectors[i + 1] @ vectors[j + 1]) > SAME_COSINE
    one, other = candidates[i].words, candidates[j].words
    return len(one & other) > SAME_COSINE * len(one | other)
