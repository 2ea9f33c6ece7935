"""Collections are read as BEIR lays them out, and what is wrong with one is said with file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rag.errors import InvalidInput
from rag.evaluation.collection import NO_TITLE, corpus_file, read_collection, read_documents

QUESTIONS = Path(__file__).parents[2] / "samples" / "questions"


def make(folder: Path, *, qrels: str = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq2\td2\t1\n") -> Path:
    """Write a small collection."""
    (folder / "qrels").mkdir(parents=True)
    (folder / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
    queries = [{"_id": name, "text": f"question {name}"} for name in ("q1", "q2", "q3")]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)), encoding="utf-8")
    corpus = [
        {"_id": "d1", "title": "Bees", "text": "They fly."},
        {"_id": "d2", "title": "", "text": "No title."},
        {"_id": "d3", "title": "No text", "text": " "},
        {"_id": 4, "text": "A number as id."},
    ]
    with gzip.open(folder / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(map(json.dumps, corpus)) + "\n\n")
    return folder


def test_only_judged_questions_are_asked_and_grades_are_kept(tmp_path: Path) -> None:
    collection = read_collection(make(tmp_path / "bees"))
    assert collection.name == "bees"
    assert [question.question_id for question in collection.questions] == ["q1", "q2"]
    assert collection.judgements == {"q1": {"d1": 2}, "q2": {"d2": 1}}


def test_judgements_may_lack_the_line_of_names(tmp_path: Path) -> None:
    collection = read_collection(make(tmp_path / "bees", qrels="q1\td1\t1\r\nq1\td9\t0\r\n"))
    assert collection.judgements == {"q1": {"d1": 1, "d9": 0}}


def test_judged_queries_that_nobody_knows_are_counted_and_not_asked(tmp_path: Path) -> None:
    collection = read_collection(make(tmp_path / "bees", qrels="q1\td1\t1\nq9\td1\t1\n"))
    assert list(collection.judgements) == ["q1"]
    assert collection.unknown == 1


def test_files_may_begin_with_a_byte_order_mark_and_number_from_nought(tmp_path: Path) -> None:
    folder = make(tmp_path / "bees", qrels="\ufeff0\t0\t1\n")
    (folder / "queries.jsonl").write_text('\ufeff{"_id": 0, "text": "a"}\n', encoding="utf-8")
    (folder / "corpus.jsonl").write_text('\ufeff{"_id": 0, "text": "b"}\r\n', encoding="utf-8")
    assert read_collection(folder).judgements == {"0": {"0": 1}}
    assert [document.source for document in read_documents(folder)] == ["0"]


def test_documents_keep_their_id_and_lack_neither_title_nor_text(tmp_path: Path) -> None:
    documents = list(read_documents(make(tmp_path / "bees")))
    assert [(document.source, document.title, document.text) for document in documents] == [
        ("d1", "Bees", "They fly."),
        ("d2", NO_TITLE, "No title."),
        ("d3", "No text", "No text"),
        ("4", NO_TITLE, "A number as id."),
    ]


def test_an_id_is_one_id_however_its_accents_are_coded(tmp_path: Path) -> None:
    folder = make(tmp_path / "bees", qrels="q1\tcafe\u0301\t1\n")
    (folder / "corpus.jsonl").write_text('{"_id": "caf\u00e9", "title": "x", "text": "y"}', encoding="utf-8")
    (document,) = read_documents(folder)
    assert read_collection(folder).judgements["q1"] == {document.source: 1}


def test_a_sample_of_the_questions_is_the_same_on_every_run(tmp_path: Path) -> None:
    folder = make(tmp_path / "bees")
    first, again = (read_collection(folder).limited(1) for _ in range(2))
    assert [question.question_id for question in first.questions] == [q.question_id for q in again.questions]
    assert set(first.judgements) == {question.question_id for question in first.questions}
    assert len(read_collection(folder).limited(99).questions) == 2


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\n", "qrels/test.tsv, line 2: not of the form"),
        ("qrels/test.tsv", "q1\td1\tgood\nq1\td1\t1\textra\n", "line 2"),
        ("qrels/test.tsv", "q9\td1\t1\n", "judges none of the queries"),
        ("qrels/test.tsv", "q1\td1\t1\nq1\td1\t1.0\n", "line 2: .* a whole number"),
        ("qrels/test.tsv", "q1\td1\t0\n", "names no relevant document"),
        ("queries.jsonl", '{"_id": "q1", "text": "a"}\n{"_id": \n', "queries.jsonl, line 2: not JSON"),
        ("queries.jsonl", '["q1"]\n', "queries.jsonl, line 1"),
        ("queries.jsonl", '{"text": "a"}\n', 'not an object with an "_id"'),
    ],
)
def test_what_is_malformed_is_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    folder = make(tmp_path / "bees")
    (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(InvalidInput, match=message):
        read_collection(folder)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "bees")
    with pytest.raises(InvalidInput, match=r"qrels/dev\.tsv"):
        read_collection(folder, split="dev")
    (folder / "queries.jsonl").unlink()
    with pytest.raises(InvalidInput, match="queries"):
        read_collection(folder)
    (folder / "corpus.jsonl.gz").write_bytes(b"\x1f\x8b not gzip")
    with pytest.raises(InvalidInput, match="gzip"):
        list(read_documents(folder))


@pytest.mark.parametrize("name", ["securities", "privacy", "patents"])
def test_every_answer_to_our_own_questions_holds_the_words_that_make_it_one(name: str) -> None:
    folder = QUESTIONS / name
    assert corpus_file(folder) is None
    collection = read_collection(folder)
    assert len(collection.questions) >= 20
    for line in (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        evidence = row["metadata"]["evidence"]
        assert set(evidence) == set(collection.judgements[row["_id"]])
        for source, words in evidence.items():
            text = (QUESTIONS.parent / name / source).read_text(encoding="utf-8")
            assert words in " ".join(text.split()), (row["text"], source)
