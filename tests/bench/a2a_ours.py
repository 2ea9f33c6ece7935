"""Our processes with the bench's agent among their workflows: `python -m tests.bench.a2a_ours a2a_server|workflows`.

Above: `a2a_sides`. Below: the processes as they are deployed; the registry of workflows is what differs.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, cast

import anyio
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from rag.errors import InvalidInput
from tests.bench.a2a_work import ARTIFACT, Work, clocked, note
from workflows import graphs, registry
from workflows.forms import AskUser, Question
from workflows.nodes import WorkflowContext, step_of, traced
from workflows.workflow import CostBound, Workflow

__all__ = ["BENCH", "LISTENS"]


class BenchState(TypedDict):
    """The graph's state."""

    work: dict[str, Any]
    done: NotRequired[int]
    read: NotRequired[int]
    woken: NotRequired[int]


@traced
async def act(state: BenchState, runtime: Runtime[WorkflowContext]) -> dict[str, Any]:
    """Do the work, or the next step of it."""
    work, step, journal = Work(**state["work"]), step_of(runtime), runtime.context.journal
    done, read = state.get("done", 0), state.get("read", 0)
    match work.kind:
        case "ticks":
            for number in range(done, done + 1 if work.steps else work.count):
                await anyio.sleep(work.interval_s)
                await journal.progress(step, f"tick{number}", clocked(number))
                done = number + 1
            for message in await runtime.context.inbox(read) if work.steps else ():
                await journal.progress(step, f"heard{message.seq}", f"heard: {message.text}")
                read = message.seq
        case "chunks":
            piece = {"text": "x" * work.size}
            for number in range(work.count):
                await journal.piece(step, ARTIFACT, [piece], number=number, last=number == work.count - 1)
        case "silent":
            await journal.progress(step, "begin", "working")
            note(work, "began")
            try:
                await anyio.sleep(work.interval_s)
            except BaseException:
                note(work, "stopped")
                raise
        case "ask":
            form = AskUser(id="more", questions=(Question(question="What else?"),))
            reply = runtime.context.ask(step, form)
            await journal.progress(step, "got", f"got: {reply.text}")
        case _:
            pass
    return {"done": done, "read": read}


def _next(state: BenchState) -> str:
    work = Work(**state["work"])
    return "act" if work.steps and state.get("done", 0) < work.count else END


def build() -> StateGraph[BenchState, WorkflowContext, BenchState, BenchState]:
    """Return the graph, not yet compiled."""
    graph = StateGraph(BenchState, context_schema=WorkflowContext)
    graph.add_node("act", act)
    graph.add_edge(START, "act")
    graph.add_conditional_edges("act", _next, ["act", END])
    return graph


def _parse(text: str, options: Mapping[str, Any]) -> dict[str, Any]:
    del options
    try:
        return {"work": dataclasses.asdict(Work.of(text))}
    except (ValueError, TypeError) as exc:
        raise InvalidInput("this is no work") from exc


BENCH = Workflow(
    name="bench",
    title="Benchmark",
    description="Does what it is told.",
    tags=("test",),
    examples=(),
    scopes=frozenset(),
    time_limit_s=550.0,
    bound=CostBound(calls=1, tokens=1),
    options={"type": "object"},
    artifacts=(ARTIFACT,),
    parse=_parse,
)
LISTENS = dataclasses.replace(BENCH, name="bench-listens", takes_messages=True)
"""The same with an ear for messages that come while it works."""


def main() -> None:
    """Register the agent, then be the process."""
    # before anything else is imported: whoever imports the registry takes its values
    registry.WORKFLOWS = (*registry.WORKFLOWS, BENCH, LISTENS)
    registry.EVERY = (*registry.EVERY, BENCH, LISTENS)
    known = cast("dict[str, Any]", graphs.GRAPHS)
    known |= {"bench": build, "bench-listens": build}
    importlib.import_module(f"{sys.argv[1]}.__main__").main()


if __name__ == "__main__":
    main()
