"""`itr evaluate sts`: correlation between the similarity of texts and human judgments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from itr.commands.inputs import check_folder, chosen_model
from itr.embedding.encoder import Space, views
from itr.embedding.files import check_embeddings
from itr.embedding.models import open_embedder
from itr.errors import UserError
from itr.evaluation.correlation import correlation, pair_cosines
from itr.evaluation.provenance import about, figures_file, figures_table, write_figures
from itr.files.digests import combined_digest, file_digest
from itr.protocols.sts_data import COUNTS, JudgedPairs, StsData, read_sts
from itr.teachers.base import Precision

PROTOCOL = (
    "100 x Spearman's rank correlation between the cosine of two texts and their gold score; all pairs of a test set "
    "are pooled across its files; STS13 without SMT, the test split of STS-B, all three splits of SICK as in MTEB; avg "
    "is the mean over the seven sets; avg_senteval uses only SICK's test split, as SentEval and CUSA do"
)


def evaluate_sts(
    root: str,
    out: str,
    ckpt_path: str | None = None,
    model: str | None = None,
    space: Space = "auto",
    batch_size: int = 64,
    device: str = "auto",
    precision: Precision = "32",
) -> None:
    """Evaluate text similarity on STS12-16, STS-B and SICK-R.

    The output file contains `sts/STS12` ... `sts/STS16`, `sts/STSBenchmark`, `sts/SICKRelatedness`, their mean
    `sts/avg`, and each part, such as `sts/STS12/MSRpar`. `sts/SICKRelatedness` covers all pairs of SICK, as in MTEB;
    SentEval and CUSA use its test split, which is `sts/SICKRelatedness/test` and enters `sts/avg_senteval`. If pairs
    are missing from a set, its metric is called `sts/STS12_incomplete`, and no mean is written.

    Args:
        root: folder that contains semeval-sts, stsbenchmark and sick2014, or SentEval's STS and SICK.
        out: output file, FILE.json.
        ckpt_path: checkpoint of `itr fit` or `itr convert`; give either this or a model.
        model: a run folder, open_clip:MODEL/TAG, a folder or name of sentence-transformers or transformers, or
            offline/all-minilm-l6-v2.
        space: embeddings to compare: a method's own embeddings for retrieval within a modality (uni), those for
            retrieval across modalities (cross), uni if the model has it (auto), or both, with cross as
            `sts_cross/...`.
        batch_size: number of texts per batch.
        device: cpu, cuda, cuda:1 ...; auto uses a GPU if there is one.
        precision: precision of the towers.
    """
    target, folder = figures_file(out), Path(root).expanduser()
    check_folder("--root", folder)
    data = read_sts(folder)
    for line in sts_warnings(data):
        print(line)
    name = chosen_model(ckpt_path, model)
    embedder = open_embedder(name, ["text"], device, batch_size=batch_size, precision=precision)
    texts = list(dict.fromkeys(text for pairs in all_pairs(data) for text in (*pairs.first, *pairs.second)))
    found = views(embedder.texts(texts), "sts", space)
    figures: dict[str, float] = {}
    for prefix, view in found.items():
        check_embeddings(view.rows, lambda row: f"the embedding of the text {texts[row]!r}")
        figures |= {f"{prefix}/{name}": value for name, value in sts_figures(data, texts, view.rows).items()}
    spaces = {prefix: view.space for prefix, view in found.items()}
    write_figures(
        target, figures, about(PROTOCOL, embedder.model, sts_identity(data), space=spaces, precision=precision)
    )
    print(figures_table({name: value for name, value in figures.items() if name.count("/") == 1}))
    print(f"wrote {target}")


def all_pairs(data: StsData) -> list[JudgedPairs]:
    """The pairs of every file."""
    return [pairs for parts in data.sets.values() for pairs in parts.values()]


def sts_figures(data: StsData, texts: list[str], rows: Tensor) -> dict[str, float]:
    """100 x Spearman's rank correlation of each test set and of each of its parts, and the mean of the seven sets.

    Args:
        data: judged pairs.
        texts: the distinct texts of all pairs [N].
        rows: embedding of each text [N, D].
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
    """`avg` over the seven sets, if all are complete; `avg_senteval` with only the test split of SICK."""
    found = {}
    for mean, sick in (("avg", "SICKRelatedness"), ("avg_senteval", "SICKRelatedness/test")):
        names = [*(name for name in COUNTS if name != "SICKRelatedness"), sick]
        if all(name in figures for name in names):
            found[mean] = sum(figures[name] for name in names) / len(names)
    return found


def sts_warnings(data: StsData) -> list[str]:
    """Warnings about missing and substituted pairs."""
    lines = [*data.notes, *(f"{name} is incomplete: {what}" for name, what in data.incomplete.items())]
    missing = [name for name in COUNTS if name not in data.sets]
    if missing:
        lines.append(f"missing test sets: {', '.join(missing)}")
    if missing or data.incomplete:
        lines.append("sts/avg is not computed, because it needs all seven test sets in full")
    return lines


def sts_identity(data: StsData) -> dict[str, object]:
    """Hash of the files, number of pairs of each test set, and warnings."""
    digests = {name: file_digest(path) for name, path in data.files.items()}
    pairs = {name: sum(map(len, parts.values())) for name, parts in data.sets.items()}
    facts: dict[str, object] = {"files": len(digests), "blake2b": combined_digest(digests), "pairs": pairs}
    return facts | {"notes": sts_warnings(data)} if sts_warnings(data) else facts
