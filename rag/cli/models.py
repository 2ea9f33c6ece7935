"""`bulkhead models`: the catalogue of chat models, who may use them, what they cost, and the rules of routing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

import anyio
import click
from rich.markup import escape
from rich.table import Table

from rag.catalogue.operator import CatalogueOperator, KnownEndpoint, KnownModel, PriceVersion
from rag.cli.common import json_option, operator, print_json, results, settings_of
from rag.cli.prices import price_as_dict, price_in_words
from rag.cli.rules import rules
from rag.errors import InvalidInput
from rag.installation import installation
from rag.llm.catalogue import Tier as ModelTier
from rag.llm.routing import tier_of
from rag.settings import Settings
from rag.tenants.operator import Operator, Tier

__all__ = ["models"]

T = TypeVar("T")
MODEL = click.argument("model")
ENDPOINT = click.argument("endpoint")
MODEL_TIER = click.Choice([tier.name.lower() for tier in ModelTier])
KIND = click.Choice(["vllm", "openai", "ollama"])
TIERS = click.option(
    "--tier", "tiers", multiple=True, type=click.Choice([tier.value for tier in Tier]), help="Tenants of this tier."
)
TENANTS = click.option("--tenant", "tenants", multiple=True, help="This tenant, whatever its tier: its name or id.")


class _Price(click.ParamType[Decimal]):
    """An exact decimal number."""

    name = "price"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return value if isinstance(value, Decimal) else Decimal(str(value))
        except InvalidOperation:
            self.fail("not a decimal number", param, ctx)


PRICE = _Price()


@click.group()
def models() -> None:
    """Keep the catalogue of chat models: where they are, what they cost, who may use them."""


models.add_command(rules)


@models.command("list")
@json_option
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """Show every model with its offers and their prices for a million tokens."""
    found = _run(context, lambda verbs, _: verbs.models())
    if as_json:
        print_json([_model_as_dict(one) for one in found])
        return
    table = Table(
        "model",
        "tier",
        "context",
        "for",
        "endpoint",
        "as",
        "priority",
        "input/cached/output",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for model in found:
        told = (escape(model.name), model.tier.name.lower(), str(model.context_tokens), escape(_for(model)))
        for number, offer in enumerate(model.offers):
            off = "" if offer.enabled else " (disabled)"
            table.add_row(
                *(told if number == 0 else ("", "", "", "")),
                f"{escape(offer.endpoint)}{off}",
                escape(offer.served_name),
                str(offer.priority),
                "unknown" if offer.price is None else price_in_words(offer.price.price),
            )
        if not model.offers:
            table.add_row(*told, "nowhere", "", "", "")
    results().print(table)


@models.command("endpoints")
@json_option
@click.pass_context
def endpoints(context: click.Context, as_json: bool) -> None:
    """Show every model server. Keys are not kept here, and not shown."""
    found: list[KnownEndpoint] = _run(context, lambda verbs, _: verbs.endpoints())
    if as_json:
        print_json([{"name": e.name, "base_url": e.base_url, "kind": e.kind, "enabled": e.enabled} for e in found])
        return
    table = Table("name", "url", "kind", "", box=None, padding=(0, 2, 0, 0))
    for one in found:
        table.add_row(escape(one.name), escape(one.base_url), one.kind, "" if one.enabled else "disabled")
    results().print(table)


@models.command("add-endpoint")
@click.argument("name")
@click.option("--url", required=True, help="What stands before /chat/completions, such as http://vllm:8000/v1.")
@click.option("--kind", type=KIND, default="openai", show_default=True, help="What else the server has.")
@click.pass_context
def add_endpoint(context: click.Context, name: str, url: str, kind: str) -> None:
    """Add the model server NAME."""
    _run(context, lambda verbs, _: verbs.add_endpoint(name, url=url, kind=kind))
    click.echo("added")


@models.command("set-endpoint")
@click.argument("name")
@click.option("--url", help="Where it is.")
@click.option("--kind", type=KIND)
@click.option("--enable/--disable", "enabled", default=None, help="Whether it is asked at all.")
@click.pass_context
def set_endpoint(context: click.Context, name: str, url: str | None, kind: str | None, enabled: bool | None) -> None:
    """Change the model server NAME."""
    if url is None and kind is None and enabled is None:
        raise InvalidInput("say what to set: --url, --kind, --enable or --disable")
    _run(context, lambda verbs, _: verbs.set_endpoint(name, url=url, kind=kind, enabled=enabled))
    click.echo("set")


@models.command("remove-endpoint")
@click.argument("name")
@click.pass_context
def remove_endpoint(context: click.Context, name: str) -> None:
    """Forget the model server NAME and its offers. One that ever had a price can only be disabled."""
    _run(context, lambda verbs, _: verbs.remove_endpoint(name))
    click.echo("removed")


@models.command("add")
@MODEL
@click.option("--tier", type=MODEL_TIER, required=True, help="How much it can do.")
@click.option("--context", "context_tokens", type=click.IntRange(1), required=True, help="Tokens, in and out together.")
@click.option("--for", "tiers", multiple=True, type=click.Choice([tier.value for tier in Tier]), help="As `allow`.")
@click.pass_context
def add(context: click.Context, model: str, tier: str, context_tokens: int, tiers: tuple[str, ...]) -> None:
    """Add MODEL. Nobody may use it before `allow` (or --for) says who, and nothing serves it before `offer`."""
    _run(
        context,
        lambda verbs, _: verbs.add_model(model, tier=tier_of(tier), context_tokens=context_tokens, tiers=tiers),
    )
    click.echo("added")


@models.command("set")
@MODEL
@click.option("--tier", type=MODEL_TIER)
@click.option("--context", "context_tokens", type=click.IntRange(1))
@click.pass_context
def set_(context: click.Context, model: str, tier: str | None, context_tokens: int | None) -> None:
    """Change how much MODEL can do."""
    if tier is None and context_tokens is None:
        raise InvalidInput("say what to set: --tier or --context")
    size = None if tier is None else tier_of(tier)
    _run(context, lambda verbs, _: verbs.set_model(model, tier=size, context_tokens=context_tokens))
    click.echo("set")


@models.command("remove")
@MODEL
@click.pass_context
def remove(context: click.Context, model: str) -> None:
    """Forget MODEL and its offers. One that ever had a price can only be withdrawn."""
    _run(context, lambda verbs, _: verbs.remove_model(model))
    click.echo("removed")


@models.command("allow")
@MODEL
@TIERS
@TENANTS
@click.pass_context
def allow(context: click.Context, model: str, tiers: tuple[str, ...], tenants: tuple[str, ...]) -> None:
    """Let tenants use MODEL; workers follow within half a minute."""
    _permit(context, CatalogueOperator.allow, model, tiers, tenants)
    click.echo("allowed")


@models.command("deny")
@MODEL
@TIERS
@TENANTS
@click.pass_context
def deny(context: click.Context, model: str, tiers: tuple[str, ...], tenants: tuple[str, ...]) -> None:
    """Take back what `allow` gave. A tenant whose tier may use MODEL still may."""
    _permit(context, CatalogueOperator.deny, model, tiers, tenants)
    click.echo("denied")


@models.command("offer")
@MODEL
@ENDPOINT
@click.option("--as", "served_name", help="What the endpoint calls it. Default: MODEL.")
@click.option("--priority", type=click.IntRange(0, 1_000_000), default=100, show_default=True, help="Lowest first.")
@click.pass_context
def offer(context: click.Context, model: str, endpoint: str, served_name: str | None, priority: int) -> None:
    """Say that ENDPOINT serves MODEL, or change how it does."""
    _run(context, lambda verbs, _: verbs.offer(model, endpoint, served_name=served_name, priority=priority))
    click.echo("offered")


@models.command("withdraw")
@MODEL
@ENDPOINT
@click.pass_context
def withdraw(context: click.Context, model: str, endpoint: str) -> None:
    """Say that ENDPOINT does not serve MODEL any more. Its prices stay: they explain what was charged."""
    _run(context, lambda verbs, _: verbs.withdraw(model, endpoint))
    click.echo("withdrawn")


@models.command("price")
@MODEL
@ENDPOINT
@click.option("--input", "input_", type=PRICE, required=True, help="For a million tokens of prompts.")
@click.option("--cached-input", type=PRICE, help="Of them, for those in the prefix cache. Default: as --input.")
@click.option("--output", type=PRICE, required=True, help="For a million tokens of answers.")
@click.option("--second", type=PRICE, default=Decimal(0), help="For a second of a call: own hardware.")
@click.option("--from", "valid_from", metavar="TIME", help="A moment to come, as 2027-01-01T00:00Z. Default: now.")
@json_option
@click.pass_context
def price(
    context: click.Context,
    model: str,
    endpoint: str,
    input_: Decimal,
    cached_input: Decimal | None,
    output: Decimal,
    second: Decimal,
    valid_from: str | None,
    as_json: bool,
) -> None:
    """Give MODEL another price at ENDPOINT, in the installation's currency. The former ones stay on record."""
    moment = None if valid_from is None else _moment(valid_from)
    price_id = _run(
        context,
        lambda verbs, _: verbs.add_price(
            model,
            endpoint,
            input=input_,
            cached_input=input_ if cached_input is None else cached_input,
            output=output,
            second=second,
            valid_from=moment,
        ),
    )
    if as_json:
        print_json({"price_id": price_id})
    else:
        click.echo("priced")


@models.command("prices")
@MODEL
@json_option
@click.pass_context
def prices(context: click.Context, model: str, as_json: bool) -> None:
    """Show every price that MODEL had, has and will have, the newest first."""
    found: list[PriceVersion] = _run(context, lambda verbs, _: verbs.prices(model))
    if as_json:
        print_json([{"endpoint": one.endpoint, **_version_as_dict(one)} for one in found])
        return
    table = Table("endpoint", "from", "input/cached/output", box=None, padding=(0, 2, 0, 0))
    for one in found:
        table.add_row(escape(one.endpoint), one.valid_from.isoformat(timespec="seconds"), price_in_words(one.price))
    results().print(table)


def _run(context: click.Context, do: Callable[[CatalogueOperator, Operator], Awaitable[T]]) -> T:
    with installation(settings_of(context)) as settings:
        return anyio.run(_with_verbs, settings, do)


async def _with_verbs(settings: Settings, do: Callable[[CatalogueOperator, Operator], Awaitable[T]]) -> T:
    async with _verbs(settings) as (catalogue, tenants):
        return await do(catalogue, tenants)


@asynccontextmanager
async def _verbs(settings: Settings) -> AsyncGenerator[tuple[CatalogueOperator, Operator]]:
    async with operator(settings) as tenants:
        yield CatalogueOperator(database=tenants.database), tenants


def _permit(
    context: click.Context,
    verb: Callable[..., Awaitable[None]],
    model: str,
    tiers: Sequence[str],
    tenants: Sequence[str],
) -> None:
    if not tiers and not tenants:
        raise InvalidInput("say whom: --tier TIER or --tenant TENANT")

    async def do(verbs: CatalogueOperator, operators: Operator) -> None:
        found = [(await operators.find_tenant(one)).tenant_id for one in tenants]
        await verb(verbs, model, tiers=tiers, tenant_ids=found)

    _run(context, do)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise InvalidInput("--from takes a time such as 2027-01-01T00:00Z") from exc
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _for(model: KnownModel) -> str:
    return " ".join((*model.tiers, *model.tenants)) or "nobody"


def _version_as_dict(version: PriceVersion) -> dict[str, str]:
    return {**price_as_dict(version.price), "valid_from": version.valid_from.isoformat()}


def _model_as_dict(model: KnownModel) -> dict[str, object]:
    return {
        "model": model.name,
        "tier": model.tier.name.lower(),
        "context_tokens": model.context_tokens,
        "tiers": list(model.tiers),
        "tenants": list(model.tenants),
        "offers": [
            {
                "endpoint": one.endpoint,
                "enabled": one.enabled,
                "served_name": one.served_name,
                "priority": one.priority,
                "price": None if one.price is None else _version_as_dict(one.price),
            }
            for one in model.offers
        ],
    }
