"""`itr evaluate sts`: how well the similarity of texts follows people's judgements."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from itr.embedding.encoder import Space, open_embedder, views
from itr.embedding.files import check_embeddings
from itr.errors import UserError
from itr.evaluation.correlation import correlation, pair_cosines
from itr.evaluation.provenance import about, figures_file, table, write_figures
from itr.files.digests import combined_digest, file_digest
from itr.protocols.sts_data import COUNTS, JudgedPairs, StsData, read_sts
from itr.teachers.base import Precision

PROTOCOL = (
    "100 x Spearman's rank correlation of the cosine of two texts with their gold score; all pairs of a test set in "
    "one list, whatever file they are in; STS13 without SMT, the test part of STS-B, all three parts of SICK as MTEB "
    "has it; avg is the mean of the seven; avg_senteval takes SICK's test part alone, as SentEval and CUSA do"
)


def evaluate_sts(
    root: str,
    out: str,
    ckpt_path: str | None = None,
    text_model: str | None = None,
    space: Space = "auto",
    batch_size: int = 64,
    device: str = "auto",
    precision: Precision = "32",
) -> None:
    """Measure text similarity on STS12-16, STS-B and SICK-R.

    The file gets `sts/STS12` ... `sts/STS16`, `sts/STSBenchmark`, `sts/SICKRelatedness`, their mean `sts/avg`, and each
    part, such as `sts/STS12/MSRpar`. SICK is all of its pairs, as MTEB has it; SentEval and CUSA take its test part,
    which is `sts/SICKRelatedness/test` and goes into `sts/avg_senteval`. The figure of a set that lacks pairs is called
    `sts/STS12_incomplete`, and there is no mean then.

    Args:
        root: folder with semeval-sts, stsbenchmark and sick2014, or with SentEval's STS and SICK.
        out: file to write, FILE.json.
        ckpt_path: a checkpoint of `itr fit` or `itr convert`; give this or a text model.
        text_model: folder or name of sentence-transformers or transformers.
        space: which embeddings are compared: a method's own for search within a modality (uni), those that are searched
            across (cross), uni where there is one (auto), or both, cross then as `sts_cross/...`.
        batch_size: texts at a time.
        device: cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.
        precision: of the towers.
    """
    target, folder = figures_file(out), Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"--root: there is no folder {root}")
    data = read_sts(folder)
    for line in warnings_of(data):
        print(line)
    embedder = open_embedder("text", ckpt_path, text_model, device, batch_size=batch_size, precision=precision)
    texts = list(dict.fromkeys(text for pairs in all_pairs(data) for text in (*pairs.first, *pairs.second)))
    found = views(embedder.texts(texts), "sts", space)
    figures: dict[str, float] = {}
    for prefix, view in found.items():
        check_embeddings(view.rows, lambda row: f"the embedding of the text {texts[row]!r}")
        figures |= {f"{prefix}/{name}": value for name, value in sts_figures(data, texts, view.rows).items()}
    spaces = {prefix: view.space for prefix, view in found.items()}
    write_figures(target, figures, about(PROTOCOL, embedder.model, identity(data), space=spaces, precision=precision))
    print(table({name: value for name, value in figures.items() if name.count("/") == 1}))
    print(f"wrote {target}")


def all_pairs(data: StsData) -> list[JudgedPairs]:
    """The pairs of every file."""
    return [pairs for parts in data.sets.values() for pairs in parts.values()]


def sts_figures(data: StsData, texts: list[str], rows: Tensor) -> dict[str, float]:
    """100 x Spearman's rank correlation of each set and each of its parts, and the mean of the seven sets.

    Args:
        data: judged pairs.
        texts: every text of theirs once [N].
        rows: the embedding of each text [N, D].
    """
    place = {text: row for row, text in enumerate(texts)}

    def similarity(pairs: JudgedPairs) -> np.ndarray:
        return pair_cosines(rows[[place[text] for text in pairs.first]], rows[[place[text] for text in pairs.second]])

    figures: dict[str, float] = {}
    for name, parts in data.sets.items():
        whole = f"{name}_incomplete" if name in data.incomplete else name
        figures[whole] = _spearman(name, [similarity(p) for p in parts.values()], [p.score for p in parts.values()])
        named = {f"{name}/{part}": pairs for part, pairs in parts.items() if part}
        for part, pairs in named.items():
            figures[part] = _spearman(part, [similarity(pairs)], [pairs.score])
    return figures | mean_of_sets(figures)


def _spearman(name: str, similarity: list[np.ndarray], gold: list[list[float]]) -> float:
    try:
        return 100 * correlation(np.concatenate(similarity), np.concatenate(gold))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def mean_of_sets(figures: Mapping[str, float]) -> dict[str, float]:
    """`avg` over the seven sets, where all of them are whole; `avg_senteval` with the test part of SICK alone."""
    found = {}
    for mean, sick in (("avg", "SICKRelatedness"), ("avg_senteval", "SICKRelatedness/test")):
        names = [*(name for name in COUNTS if name != "SICKRelatedness"), sick]
        if all(name in figures for name in names):
            found[mean] = sum(figures[name] for name in names) / len(names)
    return found


def warnings_of(data: StsData) -> list[str]:
    """What is missing or was made up for, a line each."""
    lines = [*data.notes, *(f"{name} is incomplete: {what}" for name, what in data.incomplete.items())]
    missing = [name for name in COUNTS if name not in data.sets]
    if missing:
        lines.append(f"not there: {', '.join(missing)}")
    if missing or data.incomplete:
        lines.append("so there is no sts/avg")
    return lines


def identity(data: StsData) -> dict[str, object]:
    """Hash of the files, pairs of each set, and what is unusual about them."""
    digests = {name: file_digest(path) for name, path in data.files.items()}
    pairs = {name: sum(map(len, parts.values())) for name, parts in data.sets.items()}
    facts: dict[str, object] = {"files": len(digests), "blake2b": combined_digest(digests), "pairs": pairs}
    return facts | {"notes": warnings_of(data)} if warnings_of(data) else facts
