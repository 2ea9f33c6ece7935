"""The prompts of the MCP face, one file each. Adding one: its file, a line in PROMPTS, its test."""

from __future__ import annotations

from mcp_server.prompts.compare_sources import COMPARE_SOURCES
from mcp_server.prompts.grounded_answer import GROUNDED_ANSWER
from mcp_server.prompts.prompt import Prompt
from mcp_server.prompts.research_brief import RESEARCH_BRIEF

__all__ = ["PROMPTS", "find_prompt"]

PROMPTS: tuple[Prompt, ...] = (GROUNDED_ANSWER, COMPARE_SOURCES, RESEARCH_BRIEF)

_BY_NAME = {prompt.name: prompt for prompt in PROMPTS}


def find_prompt(name: str) -> Prompt | None:
    """Return the prompt of that name."""
    return _BY_NAME.get(name)
