"""The bound in bytes is never below what a real tokenizer counts, and a context that is too small is seen."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from rag.llm.counting import fits, likely_tokens, upper_bound
from rag.llm.request import ChatRequest
from tests.support.models import PROMPT, offer

BYTES = pre_tokenizers.ByteLevel.alphabet()
NORMALIZERS = [None, normalizers.NFC(), normalizers.NFKC()]
"""As Llama and GPT, as Qwen, as T5 and XLM-R have it."""


def smallest_tokens(normalizer: object) -> Tokenizer:
    """Return a byte-level tokenizer that knows no merges: every other one needs fewer tokens for the same text."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(BYTES))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    return tokenizer


TOKENIZERS = [smallest_tokens(normalizer) for normalizer in NORMALIZERS]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@settings(deadline=None)
@given(system=TEXT, user=TEXT)
@example(system="ﷺ" * 500, user="")  # 3 bytes, which NFKC makes 33 of
@example(system="", user="\u0958" * 500 + "①" * 500)  # 3 bytes each; NFC makes 6 of the one, NFKC 1 of the other
def test_no_tokenizer_counts_more_than_the_bound(system: str, user: str) -> None:
    bound = upper_bound(replace(PROMPT, system=system, user=user))
    for tokenizer in TOKENIZERS:
        assert len(tokenizer.encode(system).ids) + len(tokenizer.encode(user).ids) < bound


def test_a_schema_counts_for_those_who_tell_it_to_the_model() -> None:
    schema = {"type": "object", "description": "x" * 1000}
    assert upper_bound(replace(PROMPT, schema=schema)) > upper_bound(PROMPT) + 1000


def test_half_a_character_has_a_bound_too() -> None:
    assert upper_bound(replace(PROMPT, user="\ud83d")) >= upper_bound(replace(PROMPT, user=""))


def test_a_long_prompt_is_never_priced_as_a_short_one() -> None:
    lengths = [upper_bound(ChatRequest(system="", user="é" * size, max_tokens=1)) for size in (0, 10, 1000, 100_000)]
    assert [length - lengths[0] for length in lengths] == [0, 20, 2000, 200_000]


def test_the_likely_count_is_below_the_bound_and_grows_with_the_text() -> None:
    text = unicodedata.normalize("NFC", "Die jährliche Gebühr beträgt 0,4 % des Vermögens. ") * 100
    long = replace(PROMPT, user=text)
    assert likely_tokens(PROMPT) < likely_tokens(long) < upper_bound(long)


def test_prompt_and_completion_share_the_context() -> None:
    small = offer("http://127.0.0.1:1/v1", context_tokens=1000)
    assert fits(small, 900, 100)
    assert not fits(small, 901, 100)
