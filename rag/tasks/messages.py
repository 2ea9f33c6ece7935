"""What a message says, out of the parts that it is kept with. Pure.

Above: the A2A face, the graphs that read messages. Below: the errors. Text is the request; data parts are its options;
whatever has a filename is a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rag.errors import InvalidInput

__all__ = ["FILES", "options_of", "text_of"]

FILES = "files"
"""The option under which files are handed on: [{"filename", "media_type", "text" or "raw": base64}]."""


def text_of(message: Mapping[str, Any]) -> str:
    """Return the message's text parts, but for files, joined by newlines."""
    return "\n".join(str(part["text"]) for part in message["parts"] if "text" in part and "filename" not in part)


def options_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data parts of the message, laid over each other, and its files under FILES.

    Raises:
        InvalidInput: A data part is no JSON object, or names FILES itself.
    """
    options: dict[str, Any] = {}
    files: list[Mapping[str, Any]] = []
    for part in message["parts"]:
        if "filename" in part:
            files.append(dict(part))
        elif "data" in part:
            if not isinstance(part["data"], Mapping):
                raise InvalidInput("a data part is a JSON object")
            options |= part["data"]
    if FILES in options:
        raise InvalidInput(f"{FILES}: files are sent as parts with a filename")
    return {**options, FILES: files} if files else options
