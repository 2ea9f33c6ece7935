"""How many tokens a prompt has, before it is sent: by the server's own tokenizer, or a number that is never too small.

Above: `gateway`, which holds money for so many. Below: an httpx client, passed in.

vLLM counts at /tokenize, with the model's chat template. Whoever does not, and a vLLM that does not answer at once, is
counted in bytes: each token of the text stands for at least one byte of it, in every tokenizer that these models use.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import unicodedata
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, cast

import anyio
import httpx

from rag.clock import Clock
from rag.llm.catalogue import Offer
from rag.llm.chunks import MAX_TOKENS_TOLD
from rag.llm.request import ChatRequest
from rag.llm.wire import headers

__all__ = ["TokenCounter", "fits", "likely_tokens", "upper_bound"]

TIMEOUT_S = 2.0
PAUSE_S = 10.0
"""An endpoint that does not count is not asked again for so long: its callers would all wait for nothing."""
KEPT = 4096
"""Prompts whose count is remembered; their text is not."""
KEPT_S = 300.0
"""A server that was started anew may have another template."""
ANSWER_BYTES_PER_TOKEN = 16
"""The answer lists every token by number."""
TEMPLATE_TOKENS = 256
"""What a chat template writes besides the messages: a prelude, a date, an end."""
MESSAGE_TOKENS = 16
"""What it writes around each message."""
BYTES_PER_TOKEN = 3
"""Of `likely_tokens`: English has about 4, German 3, and other scripts have fewer characters of more bytes."""
_OF_THE_PROMPT = frozenset({400, 413, 422})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    tokens: int
    until: float


class TokenCounter:
    """Counts prompts, and remembers counts for a while. Holds no connection of its own."""

    def __init__(
        self, client: httpx.AsyncClient, *, timeout_s: float = TIMEOUT_S, clock: Clock = time.monotonic
    ) -> None:
        """`timeout_s` bounds one question to a server."""
        self._client = client
        self._timeout_s = timeout_s
        self._clock = clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._silent_until: dict[str, float] = {}

    async def prompt_tokens(self, offer: Offer, request: ChatRequest, *, cache_salt: str | None = None) -> int:
        """Return how many tokens the prompt has at most. Never raises: without a server's count it is `upper_bound`.

        `cache_salt` keeps tenants apart: how fast a count comes tells nobody what another has asked.
        """
        bound = upper_bound(request)
        if offer.endpoint.kind != "vllm":
            return bound
        key = _key(offer, request, cache_salt)
        now = self._clock()
        known = self._known.get(key)
        if known is not None and known.until > now:
            self._known.move_to_end(key)
            return known.tokens
        if self._silent_until.get(offer.endpoint.name, -math.inf) > now:
            return bound
        tokens = await self._ask(offer, request, bound)
        if tokens is None:
            self._silent_until[offer.endpoint.name] = self._clock() + PAUSE_S
            return bound
        self._known[key] = _Known(tokens=tokens, until=self._clock() + KEPT_S)
        self._known.move_to_end(key)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return tokens

    async def _ask(self, offer: Offer, request: ChatRequest, bound: int) -> int | None:
        body: dict[str, Any] = {
            "model": offer.served_name,
            "messages": request.messages(),
            "add_generation_prompt": True,
        }
        root = offer.endpoint.base_url.rstrip("/").removesuffix("/v1")
        limit = (1 << 16) + ANSWER_BYTES_PER_TOKEN * bound
        whole = bytearray()
        with anyio.move_on_after(self._timeout_s):
            try:
                async with self._client.stream(
                    "POST", f"{root}/tokenize", json=body, headers=headers(offer), timeout=None, follow_redirects=False
                ) as response:
                    if response.status_code in _OF_THE_PROMPT:
                        return bound  # one prompt that cannot be counted says nothing about the next
                    if response.status_code != 200:
                        return None
                    async for part in response.aiter_raw():
                        whole += part
                        if len(whole) > limit:
                            return None
                return _count(bytes(whole))
            except UnicodeEncodeError:
                return bound
            except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError):
                return None
        return None


def upper_bound(request: ChatRequest) -> int:
    """Return a number of tokens that no tokenizer goes beyond: the bytes, and what a template may write."""
    texts = [message["content"] for message in request.messages()]
    if request.schema is not None:
        texts.append(json.dumps(request.schema))  # some servers tell the model the schema as a part of the prompt
    return TEMPLATE_TOKENS + sum(MESSAGE_TOKENS + _bytes(text) for text in texts)


def likely_tokens(request: ChatRequest) -> int:
    """Return about how many tokens the prompt has: a guess, for choosing a model. Money is held for `upper_bound`."""
    size = sum(len(message["content"].encode("utf-8", "replace")) for message in request.messages())
    return TEMPLATE_TOKENS // 4 + math.ceil(size / BYTES_PER_TOKEN)


def fits(offer: Offer, prompt: int, max_tokens: int) -> bool:
    """Tell whether a prompt of so many tokens and its completion fit into the model's context."""
    return prompt + max_tokens <= offer.model.context_tokens


def _bytes(text: str) -> int:
    """Return the bytes of `text` in UTF-8, after whichever normal form a tokenizer may bring it into first."""
    if text.isascii():
        return len(text)
    forms = (text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFKC", text))
    return max(len(form.encode("utf-8", "surrogatepass")) for form in forms)


def _key(offer: Offer, request: ChatRequest, cache_salt: str | None) -> bytes:
    parts = (offer.endpoint.base_url, offer.served_name, cache_salt or "", request.system, request.user)
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.digest()


def _count(answer: bytes) -> int | None:
    try:
        said: object = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    count = cast("dict[str, object]", said).get("count") if isinstance(said, dict) else None
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_TOKENS_TOLD:
        return None
    return count
