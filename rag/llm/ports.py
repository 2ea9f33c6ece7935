"""The two ports to models: what embeds and what answers. Everything that needs a model asks for one of these.

Above it: retrieval, the ingest, the workflows. Behind it: `minilm`, `openai_embeddings`; `extractive`, `answerer`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rag.llm.chat import Answer, Completion, Passage

__all__ = ["Chat", "Embedder", "Emit", "Vectors"]

Vectors = NDArray[np.float32]
"""Shape (number of texts, dimension); each row has length 1, so that a dot product is a cosine."""

Emit = Callable[[str], Awaitable[None]]
"""Takes the next piece of an answer's text."""


class Embedder(Protocol):
    """Turns texts into vectors."""

    @property
    def model(self) -> str:
        """Name of the model; vectors of different models do not compare."""
        ...

    @property
    def dimension(self) -> int:
        """Length of each vector."""
        ...

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one row for each text, in their order; text beyond the model's window is cut off.

        Raises:
            EmbedderUnavailable: The model cannot be reached or answers nonsense.
        """
        ...

    async def aclose(self) -> None:
        """Let go of what the embedder holds open."""
        ...


class Chat(Protocol):
    """Answers a question from passages, and completes a prompt where there is a model."""

    @property
    def model(self) -> str | None:
        """Name of the model, or None when there is none."""
        ...

    async def answer(self, question: str, passages: Sequence[Passage], *, emit: Emit, key: str) -> Answer:
        """Answer `question` from `passages` only, citing them.

        Args:
            question: The user's words.
            passages: Best first; a citation counts them from 0, the text's `[n]` from 1.
            emit: Awaited with each piece of the text as it comes. Joined, the pieces are `Answer.text`. (A callback
                and no iterator: no cancel scope is held open across a yield, and nothing is left to be closed.)
            key: Names the call in the ledger; another one for each time that it is made.

        Raises:
            BudgetExceeded, PriceUnknown: No model may be asked at the caller's expense.
            Unavailable: The model cannot be reached or broke off; pieces may have been emitted before.
        """
        ...

    async def complete(
        self,
        system: str,
        user: str,
        *,
        max_tokens: int,
        key: str,
        step: str,
        schema: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Have the model write to a prompt. Text of documents belongs into `user`, as data, and what comes back is as
        untrusted as they are.

        Args:
            system: The rules.
            user: What they are to be applied to.
            max_tokens: Of the completion; beyond it the text is cut, and `Completion.cut` says so.
            key: As for `answer`.
            step: What is asked of the model, as the routing rules call it: `plan`, `action`.
            schema: JSON Schema that the server is asked to hold the text to. Servers differ in how well they do:
                whoever reads the text parses and validates it.

        Raises:
            BudgetExceeded, PriceUnknown: As for `answer`.
            Unavailable: There is no model (`model` is None), or it cannot be reached or broke off.
        """
        ...
