"""`bulkhead ask` as a process of its own, in a pipe and at a terminal, against the real servers and a real worker."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.abc
import pytest

from rag.identity.scopes import Audience
from tests.support.agents import worker
from tests.support.workflow_scene import WorkflowScene, workflow_scene
from tests.support.world import Cluster, world

pytestmark = pytest.mark.anyio
BOUND_S = 60.0
SAMPLES = Path(__file__).parents[2] / "samples" / "securities"
SOURCES = (
    "15-78u-1-civil-penalties-for-insider-trading.md",
    "15-78t-1-liability-to-contemporaneous-traders-for-insider-trading.md",
)


@pytest.fixture(scope="module", name="scene")
async def scene_fixture(cluster: Cluster) -> AsyncGenerator[WorkflowScene]:
    """Two sections of real law, for all tests of the file. No worker yet: a test starts the one it needs."""
    async with world(cluster) as own, workflow_scene(own) as scene:
        for source in SOURCES:
            content = (SAMPLES / source).read_text(encoding="utf-8")
            title = content.partition("\n")[0].removeprefix("# ")
            await scene.tool("put_document", {"source": source, "title": title, "text": content})
        yield scene


def environment(scene: WorkflowScene) -> dict[str, str]:
    """Return what the command needs to reach the scene as its caller."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}  # noqa: TID251
    return {
        **inherited,
        "BULKHEAD_TOKEN": scene.world.token(scene.acme, audience=Audience.A2A),
        "BULKHEAD_A2A_URL": scene.rpc.base,
        "COLUMNS": "120",
        "TERM": "xterm",
    }


async def run(scene: WorkflowScene, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `bulkhead ask` in a pipe, to its end."""
    with anyio.fail_after(BOUND_S):
        done = await anyio.run_process(
            [sys.executable, "-m", "rag.cli", "ask", *arguments], env=environment(scene), check=False, input=b""
        )
    return subprocess.CompletedProcess([], done.returncode, done.stdout.decode(), done.stderr.decode())


@dataclass(slots=True, kw_only=True)
class Terminal:
    """A running `bulkhead ask` at a terminal."""

    process: anyio.abc.Process
    master: int
    shown: str = ""

    async def until(self, words: str) -> None:
        """Wait until it has shown some words."""
        with anyio.fail_after(BOUND_S):
            while words not in self.shown:
                await anyio.wait_readable(self.master)
                self.shown += os.read(self.master, 65_536).decode(errors="replace")

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.master, text.encode())

    async def end(self) -> int:
        """Wait for its end and return its exit code."""
        with anyio.fail_after(BOUND_S):
            while True:
                try:
                    await anyio.wait_readable(self.master)
                    self.shown += os.read(self.master, 65_536).decode(errors="replace")
                except OSError:  # the other side is closed
                    return await self.process.wait()


@asynccontextmanager
async def terminal(scene: WorkflowScene, *arguments: str) -> AsyncGenerator[Terminal]:
    """Run `bulkhead ask` at a terminal of its own."""
    master, slave = pty.openpty()
    try:
        process = await anyio.open_process(
            [
                sys.executable,
                "-c",
                "import os; os.setsid(); import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
                "from rag.cli import main; import sys; sys.argv[1:] = ['ask', *sys.argv[1:]]; main()",
                *arguments,
            ],
            env=environment(scene),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        try:
            yield Terminal(process=process, master=master)
        finally:
            if process.returncode is None:
                process.kill()
            with anyio.CancelScope(shield=True):
                await process.wait()
    finally:
        os.close(master)


def task_id_of(shown: str) -> str:
    found = re.search(r"task ([0-9a-f-]{36})", shown)
    assert found is not None, shown
    return found[1]


async def test_a_report_is_watched_and_written_to_a_file(scene: WorkflowScene, tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    async with worker(scene.settings):
        done = await run(
            scene, "--workflow", "research", "--profile", "legal", "--output", str(path), "insider trading"
        )
    assert done.returncode == 0, done.stderr
    report = path.read_text(encoding="utf-8")
    assert report.startswith("# insider trading\n")
    assert "## Penalties" in report
    assert "## References\n\n1. § 78" in report
    assert "· Penalties: found " in done.stderr
    assert "· verified " in done.stderr
    assert "citations checked against the stored text" in done.stdout
    assert "precision 1.00, coverage 1.00" in done.stdout
    assert " calls" in done.stdout


async def test_a_report_in_a_pipe_is_whole_and_as_json_it_is_data(scene: WorkflowScene) -> None:
    arguments = ("--workflow", "research", "--option", "sections=2", "insider trading")
    async with worker(scene.settings):
        plain = await run(scene, *arguments)
        data = json.loads((await run(scene, *arguments, "--json")).stdout)
    assert plain.stdout.startswith("# insider trading\n")
    assert any(len(line) > 120 for line in plain.stdout.splitlines()), "Markdown is not broken into lines"
    assert len(data["sections"]) <= 2
    assert data["state"] == "completed"
    assert data["text"].strip() in plain.stdout
    assert {citation["verified"] for citation in data["citations"]} == {True}


async def test_who_does_not_sit_at_a_terminal_is_told_how_to_answer_and_comes_back(scene: WorkflowScene) -> None:
    async with worker(scene.settings):
        asked = await run(scene, "--workflow", "research", "--profile", "legal", "--option", "confirm=true", "insiders")
        task_id = task_id_of(asked.stderr)
        assert asked.returncode == 3
        assert "  6. Penalties" in asked.stderr
        assert f"bulkhead ask --task {task_id} --answer" in asked.stderr
        wrong = await run(scene, "--task", task_id, "--answer", "Poetry")
        assert wrong.returncode == 1
        assert "choose from: all of them, Scope" in wrong.stderr
        waiting = json.loads((await run(scene, "--task", task_id, "--json")).stdout)
        assert (waiting["state"], waiting["needs"]["form"]["type"]) == ("input-required", "ask_user_request")
        answered = await run(scene, "--task", task_id, "--answer", "penalties")
        again = await run(scene, "--task", task_id)
    assert answered.returncode == again.returncode == 0
    assert "## Penalties" in answered.stdout
    assert "## Scope" not in answered.stdout
    assert again.stdout == answered.stdout, "who comes back to a task that has ended reads its report"


async def test_a_task_is_canceled_by_its_id_and_says_so(scene: WorkflowScene) -> None:
    asked = await _detached(scene)
    task_id = task_id_of(asked)
    assert (await run(scene, "--task", task_id, "--cancel")).returncode == 0
    after = await run(scene, "--task", task_id)
    assert after.returncode == 4
    assert "was canceled" in after.stderr
    again = await run(scene, "--task", task_id, "--cancel")
    assert again.returncode == 1
    assert "task_not_cancelable" in again.stderr


async def _detached(scene: WorkflowScene) -> str:
    """Ask, press Ctrl-C while nobody works on it, and return what was shown."""
    async with terminal(scene, "--workflow", "research", "insider trading") as shown:
        await shown.until("task ")
        await shown.until("waiting for the server")
        shown.type("\x03")
        assert await shown.end() == 130
    assert f"bulkhead ask --task {task_id_of(shown.shown)}" in shown.shown
    return shown.shown


async def test_ctrl_c_detaches_and_the_task_goes_on(scene: WorkflowScene) -> None:
    task_id = task_id_of(await _detached(scene))
    async with worker(scene.settings):
        back = await run(scene, "--task", task_id)
    assert back.returncode == 0
    assert back.stdout.startswith("# insider trading\n")


async def test_at_a_terminal_the_task_is_seen_at_work_and_its_question_is_answered_at_the_prompt(
    scene: WorkflowScene,
) -> None:
    options = ("--workflow", "research", "--profile", "legal", "--option", "confirm=true")
    async with worker(scene.settings), terminal(scene, *options, "insider trading") as shown:
        await shown.until("answer (number, several with commas)")
        shown.type("9\r")
        await shown.until("choose from the list")
        shown.type("4, 6\r")
        assert await shown.end() == 0
    assert " s · " in shown.shown, "the last line lives"
    assert "# insider trading" in shown.shown
    assert "## Duties" in shown.shown
    assert "## Penalties" in shown.shown
    assert "## Exceptions" not in shown.shown


async def test_one_key_is_one_task(scene: WorkflowScene) -> None:
    async with worker(scene.settings):
        runs = [json.loads((await run(scene, "--key", "monday", "--json", "insider trading")).stdout) for _ in range(2)]
    assert runs[0]["task_id"] == runs[1]["task_id"]
    assert runs[0]["text"] == runs[1]["text"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "ask a QUESTION, or name a task"),
        (["what?", "--task", "x"], 2, "ask a QUESTION, or name a task"),
        (["what?", "--cancel"], 2, "go with --task"),
        (["what?", "--option", "profile"], 2, "NAME=VALUE"),
        (["what?", "--workflow", "poetry"], 1, "no such skill"),
        (["what?", "--option", "verbose=1"], 1, "verbose"),
        (["--task", "00000000-0000-4000-8000-000000000000"], 1, "not_found"),
    ],
)
async def test_mistakes_end_in_a_clear_line(
    scene: WorkflowScene, arguments: Sequence[str], code: int, message: str
) -> None:
    done = await run(scene, *arguments)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


async def test_sigterm_detaches_too(scene: WorkflowScene) -> None:
    command = [sys.executable, "-m", "rag.cli", "ask", "insider trading"]
    async with await anyio.open_process(command, env=environment(scene)) as process:
        assert process.stderr is not None
        told = b""
        with anyio.fail_after(BOUND_S):
            while b"task " not in told:
                told += await process.stderr.receive()
            process.send_signal(signal.SIGTERM)
            async for more in process.stderr:
                told += more
            assert await process.wait() == 130
    assert b"detached" in told
