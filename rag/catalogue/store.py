"""The catalogue and the routing rules as the worker reads them, and a cache that follows what an operator changes.

Above: the composition root, the verb that explains a route. Below: `rag.db`, the values of `rag.llm`. All tenants are
read together, unscoped, as the worker's or the maintenance login; the app role has no grant (migration 0025).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from rag.catalogue.keys import read_keys
from rag.clock import Clock
from rag.db.pool import Database, Row, Session
from rag.errors import InvalidInput, Misconfigured, Unavailable
from rag.llm.catalogue import Catalogue, Endpoint, Model, Offer, Price, Tier
from rag.llm.routing import Rule, rule_of
from sql import load_queries

__all__ = ["CatalogueCache", "Known", "read_catalogue", "read_known", "read_rules"]

_log = logging.getLogger(__name__)
_QUERIES = load_queries("catalogue")
_REASON = "models and rules belong to the installation"
FRESH_S = 30.0
RETRY_S = 5.0
"""While the database does not answer, one call in so long asks it again; the others go by what is known."""
LOOKUP_TIMEOUT_S = 5.0
FIRST_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What routes a call."""

    catalogue: Catalogue
    rules: tuple[Rule, ...]


async def read_catalogue(
    database: Database, *, keys: Mapping[str, str] | None = None, otherwise: Catalogue | None = None
) -> Catalogue:
    """Return what stands in the database now; see `read_known`."""
    return (await read_known(database, keys=keys, otherwise=otherwise)).catalogue


async def read_rules(database: Database) -> tuple[Rule, ...]:
    """Return the routing rules that stand in the database now.

    Raises:
        Misconfigured: A rule is not of a form that this version knows.
        Unavailable: The database does not answer.
    """
    async with database.unsafe_unscoped(reason=_REASON) as session:
        return await _rules(session)


async def read_known(
    database: Database, *, keys: Mapping[str, str] | None = None, otherwise: Catalogue | None = None
) -> Known:
    """Return the catalogue and the rules that stand in the database now.

    Args:
        database: Of the worker's or the maintenance login.
        keys: By base URL (`rag.catalogue.keys`).
        otherwise: The catalogue while the database holds no model at all. Not while what it holds is disabled: an
            operator who has turned everything off is obeyed.

    Raises:
        Misconfigured: A rule is not of a form that this version knows.
        Unavailable: The database does not answer.
    """
    async with database.unsafe_unscoped(reason=_REASON) as session:
        if otherwise is not None and not await session.fetch_value(_QUERIES["is_kept"]):
            return Known(catalogue=otherwise, rules=await _rules(session))
        rows = await session.fetch(_QUERIES["list_offers"])
        return Known(catalogue=_catalogue(rows, keys or {}), rules=await _rules(session))


class CatalogueCache:
    """The catalogue and the rules, at most FRESH_S old; a price that begins in the meantime is FRESH_S late as well."""

    def __init__(
        self,
        database: Database,
        *,
        keys_file: Path | None = None,
        otherwise: Catalogue | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """Start knowing nothing.

        Args:
            database: As for `read_known`.
            keys_file: BULKHEAD_LLM_KEYS_FILE, read anew each time: a key that is replaced there needs no restart.
            otherwise: As for `read_known`.
            clock: Monotonic seconds.
        """
        self._database = database
        self._keys_file = keys_file
        self._otherwise = otherwise
        self._clock = clock
        self._keys: Mapping[str, str] | None = None
        self._known: Known | None = None
        self._fresh_until = 0.0
        self._first = anyio.Lock()

    async def __call__(self) -> Known:
        """Return what is known, asking the database where it is too old.

        Raises:
            Misconfigured: Nothing is known yet, and the file of keys or a rule cannot be used.
            Unavailable: Nothing is known yet, and the database does not answer.
        """
        if self._known is None:
            return await self._ask_first()
        known = self._known
        if self._clock() < self._fresh_until:
            return known
        # this call asks again; the others go on with what is known
        self._fresh_until = self._clock() + RETRY_S
        try:
            return await self._ask()
        except (Unavailable, Misconfigured) as exc:
            _log.warning("models are chosen by the catalogue as it was known before: %s", exc.message)
            return known

    async def _ask_first(self) -> Known:
        try:
            with anyio.fail_after(FIRST_TIMEOUT_S):
                async with self._first:
                    return self._known or await self._ask()
        except TimeoutError as exc:
            raise _unknown() from exc

    async def _ask(self) -> Known:
        keys = await self._read_keys()
        try:
            with anyio.fail_after(LOOKUP_TIMEOUT_S):
                known = await read_known(self._database, keys=keys, otherwise=self._otherwise)
        except TimeoutError as exc:
            raise _unknown() from exc
        self._known, self._fresh_until = known, self._clock() + FRESH_S
        return known

    async def _read_keys(self) -> Mapping[str, str]:
        if self._keys_file is None:
            return {}
        try:
            self._keys = await anyio.to_thread.run_sync(read_keys, self._keys_file)
        except Misconfigured as exc:
            if self._keys is None:
                raise
            _log.warning("the keys of model servers stay as they were: %s", exc.message)
        return self._keys


async def _rules(session: Session) -> tuple[Rule, ...]:
    return tuple(_rule(row) for row in await session.fetch(_QUERIES["list_rules"]))


def _rule(row: Row) -> Rule:
    try:
        return rule_of({"name": row["name"], "tier": Tier(row["tier"]).name.lower(), "when": row["condition"]})
    except InvalidInput as exc:  # of a later version, say: left out, it would let calls go to a model that is too small
        raise Misconfigured(f"the routing rules are not usable here: {exc.message}") from exc


def _catalogue(rows: list[Row], keys: Mapping[str, str]) -> Catalogue:
    models: dict[str, Model] = {}
    endpoints: dict[str, Endpoint] = {}
    for row in rows:
        models.setdefault(row["model"], _model(row))
        endpoints.setdefault(row["endpoint"], _endpoint(row, keys))
    return Catalogue(
        offers=tuple(
            Offer(
                model=models[row["model"]],
                endpoint=endpoints[row["endpoint"]],
                served_name=row["served_name"],
                priority=row["priority"],
                price=_price(row),
            )
            for row in rows
        )
    )


def _model(row: Row) -> Model:
    return Model(
        name=row["model"],
        tier=Tier(row["tier"]),
        context_tokens=row["context_tokens"],
        tiers=frozenset(row["tiers"]),
        tenants=frozenset(row["tenants"]),
    )


def _endpoint(row: Row, keys: Mapping[str, str]) -> Endpoint:
    url = str(row["base_url"])
    return Endpoint(name=row["endpoint"], base_url=url, kind=row["kind"], api_key=keys.get(url))


def _price(row: Row) -> Price | None:
    if row["price_id"] is None:
        return None
    return Price(
        price_id=row["price_id"],
        input=row["input"],
        cached_input=row["cached_input"],
        output=row["output"],
        second=row["second"],
    )


def _unknown() -> Unavailable:
    return Unavailable("which models there are is not known now; try again")
