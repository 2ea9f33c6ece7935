"""The registry: every workflow can be run, and a face that only accepts tasks loads no graph library."""

from __future__ import annotations

import subprocess
import sys

from workflows.graphs import GRAPHS
from workflows.registry import EVERY


def test_every_workflow_has_its_graph_and_every_graph_its_workflow() -> None:
    assert sorted(GRAPHS) == sorted(workflow.name for workflow in EVERY)
    for build in GRAPHS.values():
        assert build().compile().nodes


def test_neither_face_loads_langgraph() -> None:
    """It takes 0.4 s and 25 MB of each process."""
    code = "import sys, mcp_server.app, a2a_server.app; sys.exit('langgraph' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
