"""The prompts of a benchmark: made from a seed, with a beginning that a tenant's requests share, and never asked twice.

Above: `measure`. Below: `rag.llm.request`.

A server's prefix cache remembers earlier runs and earlier levels. Each prompt therefore opens with the names of its
run, level and tenant: within a level and tenant the beginning is the same to the byte, and nothing else ever had it.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from rag.llm.request import ChatRequest

__all__ = ["MAX_WORDS", "PromptShape", "prompt", "tenant_of"]

MAX_WORDS = 100_000
"""Of each part: beyond the context of any model that is served today."""
_LIST = """
account act action agency agreement air amount annual answer appeal area article assembly asset authority award
bank basis bench benefit bill board body bond book border breach bridge building burden business call capital
care case cause change charge child church city claim clause clerk code coin college company condition conduct
consent contract copy corner cost council country county court cover crime crop damage data date day death debt
decision deed degree delay demand deposit design detail district document door doubt duty earth east effect
effort election employer end energy entry error estate event evidence example expense fact farm fault fee field
figure file finding fire firm fish flag food force forest form fund future garden gift goods grain grant ground
group growth hand harbor health hearing heir hill history holder home hospital hour house idea income industry
injury interest island issue item judge jury key labor lake land language law leader lease letter level license
lien life limit line list loan loss machine mail manner map margin market master matter means measure member
method mile mine minute money month motion name nation nature need night north notice number oath object offer
office officer oil order owner page paper parcel park part party payment peace penalty people period permit
person place plan plant point police port power practice premises price prison profit program promise proof
property public purpose question rate reason record region relief rent report request reserve result return
review right risk river road rule safety sale school sea seal season seat section seller service share ship
shore sign site size soil source south spring staff stage state statement station statute steel step stock stone
store street student subject sum supply surface survey system table tax team term test time title town trade
train transfer treaty trial trust truth unit use value vessel view voice vote wage wall war water way week
weight west wheel will wind winter witness wood word work year yield
"""
_WORDS = tuple(_LIST.split())
"""Common words, most of them one token in the vocabularies of today. Text of nobody's documents."""
_ASKED = (
    "Go on with these notes in the same manner. Write as much as you are let, in whole sentences, and never stop early."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptShape:
    """How long the prompts are, and what they share. Lengths are in words: only the server knows its tokens."""

    seed: int = 1
    shared_words: int = 600
    """The same at the beginning of all prompts of one level and tenant, as rules and sources are in ours."""
    own_words: int = 200
    """That no other prompt has."""
    tenants: int = 1
    """Requests go to them in turn. Each has a beginning and, at vLLM, a cache salt of its own, as tenants have."""


def tenant_of(shape: PromptShape, number: int) -> int:
    """Return whose turn request `number` of a level is, from 0."""
    return number % shape.tenants


def prompt(shape: PromptShape, *, run: str, level: str, number: int, max_tokens: int) -> ChatRequest:
    """Return request `number` of a level.

    Args:
        shape: Lengths and seed.
        run: A name that no other run has; see above.
        level: A name that no other level of the run has.
        number: From 0, each once in a level.
        max_tokens: Of the completion.
    """
    tenant = tenant_of(shape, number)
    shared = f"Notes {run}/{level}/{tenant}. {_text(f'{shape.seed}/{level}/{tenant}', shape.shared_words)}"
    own = f"Note {number}. {_text(f'{shape.seed}/{level}/{tenant}/{number}', shape.own_words)}\n\n{_ASKED}"
    return ChatRequest(system=shared, user=own, max_tokens=max_tokens)


def _text(seed: str, words: int) -> str:
    """Return sentences of twelve words."""
    draw = Random(seed).random  # noqa: S311  # to be drawn again is what it is for
    drawn = [_WORDS[int(draw() * len(_WORDS))] for _ in range(words)]
    sentences = (" ".join(drawn[start : start + 12]) for start in range(0, words, 12))
    return " ".join(f"{sentence.capitalize()}." for sentence in sentences)
