"""A recording routed anew: what other rules or prices would have picked and cost, to the last digit."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.catalogue.replay import UNSERVED, RecordedCall, Replay, recorded_calls, replay
from rag.errors import InvalidInput
from rag.llm.catalogue import Catalogue, Endpoint, Model, Offer, Price, Tier
from rag.llm.routing import Features, Rule, When

ACME = UUID(int=7)
CALL: dict[str, Any] = {"model": "small", "prompt_tokens": 1000, "completion_tokens": 200}


def offer(name: str, tier: Tier, price: Decimal | None, *, tenants: frozenset[UUID] = frozenset()) -> Offer:
    return Offer(
        model=Model(name=name, tier=tier, context_tokens=4000, tiers=frozenset({"pro"}), tenants=tenants),
        endpoint=Endpoint(name="gpu", base_url="http://gpu/v1"),
        served_name=name,
        priority=1,
        price=None
        if price is None
        else Price(
            price_id=UUID(int=1), input=price, cached_input=price / 10, output=price * 2, second=Decimal("0.000001")
        ),
    )


CATALOGUE = Catalogue(
    offers=(offer("small", Tier.SMALL, Decimal("0.3")), offer("large", Tier.LARGE, Decimal(3))),
)
MORE = (Rule(name="all", tier=Tier.LARGE),)


def replayed(*calls: dict[str, Any], rules: tuple[Rule, ...] = (), catalogue: Catalogue = CATALOGUE) -> Replay:
    return replay(recorded_calls([json.dumps(CALL | call) for call in calls]), catalogue, rules)


def test_the_same_rules_over_the_same_models_change_nothing() -> None:
    sums = replayed({"cost": "0.000420000000"}, {"cost": "0.00042", "cached_tokens": 0})
    assert (sums.calls, sums.moved, sums.difference) == (2, 0, 0)
    assert sums.by_model["small"].calls == sums.by_model["small"].calls_now == 2


def test_what_a_changed_rule_would_have_cost_is_exact() -> None:
    sums = replayed({"cost": "0.00042", "required": "small", "cached_tokens": 400, "milliseconds": 1500}, rules=MORE)
    large = (Decimal(3) * 600 + Decimal("0.3") * 400 + Decimal(6) * 200) / 1_000_000 + Decimal("0.0000015")
    assert (sums.moved, sums.raised, sums.lowered) == (1, 1, 0)
    assert (sums.cost, sums.cost_now) == (Decimal("0.00042"), large)
    assert sums.difference == large - Decimal("0.00042")
    assert sums.asked_by == {"the rule 'all' asks for large": 1}
    assert (sums.by_model["small"].calls_now, sums.by_model["large"].calls_now) == (0, 1)


def test_a_call_whose_cost_is_not_known_is_counted_and_not_compared() -> None:
    unpriced = Catalogue(offers=(offer("small", Tier.SMALL, None),))
    sums = replayed({"cost": "1"}, catalogue=unpriced)
    assert (sums.incomparable, sums.cost, sums.cost_now, sums.difference) == (1, 0, 0, 0)
    assert replayed({}).incomparable == 1
    assert replayed({}).by_model["small"].cost_now > 0


def test_a_call_that_no_model_may_have_answered_is_unserved() -> None:
    too_long = {"prompt_tokens": 3900, "completion_tokens": 200}
    assert replayed(too_long).by_model[UNSERVED].calls_now == 1
    assert replayed({"max_tokens": 3001}).unserved == 1, "it might have written so much"
    assert replayed({"max_tokens": 3000}).unserved == 0
    assert replayed({"max_tier": "small"}, rules=MORE).unserved == 1
    assert replayed({"max_tier": "small", "allow_downgrade": True}, rules=MORE).unserved == 0
    assert replayed({"tenant_tier": "free"}).unserved == 1
    assert replayed({"tenant_tier": "pro"}).unserved == 0


def test_a_tenant_that_is_named_for_a_model_is_routed_as_itself() -> None:
    own = Catalogue(offers=(offer("own", Tier.SMALL, Decimal(1), tenants=frozenset({ACME})),))
    assert replayed({"tenant_id": str(ACME), "tenant_tier": "free"}, catalogue=own).unserved == 0
    assert replayed({"tenant_id": str(UUID(int=8)), "tenant_tier": "free"}, catalogue=own).unserved == 1


def test_a_rule_about_words_is_not_decided_without_the_question() -> None:
    rules = (Rule(name="why", tier=Tier.LARGE, when=When(any_words=("why",))),)
    without = replayed({"features": {"workflow": "rag"}}, rules=rules)
    assert (without.undecided, without.moved) == (1, 0)
    known = replayed({"features": {"question": "Why?"}}, rules=rules)
    assert (known.undecided, known.moved) == (0, 1)
    assert replayed({"features": {}}, rules=MORE).undecided == 0, "no rule asks about it"


@given(
    st.lists(
        st.builds(
            RecordedCall,
            features=st.builds(Features, question=st.none() | st.just("why"), prompt_chars=st.integers(0, 9000)),
            model=st.sampled_from(["small", "large", "gone"]),
            prompt_tokens=st.integers(0, 5000),
            completion_tokens=st.integers(0, 2000),
            milliseconds=st.integers(0, 10_000),
            cost=st.none() | st.decimals(min_value=0, max_value=9, places=12),
            required=st.none() | st.sampled_from(Tier),
        ),
        max_size=20,
    )
)
def test_the_sums_of_the_models_are_the_sums_of_the_calls(calls: list[RecordedCall]) -> None:
    rules = (Rule(name="why", tier=Tier.LARGE, when=When(any_words=("why",))),)
    sums = replay(calls, CATALOGUE, rules)
    models = sums.by_model.values()
    assert sums.calls == len(calls) == sum(one.calls for one in models) == sum(one.calls_now for one in models)
    assert sum(one.cost for one in models) == sum(call.cost for call in calls if call.cost is not None)
    if not sums.incomparable:
        assert (sums.cost, sums.cost_now) == (sum(one.cost for one in models), sum(one.cost_now for one in models))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON object"),
        ("[]", "line 2: a recorded call must be a JSON object"),
        ('{"prompt_tokens": 1, "completion_tokens": 1}', "line 2: model is the name"),
        ('{"model": "m", "prompt_tokens": -1, "completion_tokens": 1}', "line 2: prompt_tokens is a whole number"),
        ('{"model": "m", "prompt_tokens": true, "completion_tokens": 1}', "line 2: prompt_tokens is a whole number"),
        ('{"model": "m", "prompt_tokens": 1}', "line 2: completion_tokens is a whole number"),
        (json.dumps(CALL | {"cached_tokens": 1001}), "line 2: cached_tokens is more than prompt_tokens"),
        (json.dumps(CALL | {"cost": 0.1}), "line 2: cost is a decimal number in quotes"),
        (json.dumps(CALL | {"cost": "NaN"}), "line 2: cost is a decimal number in quotes"),
        (json.dumps(CALL | {"cost": "much"}), "line 2: cost is a decimal number in quotes"),
        (json.dumps(CALL | {"required": "huge"}), "line 2: a model's tier is"),
        (json.dumps(CALL | {"tenant_id": "acme"}), "line 2: tenant_id is a tenant's id"),
        (json.dumps(CALL | {"tenant_id": 7}), "line 2: tenant_id is a tenant's id"),
        (json.dumps(CALL | {"colour": "red"}), "line 2: a recorded call has a field that is not known"),
        (json.dumps(CALL | {"features": {"mood": "grave"}}), "line 2: features has a field that is not known"),
        (json.dumps(CALL | {"features": {"passages": True}}), "line 2: the feature passages is not of its kind"),
        (json.dumps(CALL | {"features": {"passages": -1}}), "line 2: the feature passages is not of its kind"),
        (json.dumps(CALL | {"features": {"question": 1}}), "line 2: the feature question is not of its kind"),
        ("x" * 200_001, "line 2: longer than"),
    ],
)
def test_a_line_that_is_no_call_is_refused_by_its_number(line: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        list(recorded_calls(["\n", line]))
