"""The one model of the settings as a catalogue, and the file that the keys of a kept catalogue come from."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest

from rag.catalogue.configured import configured, of_settings
from rag.catalogue.keys import read_keys
from rag.errors import Misconfigured
from rag.llm.catalogue import Catalogue, Tier
from rag.settings import Settings


def test_without_a_model_there_is_no_catalogue() -> None:
    assert configured(Settings()) == Catalogue()


def test_the_configured_model_may_be_used_by_every_tenant_for_everything() -> None:
    settings = Settings(
        llm_url="http://gpu:8000/v1/", llm_model="qwen", llm_api_key="hush", llm_kind="vllm", llm_prices="1,0.1,2"
    )
    (offer,) = configured(settings).offers
    assert (offer.model.name, offer.served_name, offer.model.tier) == ("qwen", "qwen", Tier.LARGE)
    assert (offer.endpoint.base_url, offer.endpoint.kind, offer.endpoint.api_key) == (
        "http://gpu:8000/v1",
        "vllm",
        "hush",
    )
    assert "hush" not in repr(offer)
    for tier in ("free", "pro", "enterprise"):
        assert configured(settings).allowed(uuid4(), tier) == (offer,)
    assert offer.price is not None
    assert (offer.price.input, offer.price.cached_input, offer.price.output) == (1, Decimal("0.1"), 2)


def test_a_configured_price_has_one_id_for_as_long_as_it_is_the_same() -> None:
    def price_id(*numbers: str, model: str = "m") -> object:
        told, cached, output = (Decimal(number) for number in numbers)
        (offer,) = of_settings("http://gpu/v1", model, None, prices=(told, cached, output)).offers
        return offer.price and offer.price.price_id

    assert price_id("1", "0.1", "2") == price_id("1.0", "0.10", "2.000")
    assert price_id("10", "0", "0") == price_id("1E+1", "0.0", "0")
    assert len({price_id("1", "0.1", "2"), price_id("1", "0.1", "3"), price_id("1", "0.1", "2", model="n")}) == 3
    assert of_settings("http://gpu/v1", "m", None).offers[0].price is None


def test_keys_are_read_by_the_url_that_they_belong_to(tmp_path: Path) -> None:
    (tmp_path / "a.key").write_text("sk-a\n", encoding="utf-8")
    file = tmp_path / "keys.json"
    file.write_text(json.dumps([{"url": "https://a.example.com/v1/", "api_key_file": "a.key"}]), encoding="utf-8")
    assert read_keys(file) == {"https://a.example.com/v1": "sk-a"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "readable file of JSON"),
        ("{}", "a JSON list"),
        ("[1]", "entry 1: must be an object"),
        ('[{"url": "https://a/v1"}]', "entry 1: must be an object with url and api_key_file"),
        ('[{"url": "https://a/v1", "api_key_file": "good", "api_key": "sk"}]', "entry 1: must be an object"),
        ('[{"url": "a/v1", "api_key_file": "good"}]', "entry 1: url must be"),
        ('[{"url": "https://a/v1", "api_key_file": ""}]', "entry 1: api_key_file must be"),
        ('[{"url": "https://a/v1", "api_key_file": "none"}]', "entry 1: the file that api_key_file names"),
        ('[{"url": "https://a/v1", "api_key_file": "empty"}]', "entry 1: a key is one line"),
        ('[{"url": "https://a/v1", "api_key_file": "lines"}]', "entry 1: a key is one line"),
        (
            '[{"url": "https://a/v1", "api_key_file": "good"}, {"url": "https://a/v1/", "api_key_file": "good"}]',
            "entry 2: its url has a key already",
        ),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_is_refused_without_telling_a_key(
    tmp_path: Path, content: str, message: str
) -> None:
    for name, key in (("good", "sk-secret"), ("empty", "\n"), ("lines", "sk-secret\nsk-secret")):
        (tmp_path / name).write_text(key, encoding="utf-8")
    file = tmp_path / "keys.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(Misconfigured, match=message) as refused:
        read_keys(file)
    assert "sk-secret" not in refused.value.message


def test_a_file_of_keys_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="BULKHEAD_LLM_KEYS_FILE"):
        read_keys(tmp_path / "none.json")
