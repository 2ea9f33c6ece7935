"""What changed rules, models or prices would have picked and cost on recorded traffic (docs/models.md, "Recordings").

Above: `bulkhead route --replay`. Below: the values of `rag.llm`. Pure: lines in, sums out; nothing is called. It knows
what was used and not what another model would have used: tokens and times are taken to be the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, cast
from uuid import UUID

from rag.errors import InvalidInput
from rag.llm.catalogue import Catalogue, Offer, Tier
from rag.llm.counting import fits
from rag.llm.routing import Features, Policy, Rule, choose, likely_cost, required_tier, tier_of

__all__ = ["UNSERVED", "ModelSums", "RecordedCall", "Replay", "recorded_calls", "replay"]

MAX_LINE_CHARS = 200_000
MAX_TOKENS = 1_000_000_000
UNSERVED = ""
"""In place of a model's name: no model may have answered."""
_FEATURES = {"workflow": str, "step": str, "question": str, "prompt_chars": int, "passages": int, "wants_schema": bool}
_FIELDS = frozenset(
    {"at", "tenant_id", "tenant_tier", "features", "required", "model", "endpoint", "estimated", "cost"}
    | {
        "prompt_tokens",
        "cached_tokens",
        "completion_tokens",
        "max_tokens",
        "milliseconds",
        "allow_downgrade",
        "max_tier",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    """One call as it was made."""

    features: Features
    model: str
    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int
    max_tokens: int | None = None
    """How many it might have written at most, by which models are compared. None: as many as it wrote."""
    milliseconds: int = 0
    cost: Decimal | None = None
    """None: it was not known."""
    required: Tier | None = None
    """What the rules asked for then."""
    tenant_id: UUID | None = None
    tenant_tier: str | None = None
    """Without both, every model is taken to be allowed."""
    policy: Policy = field(default_factory=Policy)


@dataclass(slots=True, kw_only=True)
class ModelSums:
    """Of one model: what was recorded, and what would have been."""

    calls: int = 0
    cost: Decimal = Decimal(0)
    """Of the calls whose cost is recorded."""
    calls_now: int = 0
    cost_now: Decimal = Decimal(0)
    """Of the calls whose model has a price now."""


@dataclass(slots=True, kw_only=True)
class Replay:
    """Sums over all calls."""

    calls: int = 0
    moved: int = 0
    """Calls that another model would have answered, or none."""
    raised: int = 0
    """Calls of which the rules ask for more than they did, where that is recorded."""
    lowered: int = 0
    unserved: int = 0
    """Calls that no model may have answered: refused, or answered without one."""
    undecided: int = 0
    """Calls recorded without the question's text, about which a rule asks: the rule was taken not to hold."""
    incomparable: int = 0
    """Calls whose cost then or now is not known; `cost` and `cost_now` leave them out, both."""
    cost: Decimal = Decimal(0)
    cost_now: Decimal = Decimal(0)
    by_model: dict[str, ModelSums] = field(default_factory=dict[str, ModelSums])
    asked_by: Counter[str] = field(default_factory=Counter[str])
    """How many calls each reason was given for."""

    @property
    def difference(self) -> Decimal:
        """How much more it would have cost, over the calls of which both is known."""
        return self.cost_now - self.cost


def replay(calls: Iterable[RecordedCall], catalogue: Catalogue, rules: Sequence[Rule]) -> Replay:
    """Route every call anew, by these rules over this catalogue, with every endpoint healthy."""
    sums = Replay()
    for call in calls:
        _add(sums, call, catalogue, rules)
    return sums


def recorded_calls(lines: Iterable[str]) -> Iterator[RecordedCall]:
    """Return the calls of a recording, one JSON object a line; blank lines are left out.

    Raises:
        InvalidInput: A line is no such object; the message names its number and repeats nothing of it.
    """
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_LINE_CHARS:
            raise InvalidInput(f"line {number}: longer than {MAX_LINE_CHARS} characters")
        if line.strip():
            try:
                yield _call(json.loads(line))
            except InvalidInput as exc:
                raise InvalidInput(f"line {number}: {exc.message}") from exc
            except ValueError as exc:
                raise InvalidInput(f"line {number}: no JSON object") from exc


def _add(sums: Replay, call: RecordedCall, catalogue: Catalogue, rules: Sequence[Rule]) -> None:
    required, reasons = required_tier(rules, call.features)
    wanted = max(call.max_tokens or 0, call.completion_tokens, 1)
    route = choose(
        _allowed(catalogue, call),
        required,
        policy=call.policy,
        healthy=lambda _: True,
        fits=lambda offer: fits(offer, call.prompt_tokens, wanted),
        cost=lambda offer: likely_cost(offer, prompt=call.prompt_tokens, completion=wanted),
    )
    offer = route.offers[0] if route.offers else None
    cost = None if offer is None else _cost(offer, call)
    picked = UNSERVED if offer is None else offer.model.name
    sums.calls += 1
    sums.moved += picked != call.model
    sums.unserved += offer is None
    sums.undecided += call.features.question is None and any(rule.when.needs_question for rule in rules)
    if call.required is not None:
        sums.raised += required > call.required
        sums.lowered += required < call.required
    sums.asked_by.update(reasons)
    then, now = (sums.by_model.setdefault(name, ModelSums()) for name in (call.model, picked))
    then.calls += 1
    then.cost += call.cost or 0
    now.calls_now += 1
    now.cost_now += cost or 0
    if call.cost is None or cost is None:
        sums.incomparable += 1
    else:
        sums.cost += call.cost
        sums.cost_now += cost


def _allowed(catalogue: Catalogue, call: RecordedCall) -> Sequence[Offer]:
    if call.tenant_id is None and call.tenant_tier is None:
        return catalogue.offers
    return catalogue.allowed(call.tenant_id or UUID(int=0), call.tenant_tier or "")


def _cost(offer: Offer, call: RecordedCall) -> Decimal | None:
    if offer.price is None:
        return None
    return offer.price.cost(
        prompt=call.prompt_tokens,
        cached=call.cached_tokens,
        completion=call.completion_tokens,
        milliseconds=call.milliseconds,
    )


def _call(told: Any) -> RecordedCall:
    fields = _known(told, _FIELDS, "a recorded call")
    prompt, cached = _count(fields, "prompt_tokens"), _count(fields, "cached_tokens", 0)
    if cached > prompt:
        raise InvalidInput("cached_tokens is more than prompt_tokens")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidInput("model is the name of the model that answered")
    return RecordedCall(
        features=_features(fields.get("features", {})),
        model=model,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=_count(fields, "completion_tokens"),
        max_tokens=_count(fields, "max_tokens", 0) or None,
        milliseconds=_count(fields, "milliseconds", 0),
        cost=_amount(fields.get("cost")),
        required=_tier(fields.get("required")),
        tenant_id=_tenant(fields.get("tenant_id")),
        tenant_tier=None if fields.get("tenant_tier") is None else str(fields["tenant_tier"]),
        policy=Policy(allow_downgrade=fields.get("allow_downgrade") is True, max_tier=_tier(fields.get("max_tier"))),
    )


def _features(told: Any) -> Features:
    fields = _known(told, frozenset(_FEATURES), "features")
    for name, value in fields.items():
        if value is None and name == "question":
            continue
        if type(value) is not _FEATURES[name] or (isinstance(value, int) and value < 0):  # to isinstance, true is 1
            raise InvalidInput(f"the feature {name} is not of its kind")
    return Features(**fields)


def _known(told: Any, known: frozenset[str], what: str) -> Mapping[str, Any]:
    if not isinstance(told, Mapping):
        raise InvalidInput(f"{what} must be a JSON object")
    fields = cast("Mapping[str, Any]", told)
    if set(fields) - known:
        raise InvalidInput(f"{what} has a field that is not known; known are {', '.join(sorted(known))}")
    return fields


def _count(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = fields.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_TOKENS:
        raise InvalidInput(f"{name} is a whole number from 0")
    return value


def _amount(told: Any) -> Decimal | None:
    if told is None:
        return None
    try:
        amount = Decimal(told) if isinstance(told, str) else None
    except InvalidOperation:
        amount = None
    if amount is None or not amount.is_finite() or amount < 0:
        raise InvalidInput("cost is a decimal number in quotes, from 0")
    return amount


def _tier(told: Any) -> Tier | None:
    return None if told is None else tier_of(told)


def _tenant(told: Any) -> UUID | None:
    try:
        return None if told is None else UUID(told)
    except (ValueError, TypeError, AttributeError) as exc:
        raise InvalidInput("tenant_id is a tenant's id") from exc
