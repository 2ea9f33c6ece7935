"""Which model server `bulkhead bench llm` measures: one of the catalogue, one named by its URL, or the configured one.

Above: `bench`. Below: `rag.catalogue`.
"""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import BinaryIO
from urllib.parse import urlsplit
from uuid import uuid4

import anyio
import click

from rag.catalogue.configured import configured, of_settings
from rag.catalogue.keys import read_keys
from rag.catalogue.store import read_catalogue
from rag.cli.common import operator
from rag.errors import InvalidInput, NotFound
from rag.installation import installation
from rag.llm.catalogue import Catalogue, Offer, Price
from rag.settings import Settings

__all__ = ["AUTO", "KINDS", "Target", "offer_of"]

AUTO = "auto"
KINDS = (AUTO, "openai", "vllm", "ollama")
MAX_KEY_BYTES = 8192


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the command line says of the server."""

    url: str | None
    model: str | None
    offer: str | None
    kind: str
    key_file: BinaryIO | None
    price: tuple[Decimal, ...] | None
    """Input, cached input, output, second; missing ones at the end are 0."""


def offer_of(settings: Settings, target: Target) -> Offer:
    """Return the offer to measure. Blocks; reads the catalogue's database where an offer is named.

    Raises:
        click.UsageError: The options name no server, or two.
        InvalidInput: The URL or the key cannot be used, or several endpoints have the model.
        NotFound: The catalogue has no such offer.
        Misconfigured: The installation cannot be used.
        Unavailable: The database is not reachable.
    """
    found = _named(settings, target)
    if target.price is not None:
        found = dataclasses.replace(found, price=_price(target.price))
    if target.kind != AUTO:
        found = dataclasses.replace(found, endpoint=dataclasses.replace(found.endpoint, kind=target.kind))
    return found


def _named(settings: Settings, target: Target) -> Offer:
    if target.offer is not None:
        if target.url or target.model or target.key_file:
            raise click.UsageError("--offer says which server and model; leave out --url, --model and --api-key-file")
        return _of_catalogue(settings, target.offer)
    if target.url is not None:
        if target.model is None:
            raise click.UsageError("--url needs --model, the model's name at that server")
        return of_settings(_checked(target.url), target.model, _key(target.key_file)).offers[0]
    if target.model or target.key_file:
        raise click.UsageError("--model and --api-key-file need --url")
    for offer in configured(settings).offers:
        return offer
    raise click.UsageError("name a server with --url and --model, or with --offer; BULKHEAD_LLM_URL is not set")


def _of_catalogue(settings: Settings, reference: str) -> Offer:
    keys = {} if settings.llm_keys_file is None else read_keys(settings.llm_keys_file)

    async def read(ready: Settings) -> Catalogue:
        async with operator(ready) as verbs:
            return await read_catalogue(verbs.database, keys=keys, otherwise=configured(ready))

    with installation(settings) as ready:
        offers = anyio.run(read, ready).offers
    found = [offer for offer in offers if reference in {offer.model.name, _reference(offer)}]
    if not found:
        known = ", ".join(_reference(offer) for offer in offers) or "none"
        raise NotFound(f"the catalogue has no offer {reference}; it has: {known}")
    if len(found) > 1:
        raise InvalidInput(f"several endpoints have the model; say which: {', '.join(map(_reference, found))}")
    return found[0]


def _reference(offer: Offer) -> str:
    return f"{offer.model.name}@{offer.endpoint.name}"


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    else:
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InvalidInput("--url must hold no credentials, query or fragment; a key goes into --api-key-file")
    if not usable:
        raise InvalidInput("--url must begin with http:// or https:// and end in /v1 or the like")
    return url


def _key(file: BinaryIO | None) -> str | None:
    if file is None:
        return None
    try:
        key = file.read(MAX_KEY_BYTES).decode("ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if not key or not key.isprintable():
        raise InvalidInput("--api-key-file must hold one line of printable ASCII")
    return key


def _price(told: tuple[Decimal, ...]) -> Price:
    if told[1] > told[0]:
        raise InvalidInput("--price: cached input is no dearer than input")
    amounts = dict(zip(("input", "cached_input", "output", "second"), (*told, Decimal(0)), strict=False))
    return Price(price_id=uuid4(), **amounts)
