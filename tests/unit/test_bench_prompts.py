"""The prompts of a benchmark: what they share is shared to the byte, and nothing is asked twice."""

from __future__ import annotations

from itertools import product

from rag.llm.bench.prompts import PromptShape, prompt
from rag.llm.request import ChatRequest

SHAPE = PromptShape(seed=7, shared_words=50, own_words=20, tenants=2)


def ask(number: int, *, run: str = "r1", level: str = "0-4", shape: PromptShape = SHAPE) -> ChatRequest:
    return prompt(shape, run=run, level=level, number=number, max_tokens=64)


def test_prompts_of_a_tenant_share_their_beginning_and_only_that() -> None:
    first, second, other = ask(0), ask(2), ask(1)
    assert first.system == second.system != other.system
    assert first.user != second.user
    assert (first.max_tokens, first.schema) == (64, None)


def test_no_prompt_is_asked_twice_in_any_level_or_run() -> None:
    places = product(("r1", "r2"), ("warm-up", "0-1", "1-4", "2-4"), range(50))
    asked = [ask(number, run=run, level=level) for run, level, number in places]
    assert len({(request.system, request.user) for request in asked}) == len(asked)


def test_a_beginning_is_new_from_its_first_words_on_in_each_level_run_and_tenant() -> None:
    """A prefix cache compares from the first token on: what differs later has been computed already."""
    openings = [
        ask(number, run=run, level=level).system[:16]
        for run, level, number in product(("r1", "r2"), ("0-1", "1-4"), (0, 1))
    ]
    assert len(set(openings)) == len(openings)


def test_the_words_are_the_seeds() -> None:
    assert ask(3) == ask(3)
    other = ask(3, shape=PromptShape(seed=8, shared_words=50, own_words=20, tenants=2))
    assert other.system != ask(3).system
    assert other.user != ask(3).user


def test_a_prompt_has_the_words_that_were_asked_for_and_may_have_none() -> None:
    opening = len(["Notes", "r1/0-4/0."])
    assert len(ask(0).system.split()) == 50 + opening
    bare = ask(0, shape=PromptShape(shared_words=0, own_words=0))
    assert len(bare.system.split()) == opening
    assert bare.user
