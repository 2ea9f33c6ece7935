"""The default embedding model, on the CPU of this process: all-MiniLM-L6-v2 in int8, shipped with the package.

Above it: whoever asks for an `Embedder`. Below it: onnxruntime and tokenizers, in a worker thread. Where the files come
from and what they cost: `rag/llm/models/all-MiniLM-L6-v2-int8/README.md`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from rag.errors import EmbedderUnavailable, Misconfigured
from rag.llm.ports import Vectors

__all__ = ["DIMENSION", "MAX_PIECES", "MODEL", "MODEL_DIRECTORY", "DeferredMiniLm", "MiniLmEmbedder", "load_minilm"]

MODEL = "all-MiniLM-L6-v2"
DIMENSION = 384
MAX_PIECES = 256
"""Word pieces, the two markers among them, that the model was trained on; the rest of a text is cut off."""
MODEL_DIRECTORY = Path(__file__).parent / "models" / "all-MiniLM-L6-v2-int8"

_SHA256 = {
    "model.onnx": "fb23d15c2d8da4039f44e828fefcae84b0c1c0f9cb3f0dca4d75027bc6e87128",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_MAX_CHARS = 16 * MAX_PIECES
"""Nothing beyond it is tokenised: ten times what 256 pieces usually hold."""
_TURN_TEXTS = 32
_TURN_CHARS = 4000
"""A caller's turn with the model ends after so many texts or characters (some tenths of a second): a query that comes
while a batch is embedded waits for one turn."""


class MiniLmEmbedder:
    """Satisfies `rag.llm.ports.Embedder`. Holds the session; made by `load_minilm`."""

    def __init__(self, *, session: onnxruntime.InferenceSession, tokenizer: Tokenizer) -> None:
        """Use `load_minilm`, which checks the files first."""
        self._session: onnxruntime.InferenceSession | None = session
        self._tokenizer = tokenizer
        # One run at a time, first come first served: more would share the same cores.
        self._limiter = anyio.CapacityLimiter(1)

    @property
    def model(self) -> str:
        """The model's name."""
        return MODEL

    @property
    def dimension(self) -> int:
        """Length of each vector."""
        return DIMENSION

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """See `rag.llm.ports.Embedder.embed`. A text has the same vector in any company; callers take turns."""
        out = np.empty((len(texts), DIMENSION), dtype=np.float32)
        first = 0
        for turn in _turns(texts):
            session = self._session
            if session is None:
                raise EmbedderUnavailable("the embedder is closed")
            last = first + len(turn)
            out[first:last] = await anyio.to_thread.run_sync(
                _embed, session, self._tokenizer, turn, limiter=self._limiter
            )
            first = last
        return out

    async def aclose(self) -> None:
        """Release the model's memory; a run under way still ends."""
        self._session = None


class DeferredMiniLm:
    """Satisfies `rag.llm.ports.Embedder`: the model is loaded when it is first asked, and not before.

    For processes whose default is another model: most of them never need this one.
    """

    def __init__(self, *, threads: int = 1) -> None:
        """`threads` as `load_minilm` has it."""
        self._threads = threads
        self._loaded: MiniLmEmbedder | None = None
        self._turn = anyio.Lock()

    @property
    def model(self) -> str:
        """The model's name."""
        return MODEL

    @property
    def dimension(self) -> int:
        """Length of each vector."""
        return DIMENSION

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """See `rag.llm.ports.Embedder.embed`."""
        async with self._turn:
            if self._loaded is None:
                try:
                    self._loaded = await anyio.to_thread.run_sync(partial(load_minilm, threads=self._threads))
                except Misconfigured as exc:
                    raise EmbedderUnavailable(exc.message) from exc
        return await self._loaded.embed(texts)

    async def aclose(self) -> None:
        """Release the model's memory."""
        if self._loaded is not None:
            await self._loaded.aclose()


def load_minilm(*, threads: int = 1, directory: Path = MODEL_DIRECTORY) -> MiniLmEmbedder:
    """Load the model; takes some tenths of a second of blocking work.

    Args:
        threads: CPU threads of one run.
        directory: Where `model.onnx` and `tokenizer.json` are.

    Raises:
        Misconfigured: A file is missing or is not the one that this code was written for, or `threads` is below 1.
    """
    if threads < 1:
        raise Misconfigured("the embedder needs at least 1 thread")
    tokenizer = Tokenizer.from_str(_verified(directory / "tokenizer.json").decode("utf-8"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_PIECES)
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads keep a core busy between runs, and it is the core that serves the requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        _verified(directory / "model.onnx"), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return MiniLmEmbedder(session=session, tokenizer=tokenizer)


def _verified(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise Misconfigured(f"the embedding model's {path.name} is missing; install the package again") from exc
    if hashlib.sha256(data).hexdigest() != _SHA256[path.name]:
        raise Misconfigured(f"the embedding model's {path.name} is not the one shipped; install the package again")
    return data


def _turns(texts: Sequence[str]) -> Iterator[list[str]]:
    turn: list[str] = []
    chars = 0
    for text in texts:
        if turn and (len(turn) == _TURN_TEXTS or chars + len(text) > _TURN_CHARS):
            yield turn
            turn, chars = [], 0
        turn.append(text)
        chars += len(text)
    if turn:
        yield turn


def _embed(session: onnxruntime.InferenceSession, tokenizer: Tokenizer, texts: list[str]) -> Vectors:
    # NOTE: one text in each run. The int8 graph scales its activations over the whole batch, so that in a larger one a
    # vector depends on its neighbours, perhaps another tenant's (cosine 0.986 to itself alone); and on a CPU a larger
    # batch is no faster.
    rows = [_run(session, tokenizer, text) for text in texts]
    return np.concatenate(rows)


def _run(session: onnxruntime.InferenceSession, tokenizer: Tokenizer, text: str) -> Any:
    # A lone surrogate, possible in a query out of JSON, is no text to the tokenizer.
    clean = text[:_MAX_CHARS].encode("utf-8", "replace").decode("utf-8")
    ids = np.array([tokenizer.encode(clean).ids], dtype=np.int64)
    return session.run(["embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
