"""Many readers of tasks, who lose their connections and come back: `python -m tests.bench.a2a_readers < job.json`.

The job: {"host", "port", "token", "tasks": [id, ...], "readers" (dealt out to the tasks), "cut" (how likely a reader
leaves after an event), "seed", "seconds" (a bound)}. Each reader wants the whole log of its task, from its first event
to its last: it comes back with `Last-Event-ID` however it was cut off. The result, on standard output:

    {"events", "gaps", "duplicates", "unfinished", "cuts" (by the readers), "breaks", "lags" ([when, ms]), "cpu_s"}

A lag is from the event's time, which the database gives it just before it commits, to its arrival; only of events that
came about while their reader was connected.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import anyio

from tests.bench.a2a_wire import BROKEN, Stream, encoded, opened

PAUSE_S = 0.05
_ID = re.compile(rb"^id: (\d+)", re.MULTILINE)
_TIME = re.compile(rb'"timestamp":"([^"]+)"')
_LAST = re.compile(rb'"state":"TASK_STATE_(COMPLETED|FAILED|CANCELED|REJECTED)"')


@dataclass(slots=True, kw_only=True)
class _Tally:
    events: int = 0
    gaps: int = 0
    duplicates: int = 0
    finished: int = 0
    cuts: int = 0
    breaks: int = 0
    lags: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    first_break: str = ""


@dataclass(slots=True, kw_only=True)
class _Reader:
    job: Mapping[str, Any]
    task_id: str
    draw: random.Random
    tally: _Tally
    last: int = 0

    async def read(self) -> None:
        """Return once the task's last event is here."""
        while True:
            try:
                async with opened(self.job["host"], self.job["port"]) as connection:
                    if await self._follow(Stream(connection=connection)):
                        self.tally.finished += 1
                        return
            except (ValueError, *BROKEN) as exc:
                self.tally.breaks += 1
                self.tally.first_break = self.tally.first_break or f"{type(exc).__name__}: {exc}"
                await anyio.sleep(PAUSE_S * (1 + self.draw.random()))

    async def _follow(self, stream: Stream) -> bool:
        """Read until the end (True), or until the reader leaves."""
        params = {"id": self.task_id}
        await stream.begin(encoded(self.job["token"], "SubscribeToTask", params, last_event_id=self.last))
        since = time.time()
        while events := await stream.next():
            now = time.time()
            for event in events:
                found = _ID.search(event)
                if found is None:
                    raise ValueError(event[:200].decode())
                if self._take(int(found[1]), event, since, now):
                    return True
                if self.draw.random() < self.job["cut"]:
                    self.tally.cuts += 1
                    return False
        raise anyio.EndOfStream

    def _take(self, seq: int, event: bytes, since: float, now: float) -> bool:
        self.tally.events += 1
        self.tally.gaps += max(0, seq - self.last - 1)
        self.tally.duplicates += seq <= self.last
        self.last = max(seq, self.last)
        said = _TIME.search(event)
        at = datetime.fromisoformat(said[1].decode()).timestamp() if said else 0.0
        if at > since:
            self.tally.lags.append((now, (now - at) * 1000))
        return _LAST.search(event) is not None


async def _drive(job: Mapping[str, Any]) -> dict[str, Any]:
    tally = _Tally()
    cpu = time.process_time()
    with anyio.move_on_after(job["seconds"]):
        async with anyio.create_task_group() as group:
            for number in range(job["readers"]):
                task_id = job["tasks"][number % len(job["tasks"])]
                draw = random.Random(job["seed"] * 100_000 + number)
                group.start_soon(_Reader(job=job, task_id=task_id, draw=draw, tally=tally).read)
    return {
        "events": tally.events,
        "gaps": tally.gaps,
        "duplicates": tally.duplicates,
        "unfinished": job["readers"] - tally.finished,
        "cuts": tally.cuts,
        "breaks": tally.breaks,
        "first_break": tally.first_break,
        "lags": tally.lags,
        "cpu_s": time.process_time() - cpu,
    }


def main() -> None:
    """Read the job, run it, write the result."""
    result = anyio.run(_drive, json.load(sys.stdin), backend_options={"use_uvloop": True})
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
