"""What an operator does to the catalogue and to the routing rules. Runs as the maintenance login, never in a server.

Above: the CLI. Below: `rag.db`, the values of `rag.llm`. The worker follows within `store.FRESH_S`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from rag.db.pool import Database, Row
from rag.errors import InvalidInput, NotFound
from rag.llm.catalogue import Price, Tier
from rag.llm.routing import Rule, rules_of
from sql import Query, load_queries

__all__ = ["CatalogueOperator", "KnownEndpoint", "KnownModel", "KnownOffer", "PriceVersion"]

_QUERIES = load_queries("catalogue")
_REASON = "the maintenance login keeps the catalogue of the installation"
_NO_MODEL = "there is no such model; `bulkhead models list` shows all"
_NO_ENDPOINT = "there is no such endpoint; `bulkhead models endpoints` shows all"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownEndpoint:
    """A server of models."""

    name: str
    base_url: str
    kind: str
    enabled: bool
    """Whether it is asked at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceVersion:
    """A price, where and since when."""

    endpoint: str
    valid_from: datetime
    price: Price


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownOffer:
    """A model at an endpoint."""

    endpoint: str
    served_name: str
    priority: int
    enabled: bool
    """Of the endpoint."""
    price: PriceVersion | None
    """The one that is valid now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model, who may use it and where it is served."""

    name: str
    tier: Tier
    context_tokens: int
    tiers: tuple[str, ...]
    tenants: tuple[str, ...]
    """Names of the tenants that may use it whatever their tier."""
    offers: tuple[KnownOffer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueOperator:
    """The maintenance login's verbs."""

    database: Database

    async def endpoints(self) -> list[KnownEndpoint]:
        """Return every endpoint, by name."""
        return [
            KnownEndpoint(name=row["name"], base_url=row["base_url"], kind=row["kind"], enabled=row["enabled"])
            for row in await self._fetch(_QUERIES["list_endpoints"])
        ]

    async def add_endpoint(self, name: str, *, url: str, kind: str) -> None:
        """Add a server of models.

        Args:
            name: Ours.
            url: What stands before /chat/completions.
            kind: `vllm`, `openai` or `ollama`.

        Raises:
            Conflict: There is an endpoint of that name.
            InvalidInput: The name, the URL or the kind is not of the allowed form.
        """
        await self._fetch(_QUERIES["add_endpoint"], name=name, base_url=url.rstrip("/"), kind=kind)

    async def set_endpoint(
        self, name: str, *, url: str | None = None, kind: str | None = None, enabled: bool | None = None
    ) -> None:
        """Change an endpoint; None leaves it as it is.

        Raises:
            NotFound: There is no such endpoint.
            InvalidInput: The URL or the kind is not of the allowed form.
        """
        url = None if url is None else url.rstrip("/")
        await self._found(_NO_ENDPOINT, _QUERIES["set_endpoint"], name=name, base_url=url, kind=kind, enabled=enabled)

    async def remove_endpoint(self, name: str) -> None:
        """Forget an endpoint and its offers.

        Raises:
            NotFound: There is no such endpoint.
            Conflict: It had a price; disable it instead.
        """
        await self._found(_NO_ENDPOINT, _QUERIES["remove_endpoint"], name=name)

    async def models(self) -> list[KnownModel]:
        """Return every model with its offers, the smallest tier first."""
        async with self.database.unsafe_unscoped(reason=_REASON) as session:
            models = await session.fetch(_QUERIES["list_models"])
            offers = await session.fetch(_QUERIES["list_offers_of_models"])
        return [_model(row, [_offer(one) for one in offers if one["model"] == row["name"]]) for row in models]

    async def add_model(self, name: str, *, tier: Tier, context_tokens: int, tiers: Sequence[str] = ()) -> None:
        """Add a model; `tiers` are those of the tenants that may use it.

        Raises:
            Conflict: There is a model of that name.
            InvalidInput: The name or the context is not of the allowed form.
        """
        await self._fetch(
            _QUERIES["add_model"], name=name, tier=int(tier), context_tokens=context_tokens, tiers=sorted(set(tiers))
        )

    async def set_model(self, name: str, *, tier: Tier | None = None, context_tokens: int | None = None) -> None:
        """Change what a model can do; None leaves it as it is.

        Raises:
            NotFound: There is no such model.
            InvalidInput: The context is not of the allowed form.
        """
        number = None if tier is None else int(tier)
        await self._found(_NO_MODEL, _QUERIES["set_model"], name=name, tier=number, context_tokens=context_tokens)

    async def remove_model(self, name: str) -> None:
        """Forget a model, its offers and who may use it.

        Raises:
            NotFound: There is no such model.
            Conflict: It had a price; withdraw its offers instead.
        """
        await self._found(_NO_MODEL, _QUERIES["remove_model"], name=name)

    async def allow(self, name: str, *, tiers: Sequence[str] = (), tenant_ids: Sequence[UUID] = ()) -> None:
        """Let tenants use a model: those of the tiers, and those named.

        Raises:
            NotFound: There is no such model or tenant.
        """
        await self._permit(name, "allow", tiers, tenant_ids)

    async def deny(self, name: str, *, tiers: Sequence[str] = (), tenant_ids: Sequence[UUID] = ()) -> None:
        """Take back what `allow` gave. A tenant that is named no more may still be of a tier that may use the model.

        Raises:
            NotFound: There is no such model.
        """
        await self._permit(name, "deny", tiers, tenant_ids)

    async def offer(self, model: str, endpoint: str, *, served_name: str | None = None, priority: int = 100) -> None:
        """Say that the model is served at the endpoint, or change how.

        Raises:
            NotFound: There is no such model or endpoint.
            InvalidInput: The name or the priority is not of the allowed form.
        """
        await self._fetch(
            _QUERIES["offer"], model=model, endpoint=endpoint, served_name=served_name or model, priority=priority
        )

    async def withdraw(self, model: str, endpoint: str) -> None:
        """Say that the model is not served at the endpoint any more.

        Raises:
            NotFound: It was not.
        """
        await self._found(
            "the endpoint does not serve that model", _QUERIES["withdraw"], model=model, endpoint=endpoint
        )

    async def add_price(
        self,
        model: str,
        endpoint: str,
        *,
        input: Decimal,  # noqa: A002  # everybody calls it so
        cached_input: Decimal,
        output: Decimal,
        second: Decimal = Decimal(0),
        valid_from: datetime | None = None,
    ) -> UUID:
        """Add a version of a price, and return its id. Former versions stay: charges name them.

        Args:
            model: Whose.
            endpoint: Where.
            input: For a million tokens, in the installation's currency; as the next two.
            cached_input: At most `input`.
            output: Of what the model writes.
            second: For a second of a call's time.
            valid_from: A moment to come; None: now.

        Raises:
            NotFound: The endpoint does not serve that model.
            InvalidInput: A number is not of the allowed form, or the moment has passed.
            Conflict: Another price is valid from that moment.
        """
        row = await self._first(
            _QUERIES["add_price"],
            model=model,
            endpoint=endpoint,
            input=input,
            cached_input=cached_input,
            output=output,
            second=second,
            valid_from=valid_from,
        )
        if row is not None:
            return UUID(str(row["price_id"]))
        known = next((one for one in await self.models() if one.name == model), None)
        if known is None or endpoint not in {one.endpoint for one in known.offers}:
            raise NotFound("the endpoint does not serve that model; `bulkhead models offer` says that it does")
        raise InvalidInput("a price cannot begin in the past: what was charged then is charged")

    async def prices(self, model: str) -> list[PriceVersion]:
        """Return every version of the model's prices, by endpoint, the newest first."""
        return [_version(row) for row in await self._fetch(_QUERIES["list_prices"], model=model)]

    async def set_rules(self, rules: Sequence[Rule]) -> None:
        """Replace all routing rules, in one transaction.

        Raises:
            InvalidInput: Two have one name, or there are too many.
        """
        told = rules_of([rule.as_dict() for rule in rules])
        async with self.database.unsafe_unscoped(reason=_REASON) as session:
            await session.fetch(_QUERIES["lock_rules"])
            await session.fetch(_QUERIES["clear_rules"])
            await session.execute_many(
                _QUERIES["add_rule"],
                [
                    {
                        "ordinal": ordinal,
                        "name": rule.name,
                        "tier": int(rule.tier),
                        "condition": rule.when.as_dict(),
                    }
                    for ordinal, rule in enumerate(told, start=1)
                ],
            )

    async def _permit(self, name: str, verb: str, tiers: Sequence[str], tenant_ids: Sequence[UUID]) -> None:
        async with self.database.unsafe_unscoped(reason=_REASON) as session:
            if await session.fetch_one(_QUERIES[f"{verb}_tiers"], name=name, tiers=list(tiers)) is None:
                raise NotFound(_NO_MODEL)
            await session.fetch(_QUERIES[f"{verb}_tenants"], name=name, tenant_ids=list(tenant_ids))

    async def _fetch(self, query: Query, **parameters: object) -> list[Row]:
        async with self.database.unsafe_unscoped(reason=_REASON) as session:
            return await session.fetch(query, **parameters)

    async def _first(self, query: Query, **parameters: object) -> Row | None:
        rows = await self._fetch(query, **parameters)
        return rows[0] if rows else None

    async def _found(self, missing: str, query: Query, **parameters: object) -> None:
        if await self._first(query, **parameters) is None:
            raise NotFound(missing)


def _model(row: Row, offers: Sequence[KnownOffer]) -> KnownModel:
    return KnownModel(
        name=row["name"],
        tier=Tier(row["tier"]),
        context_tokens=row["context_tokens"],
        tiers=tuple(row["tiers"]),
        tenants=tuple(row["tenants"]),
        offers=tuple(offers),
    )


def _offer(row: Row) -> KnownOffer:
    return KnownOffer(
        endpoint=row["endpoint"],
        served_name=row["served_name"],
        priority=row["priority"],
        enabled=row["enabled"],
        price=None if row["price_id"] is None else _version(row),
    )


def _version(row: Row) -> PriceVersion:
    return PriceVersion(
        endpoint=row["endpoint"],
        valid_from=row["valid_from"],
        price=Price(
            price_id=row["price_id"],
            input=row["input"],
            cached_input=row["cached_input"],
            output=row["output"],
            second=row["second"],
        ),
    )
