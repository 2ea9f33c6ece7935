"""Keys of model servers, from a file beside the process: BULKHEAD_LLM_KEYS_FILE, JSON [{"url", "api_key_file"}].

Above: `store`. Below: `rag.errors`. The keys stand in no table: a dump holds none, and none is to be encrypted anew
when the seal keys rotate. And a key goes to the URL that stands beside it here and to no other: whoever can write the
catalogue cannot have it sent to a server of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rag.errors import Misconfigured

__all__ = ["read_keys"]

_VARIABLE = "BULKHEAD_LLM_KEYS_FILE"
_FIELDS = {"url", "api_key_file"}


def read_keys(path: Path) -> Mapping[str, str]:
    """Return the keys by the base URL of their endpoint, without a slash at its end. Blocks: small files.

    Raises:
        Misconfigured: The file, or one that it names, cannot be used.
    """
    try:
        entries: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise Misconfigured(f"{_VARIABLE} does not name a readable file of JSON") from exc
    if not isinstance(entries, list):
        raise Misconfigured(f"{_VARIABLE} must hold a JSON list of objects with url and api_key_file")
    keys: dict[str, str] = {}
    for number, entry in enumerate(cast("list[Any]", entries), start=1):
        url, key = _entry(f"{_VARIABLE}, entry {number}", entry, path.parent)
        if url in keys:
            raise Misconfigured(f"{_VARIABLE}, entry {number}: its url has a key already")
        keys[url] = key
    return keys


def _entry(where: str, entry: Any, folder: Path) -> tuple[str, str]:
    if not isinstance(entry, Mapping) or set(cast("Mapping[str, Any]", entry)) != _FIELDS:
        raise Misconfigured(f"{where}: must be an object with url and api_key_file")
    url, named = (cast("Mapping[str, Any]", entry)[field] for field in ("url", "api_key_file"))
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise Misconfigured(f"{where}: url must be the base URL of an endpoint")
    if not isinstance(named, str) or not named:
        raise Misconfigured(f"{where}: api_key_file must be the path of a file")
    try:
        key = (folder / named).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as exc:
        raise Misconfigured(f"{where}: the file that api_key_file names cannot be read") from exc
    if not key or not key.isascii() or not key.isprintable():
        raise Misconfigured(f"{where}: a key is one line of printable ASCII")
    return url.rstrip("/"), key
