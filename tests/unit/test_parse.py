"""Files of every format become clean text, and each broken one is refused by itself with a reason."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from docx import Document
from docx.enum.style import WD_STYLE_TYPE
from fpdf import FPDF
from fpdf.enums import AccessPermission, EncryptionMethod
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.corpus.formats import docx as docx_format
from rag.corpus.formats import html as html_format
from rag.corpus.formats import pdf as pdf_format
from rag.corpus.parse import (
    EXTENSIONS,
    MAX_FILE_BYTES,
    ParsedDocument,
    Refusal,
    parse,
    parse_many,
    parse_text,
    read_file,
)
from rag.corpus.text import MAX_TEXT_CHARS, MAX_TITLE_CHARS
from rag.errors import DocumentRefused

GERMAN = (
    "Die Verträge über größere Maßnahmen müssen schriftlich geändert werden. Das Gericht würde später prüfen, ob die "
    "Erklärung gültig wäre. "
)


def refusal(data: bytes, name: str) -> str:
    with pytest.raises(DocumentRefused) as caught:
        parse(data, name=name)
    (only,) = parse_many(data, name=name)
    assert only == Refusal(source=name, reason=caught.value.message)
    return caught.value.message


def make_pdf(*pages: str, title: str | None = None, user_password: str | None = None) -> bytes:
    pdf = FPDF()
    pdf.set_font("Helvetica", size=12)
    if title is not None:
        pdf.set_title(title)
    for text in pages:
        pdf.add_page()
        if text:
            pdf.multi_cell(0, text=text)
    if user_password is not None:
        pdf.set_encryption(
            owner_password="owner",
            user_password=user_password,
            encryption_method=EncryptionMethod.AES_256,
            permissions=AccessPermission.none(),
        )
    return bytes(pdf.output())


def make_docx(build: Callable[[object], None] | None = None) -> bytes:
    document = Document()
    document.add_heading("Custody agreement", 0)
    document.add_heading("Scope", 1)
    document.add_paragraph("The custodian keeps the assets.")
    document.add_paragraph("cash", style="List Bullet")
    table = document.add_table(rows=2, cols=3)
    for row, words in enumerate([("Asset", "Fee", "Fee"), ("Bond", "1 %", "2 %")]):
        for column, word in enumerate(words):
            table.cell(row, column).text = word
    table.cell(0, 1).merge(table.cell(0, 2)).text = "Fee"
    document.add_paragraph("After the table.")
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def rewrite_zip(data: bytes, part: str, change: Callable[[bytes], bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            body = old.read(info)
            new.writestr(info.filename, change(body) if info.filename == part else body)
    return out.getvalue()


class TestText:
    def test_markdown_takes_its_title_from_the_first_heading_outside_code(self) -> None:
        document = parse(b"\xef\xbb\xbf```\n# code\n```\r\n\r\n## The  title ##\r\nBody\r", name="notes.md")
        assert document == ParsedDocument(
            title="The title",
            text="```\n# code\n```\n\n## The  title ##\nBody\n",
            media_type="text/markdown",
            markdown=True,
            source="notes.md",
            encoding="utf-8",
        )

    def test_plain_text_takes_its_title_from_the_file_name(self) -> None:
        document = parse(b"# not a heading", name="dir/Board minutes.TXT")
        assert (document.title, document.markdown) == ("Board minutes", False)

    def test_text_is_composed_to_nfc(self) -> None:
        assert parse("e\u0301".encode(), name="a.txt").text == "é"

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
    def test_a_byte_order_mark_tells_the_encoding(self, encoding: str) -> None:
        document = parse(GERMAN.encode(encoding), name="a.txt")
        assert (document.text, document.encoding) == (GERMAN, encoding.removesuffix("-sig"))

    def test_another_encoding_is_taken_when_it_is_certain_and_is_named(self) -> None:
        document = parse(GERMAN.encode("cp1252"), name="a.txt")
        assert (document.text, document.encoding) == (GERMAN, "cp1252")

    @pytest.mark.parametrize("data", ["naïve é".encode("cp1252"), b"\xff\xfd\x81 text", b"\xff\xfe\x00"])
    def test_bytes_in_no_certain_encoding_are_refused(self, data: bytes) -> None:
        assert "UTF-8" in refusal(data, "a.md") or "utf-16" in refusal(data, "a.md")

    @pytest.mark.parametrize("data", [random.Random(1).randbytes(5000), b"MZ\x00\x01", bytes(range(1, 32)) * 20])
    def test_binary_content_is_refused(self, data: bytes) -> None:
        assert "binary" in refusal(data, "a.txt")

    @pytest.mark.parametrize("data", [b"", b"  \r\n\t ", "\u2003\n".encode()])
    @pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.pdf", "a.docx"])
    def test_a_file_without_content_is_refused(self, data: bytes, name: str) -> None:
        assert refusal(data, name)

    def test_the_longest_text_is_taken_and_one_character_more_is_refused(self) -> None:
        assert len(parse(b"a" * MAX_TEXT_CHARS, name="a.txt").text) == MAX_TEXT_CHARS
        assert "the limit is 4,000,000" in refusal(b"a" * (MAX_TEXT_CHARS + 1), "a.txt")
        assert "the limit is 4,000,000" in refusal(b"a" * (2 * MAX_TEXT_CHARS + 1), "a.txt")

    def test_a_title_is_one_bounded_line(self) -> None:
        document = parse(b"# " + b"long\x07 " + b"title " * 200, name="a.md")
        assert len(document.title) == MAX_TITLE_CHARS
        assert document.title.startswith("long title title")

    @pytest.mark.parametrize("name", ["a.exe", "noextension", "a.doc", "a.md.gz", "", ".md"])
    def test_an_unknown_ending_is_refused_with_the_known_ones(self, name: str) -> None:
        assert all(extension in refusal(b"text", name) for extension in EXTENSIONS)

    @pytest.mark.parametrize("text", ["", " \n", "a\x00b", "a\ud800b"])
    def test_direct_text_that_cannot_be_stored_is_refused(self, text: str) -> None:
        with pytest.raises(DocumentRefused):
            parse_text(text, markdown=True)

    def test_direct_text_takes_the_given_title_then_its_heading(self) -> None:
        assert parse_text("# H\n", title=" Given\nname ", markdown=True).title == "Given name"
        assert parse_text("# H\n", markdown=True).title == "H"


class TestSize:
    def test_a_large_file_is_refused_by_its_size_before_it_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "huge.md"
        path.touch()
        os.truncate(path, 200 * 2**20)
        with pytest.raises(DocumentRefused, match="200 MiB; the limit is 32 MiB"):
            read_file(path)

    def test_bytes_above_the_limit_are_refused_unread(self) -> None:
        assert "the limit is 32 MiB" in refusal(b"\x00" * (MAX_FILE_BYTES + 1), "a.pdf")
        assert "the limit is 32 MiB" in refusal(b"\n" * (MAX_FILE_BYTES + 1), "a.md")

    def test_what_is_no_regular_file_is_refused_without_waiting_on_it(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.md")
        for path, reason in (("pipe.md", "not a regular file"), (".", "not a regular file"), ("gone.md", "No such")):
            with pytest.raises(DocumentRefused, match=reason):
                read_file(tmp_path / path)

    def test_a_file_within_the_limit_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "a.md").write_bytes(b"text")
        assert read_file(tmp_path / "a.md") == b"text"


class TestHtml:
    def test_a_page_reads_as_markdown_without_its_furniture(self) -> None:
        page = """<!doctype html><html><head><title>Site</title><style>p{}</style></head><body><nav>Menu</nav>
        <h1>Annual <em>report</em></h1><p>First&nbsp;<b>para</b>graph,<br>second line.<!-- no -->tail</p>
        <script>alert(1)</script><div>Loose <p hidden>secret</p>text</div><ul><li>one</li><li><p>two</p></li></ul>
        <table><tr><th>Year</th><th>Sum</th></tr><tr><td>2024</td><td>7</td></tr></table>
        <pre>  kept
    as is</pre><h2>End</h2>last</body></html>"""
        document = parse(page.encode(), name="report.html")
        assert document.title == "Annual report"
        assert document.markdown
        assert document.text == (
            "# Annual report\n\nFirst paragraph,\nsecond line.tail\n\nLoose\n\ntext\n\n- one\n\n- two\n\n"
            "Year | Sum\n\n2024 | 7\n\n```\n  kept\n    as is\n```\n\n## End\n\nlast"
        )

    def test_the_title_element_is_the_title_of_a_page_without_headings(self) -> None:
        assert parse(b"<title>My page</title><p>x", name="a.htm").title == "My page"

    def test_a_declared_encoding_is_used(self) -> None:
        document = parse('<meta charset="iso-8859-2"><p>łódź'.encode("iso-8859-2"), name="a.html")
        assert (document.text, document.encoding) == ("łódź", "iso8859-2")

    def test_an_external_entity_is_not_resolved(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("top secret", encoding="utf-8")
        page = f'<!DOCTYPE html [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]><p>see &x; end</p>'
        assert "top secret" not in parse(page.encode(), name="a.html").text

    def test_an_encoding_declaration_in_xhtml_is_no_obstacle(self) -> None:
        page = b'<?xml version="1.0" encoding="utf-8"?><html><body><p>text</p></body></html>'
        assert parse(page, name="a.html").text == "text"

    def test_unclosed_markup_of_old_pages_is_read_whole(self) -> None:
        page = "<font>" * 1000 + "deep" + "<p>after"
        assert parse(page.encode(), name="a.html").text == "deep\n\nafter"

    @pytest.mark.timeout(20)
    def test_nesting_that_the_parser_would_cut_short_is_refused(self) -> None:
        page = "<div>" * 100_000 + "deep" + "</div>" * 100_000 + "<p>after"
        assert "nested too deeply" in refusal(page.encode(), "a.html")

    def test_a_page_with_more_text_than_a_document_may_have_is_given_up_early(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(html_format, "MAX_TEXT_CHARS", 1000)
        assert "more than 1,000 characters" in refusal(b"<p>abcdefgh " * 200, "a.html")

    @pytest.mark.parametrize("page", [b"<script>var a = 1</script>", b"<!---->", b"<html", b"<title>only</title>"])
    def test_a_page_without_text_is_refused(self, page: bytes) -> None:
        assert "no text" in refusal(page, "a.html")

    @pytest.mark.parametrize("page", [b"loose <b>words</b>", b"<html>loose words", b"<body></body>loose words"])
    def test_text_outside_any_block_is_read(self, page: bytes) -> None:
        assert parse(page, name="a.html").text == "loose words"


class TestPdf:
    def test_pages_are_read_in_order_and_the_title_from_the_metadata(self) -> None:
        document = parse(make_pdf("First page.", "Second page.", title="Fund rules"), name="x.pdf")
        assert (document.title, document.text) == ("Fund rules", "First page.\n\nSecond page.")
        assert (document.media_type, document.markdown) == ("application/pdf", False)

    def test_without_metadata_the_file_name_is_the_title(self) -> None:
        assert parse(make_pdf("Text."), name="Fund rules.pdf").title == "Fund rules"

    def test_a_scan_is_refused(self) -> None:
        assert "no text layer" in refusal(make_pdf("", ""), "x.pdf")

    def test_a_password_is_asked_for_by_refusing(self) -> None:
        assert "protected by a password" in refusal(make_pdf("Secret.", user_password="user"), "x.pdf")

    def test_a_file_that_anyone_may_open_is_read_although_it_is_encrypted(self) -> None:
        assert parse(make_pdf("Open.", user_password=""), name="x.pdf").text == "Open."

    @pytest.mark.parametrize("data", [b"%PDF-1.7\n", b"%PDF-1.7\n" + b"\x00garbage" * 100, b"hello, not a pdf"])
    def test_a_damaged_file_is_refused_and_not_logged(self, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG):
            assert "damaged" in refusal(data, "x.pdf")
        assert not caplog.records

    def test_a_truncated_file_is_read_or_refused_but_never_fails_otherwise(self) -> None:
        whole = make_pdf("First page.", "Second page.")
        for cut in range(0, len(whole), 97):
            (only,) = parse_many(whole[:cut], name="x.pdf")
            assert isinstance(only, ParsedDocument | Refusal)

    def test_pages_and_seconds_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pdf_format, "MAX_PDF_PAGES", 1)
        assert "the limit is 1: split it" in refusal(make_pdf("a", "b"), "x.pdf")
        monkeypatch.setattr(pdf_format, "MAX_PDF_SECONDS", -1.0)
        assert "seconds to read" in refusal(make_pdf("a"), "x.pdf")
        monkeypatch.setattr(pdf_format, "MAX_TEXT_CHARS", 3)
        assert "characters of text" in refusal(make_pdf("abcd"), "x.pdf")


class TestDocx:
    def test_headings_lists_and_tables_become_markdown(self) -> None:
        document = parse(make_docx(), name="x.docx")
        assert document.title == "Custody agreement"
        assert document.text == (
            "# Custody agreement\n\n# Scope\n\nThe custodian keeps the assets.\n\n- cash\n\n"
            "Asset | Fee\nBond | 1 % | 2 %\n\nAfter the table."
        )

    def test_text_in_content_controls_and_tracked_insertions_is_kept_and_deletions_are_not(self) -> None:
        added = (
            b"<w:sdt><w:sdtContent><w:p><w:r><w:t>Controlled.</w:t></w:r></w:p></w:sdtContent></w:sdt>"
            b'<w:p><w:ins w:id="1" w:author="a"><w:r><w:t>Inserted.</w:t></w:r></w:ins>'
            b'<w:del w:id="2" w:author="a"><w:r><w:delText>Deleted.</w:delText></w:r></w:del></w:p><w:sectPr'
        )
        data = rewrite_zip(make_docx(), "word/document.xml", lambda xml: xml.replace(b"<w:sectPr", added, 1))
        text = parse(data, name="x.docx").text
        assert text.endswith("Controlled.\n\nInserted.")

    def test_text_of_a_drawing_that_is_stored_twice_is_read_once(self) -> None:
        mc = b"http://schemas.openxmlformats.org/markup-compatibility/2006"
        run = b"<w:r><w:t>Boxed.</w:t></w:r>"
        drawing = (
            b'<w:p><mc:AlternateContent xmlns:mc="' + mc + b'"><mc:Choice Requires="wps">' + run + b"</mc:Choice>"
            b"<mc:Fallback>" + run + b"</mc:Fallback></mc:AlternateContent></w:p><w:sectPr"
        )
        data = rewrite_zip(make_docx(), "word/document.xml", lambda xml: xml.replace(b"<w:sectPr", drawing, 1))
        assert parse(data, name="x.docx").text.count("Boxed.") == 1

    def test_an_external_entity_is_not_resolved(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("top secret", encoding="utf-8")

        def poison(xml: bytes) -> bytes:
            entity = f'<!DOCTYPE d [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>'.encode()
            return xml.replace(b"?>", b"?>" + entity, 1).replace(b"The custodian", b"&x; The custodian", 1)

        (only,) = parse_many(rewrite_zip(make_docx(), "word/document.xml", poison), name="x.docx")
        assert isinstance(only, Refusal) or "top secret" not in only.text

    def test_a_zip_bomb_is_refused_unread(self) -> None:
        data = rewrite_zip(make_docx(), "word/document.xml", lambda _: b"\x20" * (docx_format.MAX_DOCX_XML_BYTES + 1))
        assert len(data) < 2**20
        assert "zip bomb" in refusal(data, "x.docx")

    @pytest.mark.parametrize("data", [b"PK\x03\x04 broken", b"no zip", make_docx()[:-200]])
    def test_a_damaged_file_is_refused(self, data: bytes) -> None:
        assert "damaged" in refusal(data, "x.docx")

    def test_another_zip_is_refused(self) -> None:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("a.txt", "text")
        assert "damaged or not what its name says" in refusal(out.getvalue(), "x.docx")

    def test_a_protected_file_is_refused(self) -> None:
        assert "protected by a password" in refusal(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\x01" * 512, "x.docx")

    def test_a_heading_style_of_any_name_is_followed_by_its_number(self) -> None:
        document = Document()
        document.styles.add_style("Heading 12", WD_STYLE_TYPE.PARAGRAPH)
        document.add_paragraph("Deep", style="Heading 12")
        out = io.BytesIO()
        document.save(out)
        assert parse(out.getvalue(), name="x.docx").text == "###### Deep"


class TestJsonLines:
    def test_each_line_is_a_document_and_a_bad_line_is_refused_by_its_number(self) -> None:
        lines = [
            json.dumps({"id": "a-1", "title": "One", "text": "first", "metadata": {"year": 2024}}),
            "{not json",
            "",
            json.dumps({"title": "Two"}),
            json.dumps({"text": "# Three\n\nthird", "format": "markdown"}),
            json.dumps(["text"]),
            json.dumps({"text": 5}),
            json.dumps({"text": "x", "url": "http://x"}),
            '{"text": "\\ud800"}',
            json.dumps({"text": "nul \x00"}),
            json.dumps({"text": "x", "format": "pdf"}),
            json.dumps({"text": "x", "id": " "}),
            json.dumps({"text": "x", "metadata": [1]}),
            json.dumps({"text": "x", "metadata": {"a": "b" * 20_000}}),
            json.dumps({"text": "x", "metadata": {"a": "\x00"}}),
            '{"text":"x","metadata":' + '{"a":' * 300 + "1" + "}" * 300 + "}",
            json.dumps({"text": "  "}),
            json.dumps({"text": "last"}),
        ]
        out = list(parse_many("\r\n".join(lines).encode("utf-8-sig"), name="c.jsonl"))
        documents = [entry for entry in out if isinstance(entry, ParsedDocument)]
        assert [(d.source, d.title, d.text, d.external_id) for d in documents] == [
            ("c.jsonl line 1", "One", "first", "a-1"),
            ("c.jsonl line 5", "Three", "# Three\n\nthird", None),
            ("c.jsonl line 18", "c.jsonl line 18", "last", None),
        ]
        assert documents[0].metadata == {"year": 2024}
        refused = {
            entry.source.removeprefix("c.jsonl line "): entry.reason for entry in out if isinstance(entry, Refusal)
        }
        assert list(refused) == ["2", "4", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17"]
        assert "'text' is missing" in refused["4"]
        assert "put it under 'metadata'" in refused["8"]

    def test_it_is_not_one_document(self) -> None:
        with pytest.raises(DocumentRefused, match="many documents"):
            parse(b"{}", name="a.ndjson")


@given(
    st.binary(max_size=400),
    st.sampled_from(sorted(EXTENSIONS)),
    st.sampled_from([b"", b"%PDF-1.4\n", b"PK\x03\x04", b"<p>"]),
)
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_either_clean_text_or_refused_with_a_reason(data: bytes, extension: str, magic: bytes) -> None:
    for entry in parse_many(magic + data, name=f"a{extension}"):
        if isinstance(entry, Refusal):
            assert entry.reason
        else:
            assert entry.text.strip()
            assert "\x00" not in entry.text
            assert "\r" not in entry.text
            assert unicodedata.is_normalized("NFC", entry.text)
            assert 0 < len(entry.title) <= MAX_TITLE_CHARS
