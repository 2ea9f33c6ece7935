"""The page that gives a reason for each dependency gives one for every dependency, and for nothing else."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_dependency_has_its_reason_and_nothing_else_has_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    at_run_time, for_development = page.split("For development only:")
    assert _documented(at_run_time) == _declared(project["dependencies"])
    assert _documented(for_development) == _declared(project["optional-dependencies"]["dev"])


def _documented(page: str) -> list[str]:
    cells = re.findall(r"^\| ([a-z][^|]*) \|", page, re.MULTILINE)
    return sorted(name for cell in cells for name in cell.split(", "))


def _declared(requirements: list[str]) -> list[str]:
    return sorted(re.split(r"[\[=<>~!]", requirement)[0] for requirement in requirements)
