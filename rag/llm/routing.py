"""Which model a call goes to: rules as data say what it needs at least, and the offers that suffice are put in order.

Above: `gateway`, and the verb that explains a route. Below: `catalogue`. Values in, values out: nothing is read and
nothing is waited for, and no reason repeats a word of the question.

    required = the highest tier that any matching rule asks for
    order    = lowest sufficient tier, in it the cheapest model, of that its endpoints by priority; then the larger ones
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from enum import StrEnum
from typing import Any, cast

from rag.errors import InvalidInput
from rag.llm.catalogue import Offer, Tier

__all__ = [
    "MAX_RULES",
    "Features",
    "PassedOver",
    "Policy",
    "Route",
    "Rule",
    "When",
    "Why",
    "choose",
    "likely_cost",
    "matches",
    "required_tier",
    "rule_of",
    "rules_of",
    "tier_of",
    "typical_cost",
]

MAX_RULES = 200
MAX_WORDS = 200
MAX_NAME_CHARS = 64
MAX_WORD_CHARS = 100
MAX_NUMBER = 1_000_000_000
TYPICAL_PROMPT = 3000
TYPICAL_COMPLETION = 500
TYPICAL_SECONDS = 10
"""A question with a handful of passages: what prices are compared by where the caller does not count."""
_NO_WORD = re.compile(r"[^\w]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What rules may look at of a call."""

    workflow: str = ""
    step: str = ""
    """What is asked of the model: `answer`, or the name of a completion: `plan` (research), `action` (react)."""
    question: str | None = field(default=None, repr=False)
    """The user's words without the passages. None: not known, as in recorded traffic without texts."""
    prompt_chars: int = 0
    """Of the whole prompt."""
    passages: int = 0
    wants_schema: bool = False
    """Whether the text is to be JSON of a schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """Conditions, all of which must hold; one that is left out holds always."""

    workflow: tuple[str, ...] = ()
    """One of these."""
    step: tuple[str, ...] = ()
    """One of these."""
    any_words: tuple[str, ...] = ()
    """At least one of these words, or of these sequences of words, is in the question; case does not matter."""
    min_question_chars: int = 0
    min_prompt_chars: int = 0
    min_passages: int = 0
    wants_schema: bool | None = None

    @property
    def needs_question(self) -> bool:
        """Whether nobody can tell without the question's text if it holds."""
        return bool(self.any_words) or self.min_question_chars > 0

    def as_dict(self) -> dict[str, Any]:
        """Return the conditions that are set, as `rule_of` reads them."""
        told = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A tier that calls of some kind need at least."""

    name: str
    tier: Tier
    when: When = When()

    def as_dict(self) -> dict[str, Any]:
        """Return the rule as `rule_of` reads it."""
        return {"name": self.name, "tier": self.tier.name.lower(), "when": self.when.as_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the caller allows."""

    allow_downgrade: bool = False
    """Whether a model below the required tier may answer; the route then says so."""
    max_tier: Tier | None = None
    """No model above it."""


class Why(StrEnum):
    """Why an offer is not tried."""

    BELOW = "below the tier that is required"
    ABOVE = "above the tier that the caller allows"
    UNHEALTHY = "has failed lately"
    TOO_LONG = "the prompt and the completion do not fit into its context"


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """An offer that is not tried."""

    offer: Offer
    why: Why


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Which offers to try, one after the other."""

    offers: tuple[Offer, ...]
    """Empty: no model may answer this call now."""
    required: Tier
    tier: Tier | None
    """Of the first offer; None where there is none."""
    downgraded: bool
    """Whether the first offer is below what is required: `Policy.allow_downgrade`."""
    reasons: tuple[str, ...]
    """Sentences for people: what asked for the tier, and what else decided."""
    passed_over: tuple[PassedOver, ...] = ()

    def is_downgrade(self, offer: Offer) -> bool:
        """Tell whether an answer of `offer` is one of a model below the required tier, and is to be labelled so."""
        return offer.model.tier < self.required


def required_tier(rules: Sequence[Rule], features: Features) -> tuple[Tier, tuple[str, ...]]:
    """Return the highest tier that any matching rule asks for, and which rules ask for it; without any, the lowest."""
    asking = [rule for rule in rules if matches(rule.when, features)]
    required = max((rule.tier for rule in asking), default=Tier.SMALL)
    reasons = tuple(f"the rule {rule.name!r} asks for {_name(rule.tier)}" for rule in asking if rule.tier == required)
    return required, reasons or (f"no rule asks for more than {_name(Tier.SMALL)}",)


def matches(when: When, features: Features) -> bool:
    """Tell whether all conditions hold. What needs the question's text does not hold where that is not known."""
    return all(
        (
            not when.workflow or features.workflow in when.workflow,
            not when.step or features.step in when.step,
            when.wants_schema is None or features.wants_schema is when.wants_schema,
            features.passages >= when.min_passages,
            features.prompt_chars >= when.min_prompt_chars,
            not when.needs_question or (features.question is not None and _asks(when, features.question)),
        )
    )


def choose(
    offers: Sequence[Offer],
    required: Tier,
    *,
    policy: Policy,
    healthy: Callable[[Offer], bool],
    fits: Callable[[Offer], bool],
    cost: Callable[[Offer], Decimal | None] | None = None,
    reasons: Sequence[str] = (),
) -> Route:
    """Return the order in which to try `offers`.

    Args:
        offers: Those that the tenant may use (`Catalogue.allowed`).
        required: No offer below it, unless the policy allows a downgrade: then those come last, the largest first.
        policy: Of the caller.
        healthy: Whether the offer is to be tried now (its breaker). Only looks: a probe's place is taken at the call.
        fits: Whether prompt and completion fit into the offer's context.
        cost: What models of one tier are compared by; None from it: unknown, and last of its tier. Without it,
            `typical_cost`.
        reasons: Of `required_tier`; the route repeats them before its own.
    """
    passed_over: list[PassedOver] = []
    usable: list[Offer] = []
    for offer in offers:
        why = _objection(offer, required, policy, healthy, fits)
        if why is None:
            usable.append(offer)
        else:
            passed_over.append(PassedOver(offer=offer, why=why))
    ordered = _ordered(usable, required, cost or typical_cost)
    first = ordered[0].model.tier if ordered else None
    return Route(
        offers=tuple(ordered),
        required=required,
        tier=first,
        downgraded=first is not None and first < required,
        reasons=(*reasons, *_said(first, required, offers, policy)),
        passed_over=tuple(passed_over),
    )


def typical_cost(offer: Offer) -> Decimal | None:
    """Return what a typical call may cost at the offer, in the installation's currency; None where nobody knows."""
    if offer.price is None:
        return None
    return offer.price.upper(prompt=TYPICAL_PROMPT, completion=TYPICAL_COMPLETION, seconds=TYPICAL_SECONDS)


def likely_cost(offer: Offer, *, prompt: int, completion: int) -> Decimal | None:
    """Return about what a call of this size costs, to compare models by; None where nobody knows.

    Not the bound that money is held for: by that, hardware that is paid by its time would cost its time limit.
    """
    if offer.price is None:
        return None
    return offer.price.upper(prompt=prompt, completion=completion, seconds=TYPICAL_SECONDS)


def tier_of(name: object) -> Tier:
    """Return the tier called small, medium or large.

    Raises:
        InvalidInput: There is no such tier.
    """
    found = {_name(tier): tier for tier in Tier}.get(name) if isinstance(name, str) else None
    if found is None:
        raise InvalidInput(f"a model's tier is {', '.join(_name(tier) for tier in Tier)}")
    return found


def rules_of(told: object) -> tuple[Rule, ...]:
    """Return the rules of a JSON list, in its order.

    Raises:
        InvalidInput: It is no list of rules, two have one name, or there are more than MAX_RULES.
    """
    if not isinstance(told, list) or len(cast("list[Any]", told)) > MAX_RULES:
        raise InvalidInput(f"rules are a JSON list of up to {MAX_RULES} objects with name, tier and when")
    rules = tuple(rule_of(one) for one in cast("list[Any]", told))
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(f"two rules are called {name!r}")
    return rules


def rule_of(told: object) -> Rule:
    """Return the rule of a JSON object.

    Raises:
        InvalidInput: A field is unknown, missing or not of its kind. A condition that is misspelt is refused and not
            left out: without it the rule would hold for other calls.
    """
    fields_ = _object(told, "a rule", ("name", "tier", "when"))
    name = fields_.get("name")
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME_CHARS:
        raise InvalidInput(f"a rule's name is 1 to {MAX_NAME_CHARS} characters long")
    when = _object(fields_.get("when", {}), f"the conditions of {name!r}", _CONDITIONS)
    return Rule(
        name=name,
        tier=tier_of(fields_.get("tier")),
        when=When(**{key: _condition(name, key, value) for key, value in when.items()}),
    )


_CONDITIONS = tuple(one.name for one in fields(When))
_LISTS = frozenset({"workflow", "step", "any_words"})


def _object(told: object, what: str, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(told, Mapping):
        raise InvalidInput(f"{what} must be an object with {', '.join(known)}")
    found = cast("Mapping[str, Any]", told)
    unknown = sorted(str(key) for key in found if key not in known)
    if unknown:
        raise InvalidInput(f"{what} has an unknown {unknown[0]!r}; known are {', '.join(known)}")
    return found


def _condition(rule: str, name: str, value: Any) -> Any:
    if name in _LISTS:
        words = cast("list[Any]", value) if isinstance(value, list) else []
        if not 0 < len(words) <= MAX_WORDS or not all(
            isinstance(one, str) and 0 < len(one) <= MAX_WORD_CHARS for one in words
        ):
            raise InvalidInput(f"{name} of the rule {rule!r} is a list of 1 to {MAX_WORDS} words")
        if name == "any_words" and not all(_words(one) for one in words):
            raise InvalidInput(f"{name} of the rule {rule!r} holds what is no word")
        return tuple(words)
    if name == "wants_schema":
        if not isinstance(value, bool):
            raise InvalidInput(f"{name} of the rule {rule!r} is true or false")
        return value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_NUMBER:
        raise InvalidInput(f"{name} of the rule {rule!r} is a whole number above 0")
    return value


def _asks(when: When, question: str) -> bool:
    if len(question) < when.min_question_chars:
        return False
    if not when.any_words:
        return True
    said = f" {_words(question)} "
    return any(f" {_words(one)} " in said for one in when.any_words)


def _words(text: str) -> str:
    return _NO_WORD.sub(" ", text.casefold()).strip()


def _objection(
    offer: Offer,
    required: Tier,
    policy: Policy,
    healthy: Callable[[Offer], bool],
    fits: Callable[[Offer], bool],
) -> Why | None:
    if policy.max_tier is not None and offer.model.tier > policy.max_tier:
        return Why.ABOVE
    if offer.model.tier < required and not policy.allow_downgrade:
        return Why.BELOW
    if not fits(offer):
        return Why.TOO_LONG
    return None if healthy(offer) else Why.UNHEALTHY


def _ordered(usable: Sequence[Offer], required: Tier, cost: Callable[[Offer], Decimal | None]) -> list[Offer]:
    by_model: dict[str, list[Offer]] = {}
    for offer in sorted(usable, key=lambda one: (one.priority, one.endpoint.name)):
        by_model.setdefault(offer.model.name, []).append(offer)

    def place(among: Sequence[Offer]) -> tuple[bool, int, bool, Decimal, str]:
        tier, asked = among[0].model.tier, cost(among[0])
        below = tier < required
        distance = required - tier if below else tier - required
        return (below, distance, asked is None, asked or Decimal(0), among[0].model.name)

    return [offer for among in sorted(by_model.values(), key=place) for offer in among]


def _said(first: Tier | None, required: Tier, offers: Sequence[Offer], policy: Policy) -> tuple[str, ...]:
    if first is not None:
        if first < required:
            return (f"no model of tier {_name(required)} is to be had, and the caller allows a smaller one",)
        return ()
    if not offers:
        return ("the tenant may use no model",)
    if policy.max_tier is not None and policy.max_tier < required and not policy.allow_downgrade:
        return (f"the caller allows no model above {_name(policy.max_tier)}, and no downgrade",)
    return (f"no model of tier {_name(required)} or above is to be had",)


def _name(tier: Tier) -> str:
    return tier.name.lower()
