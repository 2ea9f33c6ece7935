"""One request to a chat model, and what comes back: the values between the answerers, the gateway and the wire.

Above: everything else in `rag.llm`. Below: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["ChatRequest", "Limits", "Reply", "TokenUsage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a model server may take, in seconds, and how much it may write."""

    connect_s: float = 5.0
    first_token_s: float = 30.0
    """From the request to the first piece of text: the prompt is read in it, and the server's queue waited in."""
    between_tokens_s: float = 15.0
    total_s: float = 180.0
    max_chars: int = 1 << 20
    """Of the text; a server that does not stop is broken off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """What a model is asked. The same prompt has the same beginning: rules first, then data, what varies most last."""

    system: str
    user: str
    max_tokens: int
    """Of the completion. Always sent: the upper bound of what a call may cost rests on it."""
    schema: Mapping[str, Any] | None = None
    """JSON Schema that the server is asked to hold the text to."""
    temperature: float = 0.0

    def messages(self) -> list[dict[str, str]]:
        """Return the messages of the OpenAI API."""
        return [{"role": "system", "content": self.system}, {"role": "user", "content": self.user}]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUsage:
    """Tokens as the model server counted them; never an estimate of ours."""

    prompt: int
    cached: int = 0
    """Of the prompt's tokens, those that the server had in its prefix cache."""
    completion: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one physical call brought."""

    text: str
    finish: Literal["stop", "length", "other"]
    usage: TokenUsage | None
    """None: the server did not say. Whoever pays then pays the upper bound."""
    first_token_s: float
    """From sending the request to the first piece of text."""
    total_s: float
    raw: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What else the server said of the call that is worth a span's attribute: {"model": ..., "id": ...}. No text."""
