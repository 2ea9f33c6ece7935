"""A collection's questions through every leg of a loaded tenant: quality from deep answers, latency from usual ones.

Above: the command line, the quality gate. Below: `legs`, `measures`. Writes nothing anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anyio
import numpy as np
from anyio.streams.memory import MemoryObjectReceiveStream

from rag.evaluation.collection import SEED, Collection, Question
from rag.evaluation.legs import Asked, Leg, Searcher, rank
from rag.evaluation.load import Progress
from rag.evaluation.measures import mean, measure

__all__ = [
    "LATENCY_CHUNKS",
    "LATENCY_QUESTIONS",
    "Evaluation",
    "Latency",
    "LegResult",
    "ask_all",
    "documents_of",
    "evaluate",
    "legs_json",
]

CONCURRENCY = 2
"""Of the searches for quality; those for latency come one at a time."""
LATENCY_CHUNKS = 10
"""What a client gets who does not say how much: a deep answer takes longer, and few ask for one."""
LATENCY_QUESTIONS = 200
WARM_UP = 5
"""Searches of each leg before its clock runs: plans, caches and connections are made once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Of one search, in milliseconds, at concurrency 1, the query's embedding included."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LegResult:
    """What one leg reached."""

    measures: Mapping[str, float]
    """Mean over the questions, by `measures.MEASURES`."""
    latency: Latency
    degraded: int
    """Questions that were answered without vectors, although the leg has them."""
    refused: int
    """Questions that the search does not take; they count as 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was measured on one tenant."""

    questions: int
    legs: Mapping[Leg, LegResult]


async def evaluate(searcher: Searcher, collection: Collection, *, progress: Progress) -> Evaluation:
    """Ask every question of each leg.

    Raises:
        EmbedderUnavailable: For the dense leg, when there are no query vectors to be had.
        SealRefused, Revoked, Unavailable: The database does not answer.
    """
    legs: dict[Leg, LegResult] = {}
    for leg in Leg:
        answers = await ask_all(searcher, collection.questions, leg, progress=progress)
        values = measure(collection.judgements, documents_of(answers))
        legs[leg] = LegResult(
            measures={name: mean(per_question) for name, per_question in values.items()},
            latency=await _latency(searcher, collection.questions, leg, progress=progress),
            degraded=sum(answer.degraded for answer in answers.values()),
            refused=sum(answer.refused for answer in answers.values()),
        )
    return Evaluation(questions=len(collection.questions), legs=legs)


async def ask_all(
    searcher: Searcher,
    questions: Sequence[Question],
    leg: Leg,
    *,
    weights: tuple[float, float] | None = None,
    progress: Progress | None = None,
) -> dict[str, Asked]:
    """Return the deep answer to each question, by its id."""
    answers: dict[str, Asked] = {}
    send, receive = anyio.create_memory_object_stream[Question](len(questions))
    for question in questions:
        send.send_nowait(question)
    send.close()

    async def ask(queue: MemoryObjectReceiveStream[Question]) -> None:
        with queue:
            async for question in queue:
                answers[question.question_id] = await rank(searcher, question.text, leg, weights=weights)
                if progress is not None:
                    progress(f"asking: {leg}", len(answers), len(questions))

    async with anyio.create_task_group() as tasks:
        with receive:
            for _ in range(CONCURRENCY):
                tasks.start_soon(ask, receive.clone())
    return answers


def documents_of(answers: Mapping[str, Asked]) -> dict[str, list[str]]:
    """Return the rankings without their scores."""
    return {question: [source for source, _ in answer.documents] for question, answer in answers.items()}


def legs_json(evaluation: Evaluation) -> dict[str, object]:
    """Return the measured values as they are written down: quality rounded to 4 digits, milliseconds to 2."""
    fused = evaluation.legs[Leg.FUSED].latency
    return {
        "legs": {
            leg.value: {name: round(value, 4) for name, value in result.measures.items()}
            for leg, result in evaluation.legs.items()
        },
        "latency_ms": _latency_json(fused),
        "latency_ms_by_leg": {leg.value: _latency_json(result.latency) for leg, result in evaluation.legs.items()},
        "questions": evaluation.questions,
        "degraded": {leg.value: result.degraded for leg, result in evaluation.legs.items()},
        "refused_questions": evaluation.legs[Leg.FUSED].refused,
    }


async def _latency(searcher: Searcher, questions: Sequence[Question], leg: Leg, *, progress: Progress) -> Latency:
    drawn = np.random.default_rng(SEED).permutation(len(questions))[:LATENCY_QUESTIONS]
    for place in drawn[:WARM_UP]:
        await rank(searcher, questions[int(place)].text, leg, chunks=LATENCY_CHUNKS)
    times: list[float] = []
    for done, place in enumerate(drawn, 1):
        began = time.perf_counter()
        await rank(searcher, questions[int(place)].text, leg, chunks=LATENCY_CHUNKS)
        times.append((time.perf_counter() - began) * 1000)
        progress(f"timing: {leg}", done, len(drawn))
    p50, p95, p99 = (float(value) for value in np.percentile(times, [50, 95, 99]))
    return Latency(p50=p50, p95=p95, p99=p99)


def _latency_json(latency: Latency) -> dict[str, float]:
    return {"p50": round(latency.p50, 2), "p95": round(latency.p95, 2), "p99": round(latency.p99, 2)}
