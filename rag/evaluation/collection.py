"""A test collection in the BEIR layout: corpus.jsonl, queries.jsonl (each may be .gz) and qrels/<split>.tsv.

Above: `evaluate` and the command line. Below: files and nothing else. Ids are texts and are compared after Unicode
normalisation (NFC), as the store keeps a document's source.
"""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson

from rag.corpus.store import NewDocument
from rag.errors import InvalidInput

__all__ = ["NO_TITLE", "SEED", "Collection", "Question", "corpus_file", "read_collection", "read_documents"]

SEED = 20240229
"""Of every choice that chance makes here: the same collection is sampled and split the same way on every run."""
NO_TITLE = "…"
"""Stands where a document has no title, which the store asks for. It holds no word, so that no statistic sees it."""
MAX_LINE_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One query of a collection."""

    question_id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """Questions, and which documents answer them. The documents stay in their file: `read_documents`."""

    name: str
    folder: Path
    split: str
    questions: tuple[Question, ...]
    """Those with judgements, in the order of their file."""
    judgements: Mapping[str, Mapping[str, int]]
    """Question id -> document id -> grade; 0 is judged and not relevant."""
    unknown: int = 0
    """Judged queries that the file of queries does not have: nothing is known to ask."""

    def limited(self, number: int) -> Collection:
        """Return the collection with `number` of its questions, drawn by SEED; all of them if there are no more.

        Raises:
            InvalidInput: `number` is below 1.
        """
        if number < 1:
            raise InvalidInput("at least one question is needed")
        if number >= len(self.questions):
            return self
        drawn = np.random.default_rng(SEED).choice(len(self.questions), size=number, replace=False)
        questions = tuple(self.questions[int(place)] for place in sorted(drawn))
        judgements = {question.question_id: self.judgements[question.question_id] for question in questions}
        return dataclasses.replace(self, questions=questions, judgements=judgements)


def read_collection(folder: Path, *, split: str = "test") -> Collection:
    """Return the collection of `folder`, named after it.

    Raises:
        InvalidInput: A file is missing or malformed; the message names the file and the line.
    """
    judgements = _judgements(folder, split)
    texts = {_id(row): _text(row, "text") for row in _rows(_json_file(folder, "queries"))}
    questions = tuple(
        Question(question_id=question, text=text) for question, text in texts.items() if question in judgements
    )
    if not questions:
        raise InvalidInput(f"qrels/{split}.tsv judges none of the queries of the file of queries")
    return Collection(
        name=folder.resolve().name,
        folder=folder,
        split=split,
        questions=questions,
        judgements={question.question_id: judgements[question.question_id] for question in questions},
        unknown=len(judgements) - len(questions),
    )


def corpus_file(folder: Path) -> Path | None:
    """Return the file of documents, or None for questions over documents that are elsewhere."""
    return next((path for path in _candidates(folder, "corpus") if path.is_file()), None)


def read_documents(folder: Path) -> Iterator[NewDocument]:
    """Yield the documents of `folder`, whose source is their id; a document of a title alone has it as its text too.

    Raises:
        InvalidInput: The file is missing or malformed.
    """
    for row in _rows(_json_file(folder, "corpus")):
        title, text = _text(row, "title").strip(), _text(row, "text")
        yield NewDocument(source=_id(row), title=title or NO_TITLE, text=text if text.strip() else title)


def _judgements(folder: Path, split: str) -> dict[str, dict[str, int]]:
    path = folder / "qrels" / f"{split}.tsv"
    found: dict[str, dict[str, int]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as exc:
        raise InvalidInput(f"there is no qrels/{split}.tsv in {folder.name}; name another with --split") from exc
    except UnicodeDecodeError as exc:
        raise InvalidInput(f"qrels/{split}.tsv is not UTF-8") from exc
    for number, line in enumerate(lines, 1):
        fields = line.rstrip("\r").split("\t")
        if not line.strip() or (number == 1 and not _is_grade(fields[-1])):
            continue
        if len(fields) != 3 or not _is_grade(fields[2]):
            raise InvalidInput(
                f"qrels/{split}.tsv, line {number}: not of the form query-id, corpus-id, score, "
                "with tabs between and a whole number as score"
            )
        question, document = (unicodedata.normalize("NFC", field) for field in fields[:2])
        found.setdefault(question, {})[document] = int(fields[2])
    if not any(grade > 0 for grades in found.values() for grade in grades.values()):
        raise InvalidInput(f"qrels/{split}.tsv names no relevant document")
    return found


def _is_grade(text: str) -> bool:
    return text.removeprefix("-").isascii() and text.removeprefix("-").isdigit()


def _json_file(folder: Path, name: str) -> Path:
    path = next((path for path in _candidates(folder, name) if path.is_file()), None)
    if path is None:
        raise InvalidInput(f"there is no {name}.jsonl and no {name}.jsonl.gz in {folder.name}")
    return path


def _candidates(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield _row(line, path.name, number)
    except (gzip.BadGzipFile, EOFError) as exc:
        raise InvalidInput(f"{path.name} is not a whole gzip file") from exc


def _row(line: bytes, file: str, number: int) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as exc:
        raise InvalidInput(f"{file}, line {number}: not JSON") from exc
    if not isinstance(row, dict) or not isinstance(row.get("_id"), str | int) or row["_id"] == "":
        raise InvalidInput(f'{file}, line {number}: not an object with an "_id"')
    return cast("dict[str, Any]", row)


def _id(row: Mapping[str, Any]) -> str:
    return unicodedata.normalize("NFC", str(row["_id"]))


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) else ""
