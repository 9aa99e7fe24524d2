"""Rows of CSV, TSV and `|` text: read right, or refused by line; never cut, never swallowed."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

from itr.data.tables.reading import read_rows
from itr.errors import UserError


def rows(path: Path, text: str | bytes) -> list[dict[str, str]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [dict(row) for row in read_rows(path)]


def captions(path: Path, text: str) -> list[str]:
    return [row["caption"] for row in rows(path, text)]


HOSTILE = [
    '" the big sign',
    '"welcome home" banner',
    '" stop',
    "a 6' x 4\" frame",
    'the end"',
    'say "hi"',
    "a, b",
    '"a" or "b"',
]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("order", ["image\tcaption", "caption\timage"])
def test_quotation_marks_in_tsv_are_characters(tmp_path, end, order):
    names = order.split("\t")
    lines = [
        "\t".join({"image": f"images/{n}.jpg", "caption": text}[name] for name in names)
        for n, text in enumerate(HOSTILE)
    ]
    found = rows(tmp_path / "t.tsv", end.join([order, *lines, ""]))
    assert [row["caption"] for row in found] == HOSTILE
    assert [row["image"] for row in found] == [f"images/{n}.jpg" for n in range(len(HOSTILE))]


@pytest.mark.parametrize("texts", [["a\tb", 'the "end"', "two\nlines", '"', "plain"], ["\n\n", 'a "\n" b', "x"]])
def test_tsv_that_a_program_quoted_is_unquoted(tmp_path, texts):
    with (tmp_path / "t.tsv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter="\t", lineterminator="\n").writerows(
            [["image", "caption"], *([f"{n}.jpg", text] for n, text in enumerate(texts))]
        )
    assert [row["caption"] for row in read_rows(tmp_path / "t.tsv")] == texts


def test_tsv_in_which_a_field_may_contain_rows_is_refused(tmp_path):
    text = 'key\tdense\nbeach\t"the sign\ndogs\tsecond"\n'
    with pytest.raises(UserError, match=r"line 2: .* closes only in line 3, and its lines, such as .*, may be rows"):
        rows(tmp_path / "t.tsv", text)
    literal = text.replace("beach", "a.jpg").replace("dogs", "b.png")
    assert [row["dense"] for row in rows(tmp_path / "t.tsv", literal)] == ['"the sign', 'second"']


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_csv_that_a_program_quoted_is_read_right(tmp_path, delimiter):
    texts = ["a, b; c", 'the "end"', "A dog,\nrunning, jumping;\nfast", '"', "plain", *HOSTILE]
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(
            [["image", "caption"], *([f"{n}.jpg", text] for n, text in enumerate(texts))]
        )
    assert [row["caption"] for row in read_rows(tmp_path / "t.csv")] == texts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.jpg,ok\n1.jpg,a red ball, seen from afar\n", r"line 3: it has 3 fields separated by commas, but .* has 2"),
        ("0.jpg,ok\n\n1.jpg,a\n\nball\n", r"line 6: it has 1 fields .* line ends"),
        ('0.jpg,ok\n1.jpg,"welcome home" banner\n', r"line 3: .* expected after"),
        ('0.jpg," the sign\n1.jpg,ok\n2.jpg," stop"\n', r"line 2, up to line 4: .* expected after"),
        ('0.jpg," the sign\n1.jpg,ok\n2.jpg,the end"\n', r"line 2: .* closes only in line 4 .*'1.jpg,ok'"),
        ('0.jpg,"the sign\n1.jpg,ok"\n', r"line 2: .* closes only in line 3"),
        ('0.jpg," the sign\n1.jpg,ok\n', r"line 2.*: a quotation mark is never closed"),
    ],
)
def test_a_malformed_csv_row_is_refused_by_its_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        rows(tmp_path / "t.csv", "image,caption\n" + text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'caption,image\n"the sign,0.jpg\nsecond,1.jpg\nthird",2.jpg\n'),
        ("t.csv", 'key,dense\nB001,"the sign\nB002,second"\n'),
        ("t.csv", 'id,dense\n17,"the sign\n18,second"\n'),
    ],
)
def test_rows_inside_a_quoted_field_are_found_in_any_column(tmp_path, name, text):
    with pytest.raises(UserError, match="contains further rows"):
        rows(tmp_path / name, text)


@pytest.mark.parametrize("name", ["t.tsv", "t.csv"])
def test_surplus_fields_and_repeated_columns_are_refused(tmp_path, name):
    tab = "\t" if name.endswith("tsv") else ","
    with pytest.raises(UserError, match=r"line 2: it has 3 fields"):
        rows(tmp_path / name, f"image{tab}caption\na.jpg{tab}one{tab}two\n")
    with pytest.raises(UserError, match=r"column 'caption' 2 times"):
        rows(tmp_path / name, f"image{tab}caption{tab}caption\na.jpg{tab}one{tab}two\n")


def test_a_long_row_makes_a_short_message(tmp_path):
    with pytest.raises(UserError) as caught:
        rows(tmp_path / "t.csv", "image,caption\n" + "x" * 100_000 + "," * 1000 + "\n")
    assert len(str(caught.value)) < 1000


def test_long_cells_compressed_files_and_other_encodings_are_read(tmp_path):
    text = "image,caption\na.jpg," + "x" * 200_000 + "\n"
    assert captions(tmp_path / "t.csv", text) == ["x" * 200_000]
    with gzip.open(tmp_path / "t.csv.gz", "wb") as stream:
        stream.write(text.encode())
    assert [row["caption"] for row in read_rows(tmp_path / "t.csv.gz")] == ["x" * 200_000]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"):
        found = rows(tmp_path / "u.tsv", "image\tcaption\na.jpg\tcafé\n".encode(encoding))
        assert found == [{"image": "a.jpg", "caption": "café"}]


def test_the_most_frequent_delimiter_of_the_header_separates_fields(tmp_path):
    for header in ("image;caption;notes, if any", 'image;"caption";notes', "sep=;\nimage;caption;notes"):
        [row] = rows(tmp_path / "t.csv", f"{header}\na.jpg;one, two, three;x\n")
        assert (row["image"], row["caption"]) == ("a.jpg", "one, two, three")


def test_lines_that_end_with_carriage_returns_alone_are_read_or_refused(tmp_path):
    assert captions(tmp_path / "t.csv", "image,caption\ra.jpg,one\r") == ["one"]
    with pytest.raises(UserError, match=r"t.tsv has carriage returns but no line feeds"):
        rows(tmp_path / "t.tsv", "image\tcaption\ra.jpg\tone\r")


def test_the_missing_separator_of_the_published_results_file_is_restored(tmp_path, capsys):
    text = (
        'image_name| comment_number| comment\n2199200615.jpg| 3| A dog , "Rex" , runs .\n'
        "2199200615.jpg| 4   A dog runs across the grass .\n"
    )
    found = rows(tmp_path / "results.csv", text)
    assert [(row["comment_number"].strip(), row["comment"].strip()) for row in found] == [
        ("3", 'A dog , "Rex" , runs .'),
        ("4", "A dog runs across the grass ."),
    ]
    assert "results.csv, line 3: a separator is missing; read as comment 4" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"line 2: it has 2 fields separated by `\|`, but the header has 3"):
        rows(tmp_path / "results.csv", "image_name| comment_number| comment\na.jpg| a dog\n")


def test_a_key_that_an_object_has_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"line 1, is not valid JSON: an object has the key 'caption' twice"):
        rows(tmp_path / "t.jsonl", '{"image": "a.jpg", "caption": "one", "caption": "two"}\n')


def test_a_json_file_of_lines_is_read_like_jsonl(tmp_path):
    assert rows(tmp_path / "t.json", '{"a": 1}\n{"a": 2}\n') == rows(tmp_path / "t.jsonl", '{"a": 1}\n{"a": 2}\n')
