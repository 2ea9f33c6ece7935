"""vLLM, as anybody starts it: a process of its own, in an environment of its own, that is spoken to over HTTP.

Above: the tests of this folder. Below: the environment that `make test-vllm` installs, and the model of `model.py`.
The module that `vllm serve` hands over to is started, not the command: that asks for a distribution named `vllm`, and
the build for the CPU has another name.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import anyio
import anyio.abc
import httpx
import pytest

from rag.llm.catalogue import Endpoint, Model, Offer, Price, Tier
from tests.vllm.model import CONTEXT_TOKENS

__all__ = ["BLOCK_TOKENS", "ROOT", "Place", "Server", "environment", "interpreter"]

ROOT = Path(__file__).parent.parent.parent
READY_BOUND_S = 480.0
"""A minute with two idle cores, of which importing takes most."""
END_BOUND_S = 30.0
POLL_S = 0.05
READY_POLL_S = 0.5
BLOCK_TOKENS = 32
"""Prompts are cached in whole blocks."""
DEPLOYED = ROOT / "k8s" / "overlays" / "gpu" / "vllm.conf.yaml"
INSTEAD = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", str(CONTEXT_TOKENS)),
    *("--block-size", str(BLOCK_TOKENS), "--kv-cache-memory-bytes", str(256 << 20)),
)
"""What a processor and so small a model need in place of the options that are deployed; all others are those."""
API_KEY = "the key of a test's own server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a server is, was or will be: it can be started there again."""

    model: Path
    home: Path
    """Its caches and its log."""
    scratch: Path
    """Its sockets. The path of a socket is short."""
    port: int
    traces: str
    """Where it exports spans to, an OTLP endpoint for HTTP."""

    @staticmethod
    def new(model: Path, home: Path, *, scratch: Path, traces: str) -> Place:
        """Choose a free port."""
        return Place(model=model, home=home, scratch=scratch, port=_free_port(), traces=traces)

    @property
    def root(self) -> str:
        """Its URL, without /v1."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What its processes print."""
        return self.home / "vllm.log"

    def offer(self, *, served_name: str = "tiny", api_key: str = API_KEY) -> Offer:
        """Return the model as the catalogue would hold it."""
        return Offer(
            model=Model(
                name="tiny",
                tier=Tier.SMALL,
                context_tokens=CONTEXT_TOKENS,
                tiers=frozenset({"free"}),
                tenants=frozenset[UUID](),
            ),
            endpoint=Endpoint(name="vllm", base_url=f"{self.root}/v1", kind="vllm", api_key=api_key),
            served_name=served_name,
            priority=1,
            price=Price(price_id=UUID(int=1), input=Decimal(2), cached_input=Decimal(1), output=Decimal(8)),
        )


class Server:
    """A vLLM that is started, ended and started again: several processes, which get their signals together."""

    def __init__(self, place: Place) -> None:
        """Start nothing yet."""
        self.place = place
        self._process: anyio.abc.Process | None = None

    async def start(self) -> None:
        """Return once it answers; fail the test with what it printed if it does not."""
        with self.place.log.open("ab") as log:
            self._process = await anyio.open_process(
                _command(self.place),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self.place.home, self.place.scratch),
                cwd=self.place.home,
                start_new_session=True,
            )
        await _ready(self.place, self._process)

    async def kill(self) -> None:
        """End it as a power cut would, and return when its port is closed."""
        assert self._process is not None
        left = _shared_memory(self._process.pid)
        self.signal(signal.SIGKILL)
        await self._gone(left)

    async def end(self) -> None:
        """Ask it to end, and make sure of it."""
        if self._process is None:
            return
        with anyio.CancelScope(shield=True):
            left = _shared_memory(self._process.pid)
            with anyio.move_on_after(END_BOUND_S):
                if self._process.returncode is None:
                    self._process.send_signal(signal.SIGTERM)
                await self._process.wait()
            with suppress(ProcessLookupError):  # nobody is left
                self.signal(signal.SIGKILL)
            await self._gone(left)

    async def _gone(self, left: set[Path]) -> None:
        assert self._process is not None
        await self._process.wait()
        await self._process.aclose()
        self._process = None
        for path in left:
            path.unlink(missing_ok=True)

    def signal(self, number: signal.Signals) -> None:
        """Send all of its processes a signal."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    async def metrics(self) -> Mapping[str, float]:
        """Return the latest of each metric; where it has labels besides the model's name, as `name{label="value"}`."""
        async with httpx.AsyncClient(timeout=END_BOUND_S) as http:
            answer = await http.get(f"{self.place.root}/metrics")
        assert answer.status_code == 200
        samples = [line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#")]
        return {_name(name): float(value) for name, value in samples}

    async def until(self, name: str, value: float) -> Mapping[str, float]:
        """Return the metrics once the metric has reached `value`: they are counted a moment after the answer is out."""
        while True:
            metrics = await self.metrics()
            if metrics[name] >= value:
                return metrics
            await anyio.sleep(POLL_S)

    async def until_idle(self) -> Mapping[str, float]:
        """Return the metrics once it works on nothing."""
        while True:
            metrics = await self.metrics()
            if not metrics["vllm:num_requests_running"] and not metrics["vllm:num_requests_waiting"]:
                return metrics
            await anyio.sleep(POLL_S)


def interpreter() -> Path:
    """Return the Python that has vLLM; without it the test fails."""
    python = ROOT / ".cache" / "vllm" / "bin" / "python"
    if not python.exists():
        pytest.fail("vLLM is not installed; run: make test-vllm", pytrace=False)
    return python


def _free_port() -> int:
    """Return a port that was free a moment ago, below those that outgoing connections are given."""
    ports = list(range(20_000, 32_000))
    random.shuffle(ports)
    for port in ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _command(place: Place) -> list[str]:
    command = [str(interpreter()), "-m", "vllm.entrypoints.openai.api_server", "--config", str(DEPLOYED)]
    command += ["--model", str(place.model), "--served-model-name", "tiny", "--otlp-traces-endpoint", place.traces]
    return [*command, "--host", "127.0.0.1", "--port", str(place.port), *INSTEAD]


def environment(home: Path, scratch: Path) -> dict[str, str]:
    """Return what a process of vLLM's is given: nothing of the caller's, and a home of its own."""
    return {
        "PATH": os.environ["PATH"],  # noqa: TID251  # what a child needs to start at all
        "HOME": str(home),
        "TMPDIR": str(scratch),
        "VLLM_API_KEY": API_KEY,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        # It would tie itself to cores that others use, and wants at least two.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "OTEL_SERVICE_NAME": "vllm",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "60",
    }


def _shared_memory(group: int) -> set[Path]:
    """Return the shared memory that the group's processes have open: one that is killed leaves it behind."""
    found = set[Path]()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # it ended meanwhile
            if os.getpgid(int(maps.parent.name)) == group:
                lines = maps.read_text(encoding="utf-8").splitlines()
                found |= {Path(line.split()[5]) for line in lines if " /dev/shm/" in line}
    return found


async def _ready(place: Place, process: anyio.abc.Process) -> None:
    async with httpx.AsyncClient(timeout=5.0) as http:
        with anyio.move_on_after(READY_BOUND_S):
            while process.returncode is None:
                try:
                    if (await http.get(f"{place.root}/health")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await anyio.sleep(READY_POLL_S)
    said = await anyio.Path(place.log).read_text(encoding="utf-8", errors="replace")
    pytest.fail(f"vLLM did not start:\n{said[-8000:]}", pytrace=False)


def _name(sample: str) -> str:
    """Return a sample's name without the labels that are the same for all: there is one engine, and one model."""
    name, _, labels = sample.partition("{")
    same = ("engine=", "model_name=")
    kept = [label for label in labels.removesuffix("}").split(",") if label and not label.startswith(same)]
    return f"{name}{{{','.join(kept)}}}" if kept else name
