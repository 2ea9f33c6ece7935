"""The one model and the one server that the tests of this folder share: starting it takes a minute."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from tests.support.otlp_receiver import OtlpReceiver, otlp_receiver
from tests.vllm.model import make_model
from tests.vllm.server import ROOT, Place, Server


@pytest.fixture(scope="session", name="model")
def model_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, its tokenizer trained on the samples."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_model(folder, (path.read_text(encoding="utf-8") for path in sorted((ROOT / "samples").rglob("*.md"))))
    return folder


@pytest.fixture(scope="session", name="collector")
async def collector_fixture() -> AsyncIterator[OtlpReceiver]:
    """Takes the spans of the server."""
    async with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="session", name="vllm")
async def vllm_fixture(
    model: Path, collector: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    """A running vLLM. A test that ends it starts it again."""
    home, traces = tmp_path_factory.mktemp("vllm"), f"{collector.endpoint}/v1/traces"
    with TemporaryDirectory(prefix="vllm-") as scratch:
        server = Server(Place.new(model, home, scratch=Path(scratch), traces=traces))
        try:
            await server.start()
            yield server
        finally:
            await server.end()


@pytest.fixture(name="http")
async def http_fixture() -> AsyncIterator[httpx.AsyncClient]:
    """The client that a gateway would hold."""
    async with httpx.AsyncClient() as client:
        yield client
