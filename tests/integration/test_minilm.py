"""The shipped model: its files, its vectors, its manners, and how much of a chunk it reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
import numpy as np
import pytest
from tokenizers import Tokenizer

from rag.corpus.chunk import chunk
from rag.errors import EmbedderUnavailable, Misconfigured
from rag.llm.minilm import DIMENSION, MAX_PIECES, MODEL_DIRECTORY, MiniLmEmbedder, load_minilm

SAMPLES = Path(__file__).parents[2] / "samples"


@pytest.fixture(scope="module")
def minilm() -> MiniLmEmbedder:
    return load_minilm()


@pytest.mark.anyio
async def test_a_vector_has_length_one_and_is_the_same_to_the_bit_whatever_its_neighbours(
    minilm: MiniLmEmbedder,
) -> None:
    texts = ["short", "a much longer text about custody of assets " * 30, "", "😀 שלום", "short", "\ud800 broken"]
    vectors = await minilm.embed(texts)
    assert vectors.shape == (len(texts), DIMENSION) == (6, minilm.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    for row, text in enumerate(texts):
        assert (await minilm.embed([text])).tobytes() == vectors[row].tobytes()


@pytest.mark.anyio
async def test_meaning_decides_nearness(minilm: MiniLmEmbedder) -> None:
    query, near, far = await minilm.embed(
        ["Who may end the contract?", "Either party may terminate the agreement.", "The patent claims a new engine."]
    )
    assert float(query @ near) > float(query @ far) + 0.2


@pytest.mark.anyio
async def test_text_beyond_the_window_is_cut_off(minilm: MiniLmEmbedder) -> None:
    long = "word " * (MAX_PIECES - 2)
    one, other = await minilm.embed([long, long + "entirely different ending " * 5000])
    assert float(one @ other) > 0.9999


@pytest.mark.anyio
async def test_no_texts_make_no_vectors(minilm: MiniLmEmbedder) -> None:
    assert (await minilm.embed([])).shape == (0, DIMENSION)


@pytest.mark.anyio
async def test_a_query_does_not_wait_for_a_whole_batch(minilm: MiniLmEmbedder) -> None:
    done: list[str] = []

    async def embed(name: str, texts: list[str]) -> None:
        await minilm.embed(texts)
        done.append(name)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(embed, "batch", ["a long passage about custody of assets " * 40] * 24)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(embed, "query", ["custody"])
    assert done == ["query", "batch"]


@pytest.mark.anyio
async def test_a_closed_embedder_says_so() -> None:
    embedder = load_minilm()
    await embedder.aclose()
    with pytest.raises(EmbedderUnavailable, match="closed"):
        await embedder.embed(["text"])


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_changed_or_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "model"
    shutil.copytree(MODEL_DIRECTORY, directory)
    with (directory / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(Misconfigured, match=f"{name} is not the one shipped"):
        load_minilm(directory=directory)
    (directory / name).unlink()
    with pytest.raises(Misconfigured, match=f"{name} is missing"):
        load_minilm(directory=directory)


def test_no_threads_are_refused() -> None:
    with pytest.raises(Misconfigured, match="at least 1 thread"):
        load_minilm(threads=0)


def test_the_model_reads_nearly_all_of_nearly_every_chunk() -> None:
    """The measurement behind MAX_CHUNK_CHARS."""
    tokenizer = Tokenizer.from_file(str(MODEL_DIRECTORY / "tokenizer.json"))
    tokenizer.no_truncation()
    texts = [file.read_text(encoding="utf-8") for file in sorted(SAMPLES.glob("*/*.md"))]
    lengths = [len(tokenizer.encode(c.text).ids) for text in texts for c in chunk(text, markdown=True)]
    over = [length for length in lengths if length > MAX_PIECES]
    lost = sum(length - MAX_PIECES for length in over) / sum(lengths)
    print(
        f"{len(lengths)} chunks, {len(over) / len(lengths):.2%} over {MAX_PIECES} pieces, {lost:.3%} of pieces unread"
    )
    assert len(over) / len(lengths) < 0.015
    assert lost < 0.002
