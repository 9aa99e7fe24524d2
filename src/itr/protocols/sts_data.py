"""Read the pairs of STS12-16, STS-B and SICK-R: either one table per file, or the layout of SentEval."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from itr.data.tables.text_files import text_lines
from itr.errors import UserError, shown

# Number of judged pairs in each file of each test set, as in SentEval and MTEB. STS13 lacks SMT for license reasons.
COUNTS = {
    "STS12": {"MSRpar": 750, "MSRvid": 750, "SMTeuroparl": 459, "OnWN": 750, "SMTnews": 399},
    "STS13": {"FNWN": 189, "headlines": 750, "OnWN": 561},
    "STS14": {"deft-forum": 450, "deft-news": 300, "headlines": 750, "images": 750, "OnWN": 750, "tweet-news": 750},
    "STS15": {"answers-forums": 375, "answers-students": 750, "belief": 375, "headlines": 750, "images": 750},
    "STS16": {"answer-answer": 254, "headlines": 249, "plagiarism": 230, "postediting": 244, "question-question": 209},
    "STSBenchmark": {"": 1379},
    "SICKRelatedness": {"train": 4500, "trial": 500, "test": 4927},
}
MSRVID_ROWS = ("main-captions", "MSRvid", "2012test")  # genre, file and year of STS12's MSRvid in STS-B


@dataclass
class JudgedPairs:
    """Pairs of texts with human similarity scores from 0 to 5, for SICK from 1 to 5."""

    first: list[str] = field(default_factory=list)
    second: list[str] = field(default_factory=list)
    score: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.score)

    def add(self, score: str, first: str, second: str) -> None:
        """Add a pair; a pair without a score is skipped."""
        if score.strip():
            self.score.append(float(score))
            self.first.append(first)
            self.second.append(second)


@dataclass
class StsData:
    """The test sets found in a folder.

    Attributes:
        sets: pairs by test set and file; a test set without any file is absent.
        incomplete: what is missing from a test set, by its name.
        notes: what a reader of the metrics should know.
        files: all files that were read, by relative path.
    """

    sets: dict[str, dict[str, JudgedPairs]] = field(default_factory=dict)
    incomplete: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)


class StsReader:
    """Reads the files of a folder in either layout and records which files it has read.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders = [folder for folder in (root, root / "downstream", root / "data/downstream") if folder.is_dir()]
        self.files: dict[str, Path] = {}

    def find(self, *names: str) -> Path | None:
        """The first of the named files that exists."""
        candidates = (folder / name for name in names for folder in self.folders)
        return next((path for path in candidates if path.is_file()), None)

    def lines(self, path: Path) -> list[str]:
        """The lines of a file, split only at line feeds.

        Raises:
            UserError: the file could not be read.
        """
        lines = text_lines(path)
        self.files[path.relative_to(self.root).as_posix()] = path
        return lines

    def rows(self, path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
        """Number and columns of each line; quotes are part of the text, and extra columns are allowed."""
        for number, line in enumerate(self.lines(path), 1):
            row = line.split("\t")
            if len(row) < columns:
                raise UserError(
                    f"{path}, line {number}: expected at least {columns} tab-separated columns, found {len(row)}"
                )
            yield number, row

    def pairs(self, path: Path, columns: tuple[int, int, int], start: int = 1) -> JudgedPairs:
        """The pairs of a table; `columns` are those of score, first and second text, `start` is the first line."""
        pairs = JudgedPairs()
        for number, row in self.rows(path, max(columns) + 1):
            if number >= start:
                _add(pairs, path, number, [row[column] for column in columns])
        return pairs

    def two_files(self, texts: Path, scores: Path) -> JudgedPairs:
        """The pairs in SentEval's layout: texts in one file, the score of each line in another."""
        pairs, judged = JudgedPairs(), self.lines(scores)
        rows = list(self.rows(texts, 2))
        if len(rows) != len(judged):
            raise UserError(f"{texts} has {len(rows)} lines, but {scores} has {len(judged)}; they must agree")
        for (number, row), score in zip(rows, judged, strict=True):
            _add(pairs, scores, number, [score, *row[:2]])
        return pairs


def _add(pairs: JudgedPairs, path: Path, number: int, row: list[str]) -> None:
    try:
        pairs.add(*row)
    except ValueError:
        raise UserError(f"{path}, line {number}: the score {shown(row[0])} is not a number") from None


def read_sts(root: Path) -> StsData:
    """Read all test sets in a folder.

    Raises:
        UserError: the folder contains none of them, or a file is damaged.
    """
    reader, data = StsReader(root), StsData()
    for name, counts in COUNTS.items():
        found = {part: pairs for part in counts if (pairs := _read(reader, name, part)) is not None}
        if not found:
            continue
        if name == "STS12" and "MSRvid" not in found and (pairs := msrvid_of_benchmark(reader)) is not None:
            found["MSRvid"] = pairs
            data.notes.append("STS12: the MSRvid file is missing; its pairs were taken from STS-B, which includes them")
        data.sets[name] = {part: found[part] for part in counts if part in found}
        wrong = [_shortage(part, found.get(part), count) for part, count in counts.items()]
        if any(wrong):
            data.incomplete[name] = ", ".join(filter(None, wrong))
    if not data.sets:
        raise UserError(
            f"{root} contains no STS data; expected files such as semeval-sts/2012/MSRpar.test.tsv, stsbenchmark/"
            "sts-test.csv and sick2014/SICK_test_annotated.txt, or SentEval's STS/STS12-en-test, STS/STSBenchmark and "
            "SICK"
        )
    data.files = reader.files
    return data


def _shortage(part: str, pairs: JudgedPairs | None, count: int) -> str:
    found = 0 if pairs is None else len(pairs)
    return "" if found == count else f"{part} {found:,} of {count:,} pairs".strip()


def _read(reader: StsReader, name: str, part: str) -> JudgedPairs | None:
    if name == "STSBenchmark":
        path = reader.find("stsbenchmark/sts-test.csv", "STS/STSBenchmark/sts-test.csv")
        return None if path is None else reader.pairs(path, (4, 5, 6))
    if name == "SICKRelatedness":
        file = {"test": "SICK_test_annotated.txt"}.get(part, f"SICK_{part}.txt")
        path = reader.find(f"sick2014/{file}", f"SICK/{file}")
        return None if path is None else reader.pairs(path, (3, 1, 2), start=2)
    path = reader.find(f"semeval-sts/20{name[3:]}/{part}.test.tsv")
    if path is not None:
        return reader.pairs(path, (0, 1, 2))
    folder = f"STS/{name}-en-test/STS"
    texts = reader.find(f"{folder}.input.{part}.txt", f"{folder}.input.surprise.{part}.txt")
    if texts is None:
        return None
    scores = texts.with_name(texts.name.replace(".input.", ".gs.", 1))
    if not scores.is_file():
        raise UserError(f"{texts} has no scores: the file {scores} does not exist")
    return reader.two_files(texts, scores)


def msrvid_of_benchmark(reader: StsReader) -> JudgedPairs | None:
    """STS12's MSRvid from the three files of STS-B, which include all of it; None if they contain no such pair."""
    rows: dict[int, list[str]] = {}
    for split in ("train", "dev", "test"):
        path = reader.find(f"stsbenchmark/sts-{split}.csv", f"STS/STSBenchmark/sts-{split}.csv")
        for number, row in reader.rows(path, 7) if path else ():
            if tuple(row[:3]) == MSRVID_ROWS and row[4].strip():
                if not row[3].isdecimal():
                    raise UserError(f"{path}, line {number}: the pair's number {shown(row[3])} is not a number")
                rows[int(row[3])] = row[4:7]
    pairs = JudgedPairs()
    for number in sorted(rows):
        pairs.add(*rows[number])
    return pairs if rows else None
