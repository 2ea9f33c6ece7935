"""`bulkhead route`: which model a question would go to and why, and what other rules would have cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import click
from rich.markup import escape
from rich.table import Table

from rag.catalogue.configured import configured
from rag.catalogue.replay import UNSERVED, Replay, recorded_calls, replay
from rag.catalogue.store import Known, read_known
from rag.cli.common import json_option, operator, print_json, printable, results, settings_of
from rag.cli.prices import price_as_dict, price_in_words
from rag.errors import InvalidInput, Misconfigured
from rag.installation import installation
from rag.llm.catalogue import Catalogue, Offer, Tier
from rag.llm.counting import fits, likely_tokens
from rag.llm.request import ChatRequest
from rag.llm.routing import Features, Policy, Route, Rule, choose, likely_cost, required_tier, rules_of, tier_of
from rag.settings import Settings

__all__ = ["read_rules_file", "route"]

TIER = click.Choice([tier.name.lower() for tier in Tier])
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
DEFAULT_MAX_TOKENS = 1024


@click.command("route")
@click.option("--explain", "question", metavar="PROMPT", help="Show which models this question would be tried with.")
@click.option("--replay", "recording", type=FILE, help="Route the calls of a recording anew (docs/models.md).")
@click.option("--rules", "rules_file", type=FILE, help="Rules to route by, instead of the stored ones.")
@click.option("--tenant", "reference", help="Whose question: a tenant's name or id; with --explain.")
@click.option("--workflow", default="rag", show_default=True, help="Which workflow asks.")
@click.option("--step", default="answer", show_default=True, help="What is asked of the model.")
@click.option("--passages", type=click.IntRange(0), default=0, help="How many passages the prompt holds.")
@click.option("--prompt-chars", type=click.IntRange(0), help="Of the whole prompt. Default: of the question.")
@click.option("--max-tokens", type=click.IntRange(1), default=DEFAULT_MAX_TOKENS, show_default=True)
@click.option("--schema", is_flag=True, help="The answer is to be JSON of a schema.")
@click.option("--max-tier", type=TIER, help="No model above it.")
@click.option("--allow-downgrade", is_flag=True, help="A model below what the rules ask for may answer.")
@json_option
@click.pass_context
def route(
    context: click.Context,
    question: str | None,
    recording: Path | None,
    rules_file: Path | None,
    reference: str | None,
    workflow: str,
    step: str,
    passages: int,
    prompt_chars: int | None,
    max_tokens: int,
    schema: bool,
    max_tier: str | None,
    allow_downgrade: bool,
    as_json: bool,
) -> None:
    """Explain which model a question goes to, or replay recorded traffic by other rules. Calls no model."""
    if (question is None) == (recording is None):
        raise InvalidInput("say which: --explain PROMPT or --replay FILE")
    rules = None if rules_file is None else read_rules_file(rules_file)
    if recording is not None:
        with installation(settings_of(context)) as settings:
            known, _ = anyio.run(_known, settings, None)
        with recording.open(encoding="utf-8") as lines:
            sums = replay(recorded_calls(lines), known.catalogue, known.rules if rules is None else rules)
        _show_replay(sums, as_json=as_json)
        return
    assert question is not None
    if reference is None:
        raise InvalidInput("--explain needs --tenant: which models there are depends on whose question it is")
    with installation(settings_of(context)) as settings:
        known, offers = anyio.run(_known, settings, reference)
    features = Features(
        workflow=workflow,
        step=step,
        question=question,
        prompt_chars=len(question) if prompt_chars is None else prompt_chars,
        passages=passages,
        wants_schema=schema,
    )
    policy = Policy(allow_downgrade=allow_downgrade, max_tier=None if max_tier is None else tier_of(max_tier))
    found = _routed(offers, known.rules if rules is None else rules, features, policy, max_tokens)
    _show_route(found, features, as_json=as_json)


def read_rules_file(path: Path) -> tuple[Rule, ...]:
    """Return the rules of a file, a JSON list as `bulkhead models rules show --json` prints it.

    Raises:
        InvalidInput: It holds no such list.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise InvalidInput("the file of rules is no JSON") from exc
    return rules_of(told)


def _routed(
    offers: Sequence[Offer], rules: Sequence[Rule], features: Features, policy: Policy, max_tokens: int
) -> Route:
    required, reasons = required_tier(rules, features)
    question = features.question or ""
    # as the gateway does (rag/llm/gateway.py), with the rest of the prompt taken to be as long as it was said to be
    request = ChatRequest(system="", user=question.ljust(features.prompt_chars), max_tokens=max_tokens)
    likely = likely_tokens(request)
    return choose(
        offers,
        required,
        policy=policy,
        healthy=lambda _: True,
        fits=lambda offer: fits(offer, likely, max_tokens),
        cost=lambda offer: likely_cost(offer, prompt=likely, completion=max_tokens),
        reasons=reasons,
    )


async def _known(settings: Settings, reference: str | None) -> tuple[Known, Sequence[Offer]]:
    async with operator(settings) as verbs:
        known = await read_known(verbs.database, otherwise=configured(settings))
        if not known.catalogue.offers:
            raise Misconfigured("there is no model: `bulkhead models` keeps a catalogue, or set BULKHEAD_LLM_URL")
        if reference is None:
            return known, ()
        tenant = await verbs.find_tenant(reference)
        return known, _allowed(known.catalogue, tenant.tenant_id, tenant.tier.value)


def _allowed(catalogue: Catalogue, tenant_id: Any, tier: str) -> Sequence[Offer]:
    return catalogue.allowed(tenant_id, tier)


def _show_route(found: Route, features: Features, *, as_json: bool) -> None:
    if as_json:
        print_json(_route_as_dict(found, features))
        return
    out = results()
    out.print(f"required: [bold]{found.required.name.lower()}[/]")
    for reason in found.reasons:
        out.print(f"  {escape(printable(reason))}")
    table = Table("", "model", "tier", "endpoint", "input/cached/output", "", box=None, padding=(0, 2, 0, 0))
    for number, offer in enumerate(found.offers, start=1):
        table.add_row(str(number), *_columns(offer), "below what is required" if found.is_downgrade(offer) else "")
    for passed in found.passed_over:
        table.add_row("-", *_columns(passed.offer), passed.why.value)
    out.print(table)
    out.print("Breakers are each worker's own and not known here: every endpoint counts as healthy.")


def _columns(offer: Offer) -> tuple[str, str, str, str]:
    return (
        escape(offer.model.name),
        offer.model.tier.name.lower(),
        escape(offer.endpoint.name),
        "unknown" if offer.price is None else price_in_words(offer.price),
    )


def _route_as_dict(found: Route, features: Features) -> dict[str, object]:
    return {
        "required": found.required.name.lower(),
        "tier": None if found.tier is None else found.tier.name.lower(),
        "downgraded": found.downgraded,
        "reasons": list(found.reasons),
        "features": {
            "workflow": features.workflow,
            "step": features.step,
            "prompt_chars": features.prompt_chars,
            "passages": features.passages,
            "wants_schema": features.wants_schema,
        },
        "offers": [{**_offer_as_dict(one), "downgrade": found.is_downgrade(one)} for one in found.offers],
        "passed_over": [{**_offer_as_dict(one.offer), "why": one.why.value} for one in found.passed_over],
    }


def _offer_as_dict(offer: Offer) -> dict[str, object]:
    return {
        "model": offer.model.name,
        "tier": offer.model.tier.name.lower(),
        "endpoint": offer.endpoint.name,
        "price": None if offer.price is None else price_as_dict(offer.price),
    }


def _show_replay(sums: Replay, *, as_json: bool) -> None:
    if as_json:
        print_json(_replay_as_dict(sums))
        return
    out = results()
    table = Table("model", "calls", "cost", "calls now", "cost now", "difference", box=None, padding=(0, 2, 0, 0))
    for name, one in sorted(sums.by_model.items()):
        numbers = (str(one.calls), _told(one.cost), str(one.calls_now), _told(one.cost_now))
        table.add_row(escape(printable(name or "none")), *numbers, _told(one.cost_now - one.cost, signed=True))
    out.print(table)
    out.print(
        f"{sums.calls} calls, {sums.moved} of them to another model or to none; "
        f"tier raised {sums.raised}, lowered {sums.lowered}, unserved {sums.unserved}"
    )
    out.print(
        f"{_told(sums.cost)} then, {_told(sums.cost_now)} now, {_told(sums.difference, signed=True)}: taking the other "
        f"model to use as many tokens and as long. Left out, for a cost is not known: {sums.incomparable}"
    )
    if sums.undecided:
        out.print(f"{sums.undecided} calls were recorded without the question's text: rules about it were left out")


def _replay_as_dict(sums: Replay) -> dict[str, object]:
    return {
        **{name: getattr(sums, name) for name in ("calls", "moved", "raised", "lowered", "unserved")},
        **{name: getattr(sums, name) for name in ("undecided", "incomparable")},
        "cost": _told(sums.cost),
        "cost_now": _told(sums.cost_now),
        "difference": _told(sums.difference),
        "reasons": dict(sums.asked_by),
        "models": [
            {
                "model": None if name == UNSERVED else name,
                "calls": one.calls,
                "cost": _told(one.cost),
                "calls_now": one.calls_now,
                "cost_now": _told(one.cost_now),
            }
            for name, one in sorted(sums.by_model.items())
        ],
    }


def _told(amount: Decimal, *, signed: bool = False) -> str:
    return f"{amount:+f}" if signed else f"{amount:f}"
