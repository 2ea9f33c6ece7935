"""`bulkhead eval` as a user meets it: a collection in, honest numbers out, nothing left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from rag.db.embedded import remove_embedded_postgres
from rag.installation import installation
from rag.settings import Settings

pytestmark = [pytest.mark.quality]

COMMAND_BOUND_S = 100.0
ANIMALS = ("heron", "badger", "otter", "weasel", "salmon", "falcon", "lizard", "hornet", "walrus", "gopher")
HABITS = ("builds its nest", "hunts at night", "sleeps all winter")
LEGS = {"lexical", "dense", "fused"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """An installation whose database is up, and a folder to run in."""

    root: Path
    env: dict[str, str]

    def eval(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "rag.cli", "eval", *map(str, arguments)],
            env=self.env,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=COMMAND_BOUND_S,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def json(self, *arguments: object) -> Any:
        return json.loads(self.eval(*arguments, "--json").stdout)

    def results(self) -> list[Path]:
        return sorted((self.root / "eval-results").glob("*.json"))


@pytest.fixture(scope="module", name="place")
def place_fixture(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place]:
    """The embedded server stays up between the commands, so that each is quick."""
    root = tmp_path_factory.mktemp("eval")
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}  # noqa: TID251
    env = {**inherited, "BULKHEAD_DATA_DIR": str(root / "data"), "BULKHEAD_CERTS_DIR": str(root / "certs")}
    try:
        with installation(Settings.from_env(env)):
            yield Place(root=root, env=env)
    finally:
        remove_embedded_postgres(root / "data")


def collection(folder: Path, *, copies: int = 1) -> Path:
    """Write a collection: each question has one answer, in its own words for the first animals only."""
    (folder / "qrels").mkdir(parents=True)
    corpus, queries, qrels = [], [], ["query-id\tcorpus-id\tscore"]
    for number, animal in enumerate(ANIMALS):
        for place, habit in enumerate(HABITS):
            name = f"{animal}-{place}"
            for copy in range(copies):
                text = f"The {animal} {habit} in valley {number}{place}{copy}. Nobody knows why." * (1 if copy else 2)
                corpus.append({"_id": name if copy == 0 else f"{name}-{copy}", "title": animal.title(), "text": text})
            queries.append({"_id": f"q-{name}", "text": f"which {animal} {habit}?"})
            qrels.append(f"q-{name}\t{name}\t1")
    corpus.append({"_id": "blank", "title": "", "text": " "})
    corpus.append({"_id": "heron-0", "title": "Twice", "text": "Another text under an id that was there already."})
    for file, rows in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
        (folder / file).write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("\n".join(qrels) + "\n", encoding="utf-8")
    return folder


def test_a_collection_goes_in_and_a_report_comes_out_and_nothing_stays(place: Place) -> None:
    folder = collection(place.root / "animals")
    before = place.results()
    report = place.json(folder, "--tune", "--threads", 2)
    assert (report["collection"], report["questions"]) == ("animals", 30)
    assert set(report["legs"]) == LEGS
    for measures in report["legs"].values():
        assert set(measures) == {"ndcg@10", "recall@100", "mrr@10"}
        assert 0.5 < measures["ndcg@10"] <= 1.0
        assert measures["recall@100"] == 1.0
    for times in (report["latency_ms"], *report["latency_ms_by_leg"].values()):
        assert 0 < times["p50"] <= times["p95"] <= times["p99"]
    assert report["documents"]["stored"] == 30
    assert report["documents"]["refused"] == 2
    assert any("2 documents were refused: blank: " in note for note in report["notes"])
    tuning = report["tuning"]
    assert tuning["settings_tried"] == 21
    assert len(tuning["vector_weight_by_fold"]) == tuning["folds"] == 5
    assert tuning["default_ndcg@10"] == report["legs"]["fused"]["ndcg@10"]
    low, high = tuning["interval_95"]
    assert low <= tuning["difference"] <= high
    (written,) = set(place.results()) - set(before)
    assert json.loads(written.read_text(encoding="utf-8")) == report
    assert re.fullmatch(r"animals-\d{8}T\d{6}Z\.json", written.name)
    assert report["version"]
    assert report["date"].endswith("+00:00")
    assert is_empty(place, folder, "eval-animals-1")


def test_a_kept_tenant_is_asked_again_without_loading_and_answers_the_same(place: Place) -> None:
    folder = collection(place.root / "kept")
    first = place.json(folder, "--keep", "--results", place.root / "one.json")
    assert json.loads((place.root / "one.json").read_text(encoding="utf-8")) == first
    again = place.json(folder, "--tenant", "eval-kept-1")
    assert again["legs"] == first["legs"]
    assert again["documents"]["stored"] == 30
    some = place.json(folder, "--tenant", "eval-kept-1", "--limit-queries", 7)
    assert some["questions"] == 7
    assert not is_empty(place, folder, "eval-kept-1"), "a named tenant is left as it is"
    shown = place.eval(folder).stdout
    assert all(leg in shown for leg in LEGS)
    assert "ndcg@10" in shown
    assert is_empty(place, folder, "eval-kept-1"), "a scratch tenant that was kept is used again, and emptied"


def test_what_an_earlier_run_left_does_not_count(place: Place) -> None:
    folder = collection(place.root / "changed", copies=2)
    assert place.json(folder, "--keep")["documents"]["stored"] == 60
    lines = (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "corpus.jsonl").write_text("\n".join(lines[::2]) + "\n", encoding="utf-8")
    assert place.json(folder)["documents"]["stored"] == 30


def test_ctrl_c_removes_the_documents_before_it_ends(place: Place) -> None:
    folder = collection(place.root / "interrupted", copies=12)
    terminal, end = pty.openpty()  # where progress is shown, one can tell how far it is
    process = subprocess.Popen(
        [sys.executable, "-m", "rag.cli", "eval", str(folder)],
        env={**place.env, "TERM": "xterm", "COLUMNS": "120"},
        cwd=place.root,
        stdout=subprocess.DEVNULL,
        stderr=end,
    )
    os.close(end)
    try:
        seen = read_until(terminal, "embedding")
        assert "storing documents" in seen
        process.send_signal(signal.SIGINT)
        seen = read_until(terminal, "Aborted")
        assert "removing documents" in seen
        assert process.wait(timeout=COMMAND_BOUND_S) == 1
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert is_empty(place, folder, "eval-interrupted-1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "dev"], "there is no qrels/dev.tsv"),
        (["--tenant", "nobody"], "there is no tenant 'nobody'"),
        (["--apply"], "--apply needs --tune and --tenant"),
        (["--limit-queries", "19", "--tune"], "tuning needs at least 20 questions"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(place: Place, arguments: list[str], message: str) -> None:
    folder = place.root / "animals"
    done = place.eval(folder if folder.is_dir() else collection(folder), *arguments, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_questions_without_documents_ask_for_a_tenant(place: Place) -> None:
    folder = collection(place.root / "bodiless")
    (folder / "corpus.jsonl").unlink()
    assert "name the tenant that holds the documents" in place.eval(folder, check=False).stderr


def is_empty(place: Place, folder: Path, tenant: str) -> bool:
    """Tell whether the tenant holds none of the collection's documents."""
    done = place.eval(folder, "--tenant", tenant, "--limit-queries", 30, check=False)
    assert done.returncode == 0 or "the tenant holds none of the relevant documents" in done.stderr, done.stderr
    return done.returncode == 1


def read_until(terminal: int, words: str) -> str:
    """Return what the terminal shows until `words` come up."""
    seen = ""
    until = time.monotonic() + COMMAND_BOUND_S
    while words not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, until - time.monotonic()))
        assert ready, f"{words!r} did not come up: {seen[-500:]}"
        try:
            seen += os.read(terminal, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            pytest.fail(f"ended without {words!r}: {seen[-500:]}")
    return seen
