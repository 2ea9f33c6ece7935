"""Which embedding models an installation is told of: the default, those of a file, and the one that is built in.

Above: the composition root, the migration and the commands that name models. Below: `rag.settings`. What is told
here is offered; which model a tenant's vectors are made with is the tenant's own setting.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from rag.errors import Misconfigured
from rag.llm import minilm
from rag.settings import Settings

__all__ = ["ConfiguredModel", "configured_models"]

MAX_DIMENSION = 4000
"""What the database's `halfvec` indexes."""
_VARIABLE = "BULKHEAD_EMBEDDINGS_FILE"
_FIELDS = {"model", "dimension", "url", "api_key_file"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredModel:
    """One embedding model, and where it is served."""

    name: str
    dimension: int
    url: str | None
    """An OpenAI-compatible base URL ending in /v1; None: built in."""
    api_key: str | None = field(default=None, repr=False)


def configured_models(settings: Settings) -> tuple[ConfiguredModel, ...]:
    """Return the models, the installation's default first. The built-in one is left out where its name is taken.

    Raises:
        Misconfigured: BULKHEAD_EMBEDDINGS_FILE, or a file of a key that it names, cannot be used.
    """
    default = ConfiguredModel(
        name=settings.embeddings_model,
        dimension=settings.embeddings_dimension,
        url=settings.embeddings_url,
        api_key=settings.embeddings_api_key,
    )
    models = {default.name: default}
    for model in _listed(settings.embeddings_file):
        if model.name in models:
            raise Misconfigured(f"{_VARIABLE}: the model {model.name} is configured twice")
        models[model.name] = model
    models.setdefault(minilm.MODEL, ConfiguredModel(name=minilm.MODEL, dimension=minilm.DIMENSION, url=None))
    return tuple(models.values())


def _listed(path: Path | None) -> list[ConfiguredModel]:
    if path is None:
        return []
    try:
        entries: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise Misconfigured(f"{_VARIABLE} does not name a readable file of JSON") from exc
    if not isinstance(entries, list):
        raise Misconfigured(f"{_VARIABLE} must hold a JSON list of models")
    return [_model(number, entry, path) for number, entry in enumerate(cast("list[Any]", entries), start=1)]


def _model(number: int, entry: Any, path: Path) -> ConfiguredModel:
    where = f"{_VARIABLE}, entry {number}"
    if not isinstance(entry, Mapping):
        raise Misconfigured(f"{where}: must be an object with model, dimension and url")
    told = cast("Mapping[str, Any]", entry)
    if unknown := sorted(set(told) - _FIELDS):
        raise Misconfigured(f"{where}: unknown {unknown[0]!r}; known are {', '.join(sorted(_FIELDS))}")
    name, dimension, url, key_file = (told.get(field) for field in ("model", "dimension", "url", "api_key_file"))
    if not isinstance(name, str) or not name.strip():
        raise Misconfigured(f"{where}: model must be the model's name at its server")
    if not isinstance(dimension, int) or isinstance(dimension, bool) or not 1 <= dimension <= MAX_DIMENSION:
        raise Misconfigured(f"{where}: dimension must be a whole number from 1 to {MAX_DIMENSION}")
    if not isinstance(url, str) or not _is_http(url):
        raise Misconfigured(f"{where}: url must begin with http:// or https:// and end in /v1 or the like")
    return ConfiguredModel(name=name, dimension=dimension, url=url, api_key=_key(where, key_file, path.parent))


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _key(where: str, named: Any, folder: Path) -> str | None:
    if named is None:
        return None
    if not isinstance(named, str) or not named:
        raise Misconfigured(f"{where}: api_key_file must be the path of a file")
    try:
        return (folder / named).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as exc:
        raise Misconfigured(f"{where}: the file that api_key_file names cannot be read") from exc
