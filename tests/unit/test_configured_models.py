"""Which embedding models a configuration names: the default, those of the file, and the built-in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rag.errors import Misconfigured
from rag.llm.configured import ConfiguredModel, configured_models
from rag.settings import Settings

BUILT_IN = ConfiguredModel(name="all-MiniLM-L6-v2", dimension=384, url=None)
E5 = {"model": "e5", "dimension": 1024, "url": "http://gpu:8000/v1"}


def configured(folder: Path, content: object, **more: object) -> tuple[ConfiguredModel, ...]:
    """Return the models of settings whose file holds `content`."""
    path = folder / "models.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return configured_models(Settings(embeddings_file=path, **more))  # pyright: ignore[reportArgumentType]


def test_without_any_setting_there_is_the_built_in_model() -> None:
    assert configured_models(Settings()) == (BUILT_IN,)


def test_the_default_comes_first_and_the_built_in_model_is_there_beside_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-secret\n", encoding="utf-8")
    default, listed, built_in = configured(
        tmp_path,
        [E5 | {"api_key_file": "key"}],
        embeddings_url="http://there/v1",
        embeddings_model="bge",
        embeddings_dimension=768,
        embeddings_api_key="k",
    )
    assert default == ConfiguredModel(name="bge", dimension=768, url="http://there/v1", api_key="k")
    assert listed == ConfiguredModel(name="e5", dimension=1024, url="http://gpu:8000/v1", api_key="sk-secret")
    assert built_in == BUILT_IN
    assert "sk-secret" not in repr(listed)


def test_a_server_that_has_the_built_in_models_name_takes_its_place(tmp_path: Path) -> None:
    served = {"model": "all-MiniLM-L6-v2", "dimension": 384, "url": "http://gpu/v1"}
    models = configured(
        tmp_path, [served], embeddings_url="http://there/v1", embeddings_model="bge", embeddings_dimension=768
    )
    assert [(model.name, model.url) for model in models] == [
        ("bge", "http://there/v1"),
        ("all-MiniLM-L6-v2", "http://gpu/v1"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "readable file of JSON"),
        ({"model": "e5"}, "a JSON list"),
        (["e5"], "entry 1: must be an object"),
        ([E5, E5], "e5 is configured twice"),
        ([E5 | {"model": "all-MiniLM-L6-v2"}], "all-MiniLM-L6-v2 is configured twice"),
        ([E5 | {"model": " "}], "entry 1: model must be"),
        ([E5 | {"dimension": 0}], "entry 1: dimension must be"),
        ([E5 | {"dimension": True}], "entry 1: dimension must be"),
        ([E5 | {"dimension": 4001}], "from 1 to 4000"),
        ([E5, {"model": "b", "dimension": 3, "url": "ftp://x"}], "entry 2: url must begin with"),
        ([E5 | {"url": "http://there:port/v1"}], "entry 1: url must begin with"),
        ([E5 | {"api_key": "sk"}], "entry 1: unknown 'api_key'; known are api_key_file"),
        ([E5 | {"api_key_file": "nowhere"}], "api_key_file names cannot be read"),
        ([E5 | {"api_key_file": 1}], "api_key_file must be the path"),
    ],
)
def test_a_file_that_cannot_work_is_refused_with_its_place(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(Misconfigured, match=message):
        configured(tmp_path, content)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="BULKHEAD_EMBEDDINGS_FILE does not name"):
        configured_models(Settings(embeddings_file=tmp_path / "nowhere.json"))
