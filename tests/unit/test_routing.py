"""Routing: rules as data say what a call needs, and no offer below that is tried unless the caller's policy says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import InvalidInput
from rag.llm.catalogue import Catalogue, Endpoint, Model, Offer, Price, Tier
from rag.llm.routing import (
    Features,
    Policy,
    Route,
    Rule,
    When,
    Why,
    choose,
    matches,
    required_tier,
    rule_of,
    rules_of,
    tier_of,
    typical_cost,
)

ACME = UUID(int=1)


def offer(
    model: str,
    tier: Tier = Tier.SMALL,
    *,
    endpoint: str = "gpu",
    priority: int = 100,
    price: str | None = "1",
    tiers: frozenset[str] = frozenset({"free"}),
    tenants: frozenset[UUID] = frozenset(),
) -> Offer:
    number = None if price is None else Decimal(price)
    return Offer(
        model=Model(name=model, tier=tier, context_tokens=8192, tiers=tiers, tenants=tenants),
        endpoint=Endpoint(name=endpoint, base_url=f"http://{endpoint}/v1"),
        served_name=model,
        priority=priority,
        price=None if number is None else Price(price_id=uuid4(), input=number, cached_input=number, output=number),
    )


def anything(_: Offer) -> bool:
    return True


def route(
    offers: Sequence[Offer],
    required: Tier,
    policy: Policy | None = None,
    *,
    healthy: Callable[[Offer], bool] = anything,
    fits: Callable[[Offer], bool] = anything,
    cost: Callable[[Offer], Decimal | None] | None = None,
    reasons: Sequence[str] = (),
) -> Route:
    return choose(offers, required, policy=policy or Policy(), healthy=healthy, fits=fits, cost=cost, reasons=reasons)


def names(found: Route) -> list[tuple[str, str]]:
    return [(one.model.name, one.endpoint.name) for one in found.offers]


TIERS = st.sampled_from(Tier)
MODELS = {"a": Tier.SMALL, "b": Tier.SMALL, "c": Tier.MEDIUM, "d": Tier.MEDIUM, "e": Tier.LARGE}
ENDPOINTS = ("one", "two", "three")


def some_offer(model: str, endpoint: str, priority: int, price: str | None) -> Offer:
    return offer(model, MODELS[model], endpoint=endpoint, priority=priority, price=price)


OFFERS = st.lists(
    st.builds(
        some_offer,
        st.sampled_from(sorted(MODELS)),
        st.sampled_from(ENDPOINTS),
        st.integers(0, 3),
        st.sampled_from([None, "0", "0.5", "3", "20"]),
    ),
    max_size=10,
    unique_by=lambda one: (one.model.name, one.endpoint.name),
)
FEATURES = st.builds(
    Features,
    workflow=st.sampled_from(["rag", "research", "react"]),
    step=st.sampled_from(["answer", "plan", "action"]),
    question=st.none() | st.text(max_size=60),
    prompt_chars=st.integers(0, 50_000),
    passages=st.integers(0, 30),
    wants_schema=st.booleans(),
)
WHENS = st.builds(
    When,
    workflow=st.sampled_from([(), ("rag",), ("research", "react")]),
    step=st.sampled_from([(), ("plan",)]),
    any_words=st.sampled_from([(), ("why",), ("trade off", "compare")]),
    min_question_chars=st.sampled_from([0, 10]),
    min_prompt_chars=st.sampled_from([0, 10_000]),
    min_passages=st.sampled_from([0, 8]),
    wants_schema=st.sampled_from([None, True, False]),
)
RULES = st.lists(st.builds(Rule, name=st.text(min_size=1, max_size=8), tier=TIERS, when=WHENS), max_size=8)


@given(offers=OFFERS, required=TIERS, broken=st.sets(st.sampled_from(ENDPOINTS)))
def test_without_a_downgrade_no_offer_is_below_what_is_required(
    offers: list[Offer], required: Tier, broken: set[str]
) -> None:
    found = route(offers, required, healthy=lambda one: one.endpoint.name not in broken)
    assert all(one.model.tier >= required for one in found.offers)
    assert not found.downgraded
    assert found.tier is None or found.tier >= required
    tried = {id(one) for one in found.offers} | {id(one.offer) for one in found.passed_over}
    assert tried == {id(one) for one in offers}, "an offer is tried, or it is said why not"


@given(offers=OFFERS, required=TIERS, most=st.none() | TIERS)
def test_with_a_downgrade_what_suffices_comes_first_and_the_rest_is_said_to_be_below(
    offers: list[Offer], required: Tier, most: Tier | None
) -> None:
    found = route(offers, required, Policy(allow_downgrade=True, max_tier=most))
    below = [found.is_downgrade(one) for one in found.offers]
    assert below == sorted(below)
    assert found.downgraded is (below[:1] == [True])
    assert all(one.model.tier <= (most or Tier.LARGE) for one in found.offers)
    rest = [one.model.tier for one in found.offers if found.is_downgrade(one)]
    assert rest == sorted(rest, reverse=True), "the largest of the smaller ones first"
    if found.downgraded:
        assert "the caller allows a smaller one" in found.reasons[-1]


@given(rules=RULES, features=FEATURES)
def test_what_is_required_is_the_highest_tier_that_a_matching_rule_asks_for(
    rules: list[Rule], features: Features
) -> None:
    required, reasons = required_tier(rules, features)
    asked = [rule.tier for rule in rules if matches(rule.when, features)]
    assert required == max(asked, default=Tier.SMALL)
    assert reasons
    assert required_tier(list(reversed(rules)), features)[0] == required, "their order does not matter"


@given(rules=RULES, features=FEATURES, more=st.builds(Rule, name=st.just("more"), tier=TIERS, when=WHENS))
def test_a_rule_more_never_asks_for_less(rules: list[Rule], features: Features, more: Rule) -> None:
    assert required_tier([*rules, more], features)[0] >= required_tier(rules, features)[0]


@given(when=WHENS, tier=TIERS)
def test_a_rule_survives_json(when: When, tier: Tier) -> None:
    rule = Rule(name="r", tier=tier, when=when)
    assert rule_of(rule.as_dict()) == rule


@given(offers=OFFERS, tenant=st.uuids(), booked=st.sampled_from(["", "gold", "FREE", "pro"]))
def test_an_unknown_tenant_or_tier_gets_nothing(offers: list[Offer], tenant: UUID, booked: str) -> None:
    assert Catalogue(offers=tuple(offers)).allowed(tenant, booked) == ()
    found = route((), Tier.SMALL)
    assert (found.offers, found.tier, found.reasons) == ((), None, ("the tenant may use no model",))


def test_a_tier_is_compared_by_value_and_not_as_text() -> None:
    assert sorted(tier.name for tier in Tier) == ["LARGE", "MEDIUM", "SMALL"], "what a comparison of texts would say"
    assert Tier.SMALL < Tier.MEDIUM < Tier.LARGE
    asking = [Rule(name=tier.name, tier=tier) for tier in Tier]
    assert required_tier(asking, Features())[0] is Tier.LARGE
    assert names(route([offer("s"), offer("m", Tier.MEDIUM)], Tier.LARGE)) == []
    assert names(route([offer("m", Tier.MEDIUM), offer("l", Tier.LARGE)], Tier.MEDIUM))[0] == ("m", "gpu")
    with pytest.raises(InvalidInput, match="small, medium, large"):
        tier_of("Large")
    with pytest.raises(InvalidInput):
        tier_of(3)


def test_a_tenant_that_is_named_may_use_a_model_whatever_its_tier() -> None:
    offers = (offer("open"), offer("own", tiers=frozenset(), tenants=frozenset({ACME})))
    catalogue = Catalogue(offers=offers)
    assert [one.model.name for one in catalogue.allowed(ACME, "pro")] == ["own"]
    assert [one.model.name for one in catalogue.allowed(UUID(int=2), "free")] == ["open"]
    assert catalogue.allowed(UUID(int=2), "pro") == ()


def test_the_cheapest_of_the_lowest_sufficient_tier_comes_first_then_its_endpoints_then_larger_models() -> None:
    offers = [
        offer("large", Tier.LARGE, price="0.1"),
        offer("dear", Tier.MEDIUM, price="9"),
        offer("cheap", Tier.MEDIUM, endpoint="far", priority=2, price="0.1"),
        offer("cheap", Tier.MEDIUM, endpoint="near", priority=1, price="2"),
        offer("unpriced", Tier.MEDIUM, price=None),
        offer("small", price="0.1"),
    ]
    found = route(offers, Tier.MEDIUM)
    assert names(found) == [
        ("cheap", "near"),
        ("cheap", "far"),
        ("dear", "gpu"),
        ("unpriced", "gpu"),
        ("large", "gpu"),
    ]
    assert [(one.offer.model.name, one.why) for one in found.passed_over] == [("small", Why.BELOW)]
    assert (found.tier, found.required) == (Tier.MEDIUM, Tier.MEDIUM)
    by_own = route(offers, Tier.MEDIUM, cost=lambda one: Decimal(1) if one.model.name == "dear" else Decimal(5))
    assert names(by_own)[0] == ("dear", "gpu")


def test_a_model_is_compared_by_the_endpoint_that_would_be_asked() -> None:
    offers = [
        offer("a", endpoint="first", priority=1, price="5"),
        offer("a", endpoint="spare", priority=2, price="1"),
        offer("b", endpoint="only", price="3"),
    ]
    assert names(route(offers, Tier.SMALL)) == [("b", "only"), ("a", "first"), ("a", "spare")]
    away = route(offers, Tier.SMALL, healthy=lambda one: one.endpoint.name != "first")
    assert names(away) == [("a", "spare"), ("b", "only")]


def test_own_hardware_is_compared_by_its_seconds() -> None:
    free = Price(price_id=uuid4(), input=Decimal(0), cached_input=Decimal(0), output=Decimal(0), second=Decimal("0.01"))
    own = Offer(model=offer("own").model, endpoint=offer("own").endpoint, served_name="own", priority=1, price=free)
    assert typical_cost(own) == Decimal("0.1")
    assert names(route([own, offer("hosted", price="1")], Tier.SMALL))[0] == ("hosted", "gpu")


def test_what_is_broken_or_too_short_is_passed_over_and_said() -> None:
    offers = [offer("short"), offer("broken"), offer("large", Tier.LARGE)]
    found = route(
        offers,
        Tier.SMALL,
        Policy(max_tier=Tier.MEDIUM),
        fits=lambda one: one.model.name != "short",
        healthy=lambda one: one.model.name != "broken",
    )
    assert names(found) == []
    assert [one.why for one in found.passed_over] == [Why.TOO_LONG, Why.UNHEALTHY, Why.ABOVE]
    assert found.reasons == ("no model of tier small or above is to be had",)


def test_a_cap_below_what_is_required_is_a_refusal_unless_a_downgrade_is_allowed() -> None:
    offers = [offer("small"), offer("large", Tier.LARGE)]
    refused = route(offers, Tier.LARGE, Policy(max_tier=Tier.SMALL), reasons=["the rule 'x' asks for large"])
    assert names(refused) == []
    assert refused.reasons == (
        "the rule 'x' asks for large",
        "the caller allows no model above small, and no downgrade",
    )
    allowed = route(offers, Tier.LARGE, Policy(max_tier=Tier.SMALL, allow_downgrade=True))
    assert (names(allowed), allowed.downgraded, allowed.tier) == ([("small", "gpu")], True, Tier.SMALL)


def test_words_are_whole_words_and_case_and_signs_between_them_do_not_matter() -> None:
    when = When(any_words=("why", "trade off", "Straße"))
    for question in ("Why?", "so WHY", "a trade-off", "the Trade  off.", "STRASSE"):
        assert matches(when, Features(question=question)), question
    for question in ("whynot", "trade it off", "", "strassen"):
        assert not matches(when, Features(question=question)), question


def test_what_needs_the_question_does_not_hold_where_it_is_not_known() -> None:
    when = When(any_words=("why",))
    assert when.needs_question
    assert not matches(when, Features(question=None))
    assert not matches(When(min_question_chars=1), Features(question=None))
    assert matches(When(min_question_chars=3), Features(question="why"))


def test_all_conditions_of_a_rule_must_hold() -> None:
    when = When(workflow=("react", "rag"), step=("action",), min_passages=2, wants_schema=True)
    fits = Features(workflow="rag", step="action", passages=2, wants_schema=True)
    assert matches(when, fits)
    for other in (
        Features(workflow="research", step="action", passages=2, wants_schema=True),
        Features(workflow="rag", step="answer", passages=2, wants_schema=True),
        Features(workflow="rag", step="action", passages=1, wants_schema=True),
        Features(workflow="rag", step="action", passages=2, wants_schema=False),
    ):
        assert not matches(when, other)


def test_no_reason_repeats_a_word_of_the_question() -> None:
    rules = [Rule(name="weighs", tier=Tier.LARGE, when=When(any_words=("confidential",)))]
    features = Features(question="Is the merger confidential?")
    required, reasons = required_tier(rules, features)
    assert (required, reasons) == (Tier.LARGE, ("the rule 'weighs' asks for large",))
    assert "merger" not in repr(features)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ([], "a rule must be an object"),
        ({"name": "", "tier": "small"}, "a rule's name is 1 to 64"),
        ({"name": "x"}, "a model's tier is small, medium, large"),
        ({"name": "x", "tier": 3}, "a model's tier is"),
        ({"name": "x", "tier": "small", "wenn": {}}, "unknown 'wenn'"),
        ({"name": "x", "tier": "small", "when": {"min_pasages": 3}}, "unknown 'min_pasages'; known are workflow, step"),
        ({"name": "x", "tier": "small", "when": {"any_words": "why"}}, "any_words of the rule 'x' is a list"),
        ({"name": "x", "tier": "small", "when": {"any_words": []}}, "any_words of the rule 'x' is a list"),
        ({"name": "x", "tier": "small", "when": {"any_words": ["?"]}}, "holds what is no word"),
        ({"name": "x", "tier": "small", "when": {"min_passages": True}}, "a whole number above 0"),
        ({"name": "x", "tier": "small", "when": {"min_passages": 0}}, "a whole number above 0"),
        ({"name": "x", "tier": "small", "when": {"wants_schema": "yes"}}, "true or false"),
    ],
)
def test_a_rule_that_is_not_understood_is_refused_and_not_guessed(told: object, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        rule_of(told)


def test_rules_are_a_list_without_repeated_names() -> None:
    rule = {"name": "x", "tier": "small"}
    assert rules_of([rule]) == (Rule(name="x", tier=Tier.SMALL),)
    with pytest.raises(InvalidInput, match="two rules are called 'x'"):
        rules_of([rule, rule])
    with pytest.raises(InvalidInput, match="a JSON list"):
        rules_of(rule)
    with pytest.raises(InvalidInput, match="up to 200"):
        rules_of([{"name": str(number), "tier": "small"} for number in range(201)])
