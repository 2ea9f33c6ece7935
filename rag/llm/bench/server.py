"""What a model server says of itself: its version, its models, the counters that vLLM keeps at /metrics.

Above: `figures`, `measure`, `rag.cli.bench`. Below: httpx. All of it is optional: a server that does not tell is
measured all the same, and what it does not say is None.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import httpx

from rag.llm.catalogue import Endpoint

__all__ = ["Counters", "ServedModel", "ServerFacts", "parse_counters", "read_counters", "server_facts"]

ASK_S = 5.0
MAX_BYTES = 8 << 20
MAX_MODELS = 100
_COUNTERS = {
    "vllm:prefix_cache_queries_total": "prefix_queries",
    "vllm:prefix_cache_hits_total": "prefix_hits",
    "vllm:request_success_total": "requests",
    "vllm:num_preemptions_total": "preemptions",
}
"""vLLM's names (docs.vllm.ai, "Production Metrics"), as its exporter writes counters."""
_SAMPLE = re.compile(r"(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+\d+)?\s*")
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')
_CACHE_CONFIG = "vllm:cache_config_info"
_SHOWN_CONFIG = frozenset(
    {"block_size", "cache_dtype", "enable_prefix_caching", "gpu_memory_utilization", "kv_cache_dtype", "num_gpu_blocks"}
)
"""Of the cache's configuration, what a reader of throughput asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """vLLM's counters at a moment, over all models and engines of the server. None: it does not have this one."""

    prefix_queries: float | None = None
    """Tokens that were looked up in the prefix cache."""
    prefix_hits: float | None = None
    """Those of them that were there."""
    requests: float | None = None
    """That came to their end, anybody's."""
    preemptions: float | None = None
    cache_config: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model as the server's list has it."""

    id: str
    root: str | None = None
    """Where it was loaded from: vLLM's word for the checkpoint, and with it the quantisation."""
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What the server said of itself before it was measured."""

    version: str | None
    models: tuple[ServedModel, ...] | None
    counters: bool
    """Whether it has vLLM's counters."""
    cache_config: dict[str, str]


async def server_facts(client: httpx.AsyncClient, endpoint: Endpoint) -> ServerFacts:
    """Return what the server tells of itself. Nothing of it fails: what is not to be had is None."""
    version, listed = await _json(client, endpoint, _root(endpoint) + "/version"), await _models(client, endpoint)
    counters = await read_counters(client, endpoint)
    said = version.get("version")
    return ServerFacts(
        version=said if isinstance(said, str) else None,
        models=listed,
        counters=counters is not None,
        cache_config={} if counters is None else counters.cache_config,
    )


async def read_counters(client: httpx.AsyncClient, endpoint: Endpoint) -> Counters | None:
    """Return the counters as they stand now; None where the server keeps none."""
    text = await _get(client, endpoint, _root(endpoint) + "/metrics")
    return None if text is None else parse_counters(text)


def parse_counters(text: str) -> Counters | None:
    """Return the counters in `text`, which is Prometheus's text format; None where none of vLLM's is in it."""
    sums: dict[str, float] = {}
    config: dict[str, str] = {}
    for line in text.splitlines():
        sample = _SAMPLE.fullmatch(line)
        if sample is None:
            continue
        if sample["name"] == _CACHE_CONFIG:
            labels = cast("list[tuple[str, str]]", _LABEL.findall(sample["labels"] or ""))
            config = {name: value[:100] for name, value in labels if name in _SHOWN_CONFIG}
        elif (name := _COUNTERS.get(sample["name"])) is not None:
            sums[name] = sums.get(name, 0.0) + _number(sample["value"])
    return Counters(**sums, cache_config=config) if sums else None


def _number(text: str) -> float:
    """Return 0 for what is no number to add up."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


def _root(endpoint: Endpoint) -> str:
    """Return the server's address: what is not of the OpenAI API lies beside /v1, not in it."""
    return endpoint.base_url.rstrip("/").removesuffix("/v1")


async def _models(client: httpx.AsyncClient, endpoint: Endpoint) -> tuple[ServedModel, ...] | None:
    said = await _json(client, endpoint, endpoint.base_url.rstrip("/") + "/models")
    listed = said.get("data")
    if not isinstance(listed, list):
        return None
    found = (_model(entry) for entry in cast("list[Any]", listed)[:MAX_MODELS])
    return tuple(model for model in found if model is not None)


def _model(entry: Any) -> ServedModel | None:
    if not isinstance(entry, dict):
        return None
    told = cast("dict[str, Any]", entry)
    name, root, length = told.get("id"), told.get("root"), told.get("max_model_len")
    if not isinstance(name, str):
        return None
    return ServedModel(
        id=name,
        root=root if isinstance(root, str) else None,
        max_model_len=length if isinstance(length, int) else None,
    )


async def _json(client: httpx.AsyncClient, endpoint: Endpoint, url: str) -> dict[str, Any]:
    text = await _get(client, endpoint, url)
    try:
        said: Any = json.loads(text or "{}")
    except ValueError:
        return {}
    return cast("dict[str, Any]", said) if isinstance(said, dict) else {}


async def _get(client: httpx.AsyncClient, endpoint: Endpoint, url: str) -> str | None:
    """Return the text at `url`; None for any other status than 200, and for a text without an end."""
    headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
    whole = bytearray()
    try:
        with anyio.fail_after(ASK_S):
            async with client.stream("GET", url, headers=headers) as response:
                if response.status_code != 200:
                    return None
                async for part in response.aiter_bytes():
                    whole += part
                    if len(whole) > MAX_BYTES:
                        return None
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
        return None
    return whole.decode("utf-8", "replace")
