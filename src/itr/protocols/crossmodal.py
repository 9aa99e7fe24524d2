"""`itr evaluate coco | eccv | cxc | transfer`: published protocols that score images against captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itr.commands.inputs import check_transfer
from itr.data.shards.positives import find_rows
from itr.data.tables.reading import read_rows
from itr.embedding.models import open_model
from itr.errors import UserError
from itr.evaluation.correlation import bootstrap_correlation, correlation, pair_cosines
from itr.evaluation.gallery import Gallery
from itr.evaluation.provenance import about, figures_file, figures_table, measured_notes, write_figures
from itr.evaluation.retrieval import evaluate
from itr.evaluation.scoring import scorer_of
from itr.protocols.coco import (
    coco_recalls,
    count_queries,
    cxc_recalls,
    eccv_metrics,
    pmrp,
    read_plausible,
    standard,
    truth_of,
)
from itr.protocols.scored import Scored

COCO = (
    "recall where any caption of an image is a hit, over the 5,000 images and 25,000 captions of COCO's Karpathy test "
    "(coco5k), and the mean over its five folds of 1,000 images (coco1k); ties count against the true match"
)
ECCV = "ECCV Caption: mAP@R, R-Precision and R@1 over 1,261 images and 1,332 captions with judged matches; percent"
CXC = (
    "CxC: recall where any match judged true is a hit; sts, sis and sits are 100 x Spearman's correlation with the "
    "judgements, the mean over 1,000 draws of half of the queries with one judged item each; *_all over all pairs"
)
TRANSFER = "recalls of one model on several test sets that it was not trained on, each by its own captions"


def evaluate_coco(scored: Scored) -> None:
    """Measure COCO 5K and the five folds of COCO 1K.

    Args:
        scored: the embeddings to score.
    """
    _run(scored, COCO, lambda gallery: (coco_recalls(gallery, scored.where), {}))


def evaluate_eccv(scored: Scored, plausible: str | None = None) -> None:
    """Measure mAP@R, R-Precision and R@1 on ECCV Caption, whose matches were judged by people and models.

    Args:
        scored: the embeddings to score.
        plausible: folder with pm_image_to_caption.json and pm_caption_to_image.json; also measures PMRP.
    """

    def measure(gallery: Gallery) -> tuple[Figures, Counts]:
        figures = eccv_metrics(gallery, scored.where)
        queries = {"eccv": count_queries(gallery, truth_of("eccv"))}
        if plausible:
            truth = read_plausible(Path(plausible).expanduser())
            figures |= pmrp(gallery, truth, scored.where)
            queries["pmrp"] = count_queries(gallery, truth)
        return figures, {"queries": queries}

    _run(scored, ECCV, measure)


def evaluate_cxc(scored: Scored, root: str | None = None) -> None:
    """Measure recalls by CxC's judgements and, given its files, correlations within and across modalities.

    Args:
        scored: the embeddings to score.
        root: folder with sts_test.csv, sis_test.csv and sits_test.csv, or their .gz files; not needed for recalls.
    """
    files = {} if root is None else {name: judgements(Path(root).expanduser(), name) for name in PAIRS}

    def measure(gallery: Gallery) -> tuple[Figures, Counts]:
        figures = cxc_recalls(gallery, scored.where)
        counts: Counts = {"queries": {"cxc": count_queries(gallery, truth_of("cxc"))}}
        for name, rows in files.items():
            found = cxc_correlation(gallery, name, rows, scored.where)
            figures |= {f"cxc/{key}": value for key, value in found.items()}
            counts.setdefault("pairs", {})[name] = len(rows[2])
        return figures, counts

    _run(scored, CXC, measure)


def evaluate_transfer(scored: Scored, further: list[str] | None = None) -> None:
    """Measure one model on several data sets.

    Args:
        scored: the model to score, and the first data set.
        further: shard folders of further data sets.
    """
    check_transfer(scored.name, scored.data)
    assert scored.name is not None
    assert scored.data is not None
    target, (module, identity) = figures_file(scored.out), open_model(scored.name)
    folders = [scored.data, *(further or [])]
    names = [Path(folder).expanduser().absolute().name for folder in folders]
    if len(set(names)) < len(names):
        raise UserError(
            f"two of the folders have the same name ({', '.join(names)}), and metrics are named after the folder; "
            "rename one of them"
        )
    figures: dict[str, float] = {}
    data: dict[str, Any] = {}
    scored_by = scorer_of(module).name
    for name, folder in zip(names, folders, strict=True):
        loaded = scored.of_shards(module, identity, folder)
        gallery = loaded.gallery.merged()
        found = evaluate(gallery, device=scored.where)
        figures |= {f"transfer/{name}/{key}": value for key, value in found.items()}
        data[name] = loaded.measured(gallery)
    settings = {"precision": scored.precision, "scored_by": scored_by}
    write_figures(target, figures, about(TRANSFER, identity, data, **settings))
    notes = [f"{name}: {note}" for name, counts in data.items() for note in measured_notes(counts)]
    print("\n".join([*notes, figures_table(figures), f"wrote {target}"]))


Figures = dict[str, float]
Counts = dict[str, dict[str, Any]]


def _run(scored: Scored, protocol: str, measure: Callable[[Gallery], tuple[Figures, Counts]]) -> None:
    target = figures_file(scored.out)
    loaded = scored.load_coco()
    gallery = standard(loaded.gallery)
    figures, counts = measure(gallery)
    equal = {"equal_images": gallery.num_equal} if gallery.num_equal else {}
    data = loaded.measured(gallery, **equal, **counts)
    settings = {"precision": scored.precision, "scored_by": gallery.scorer.name}
    write_figures(target, figures, about(protocol, loaded.model, data, **settings))
    print("\n".join([*measured_notes(data), figures_table(figures), f"wrote {target}"]))


# The columns that contain a pair, the query first.
PAIRS = {"sts": ("caption1", "caption2"), "sis": ("image1", "image2"), "sits": ("caption", "image")}


def judgements(folder: Path, name: str) -> tuple[list[int], list[int], np.ndarray]:
    """COCO's ids of both members of each judged pair of the test split, and the judgements [P].

    Raises:
        UserError: the file is missing or is not a CxC file.
    """
    paths = [folder / f"{name}_test.csv{ending}" for ending in ("", ".gz")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(
            f"{folder} contains neither {paths[0].name} nor {paths[1].name}; give the folder of CxC's judgements, or "
            "omit --root to measure recalls only"
        )
    try:
        rows = [(*(_number(row[column]) for column in PAIRS[name]), float(row["agg_score"])) for row in read_rows(path)]
    except (KeyError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a CxC file ({error!r}); download it again") from None
    first, second, score = zip(*rows, strict=True)
    return list(first), list(second), np.array(score)


def _number(name: str) -> int:
    """The id in `COCO_val2014:sentid:732091` or `COCO_val2014_000000205866.jpg`."""
    return int(name.removesuffix(".jpg").replace(":", "_").rsplit("_", 1)[1])


def cxc_correlation(
    gallery: Gallery,
    name: str,
    rows: tuple[Sequence[int], Sequence[int], np.ndarray],
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """`sts`, `sis` or `sits` of a gallery keyed by COCO's ids, its standard deviation, and its value over all pairs."""
    sides = {"caption": (gallery.text, gallery.text_id), "image": (gallery.image, gallery.image_id)}
    columns = [sides[column.rstrip("12")] for column in PAIRS[name]]
    places = [_rows_of(torch.tensor(ids), known, name) for (_, known), ids in zip(columns, rows[:2], strict=True)]
    if name == "sits":  # a caption and an image
        caption, image = (place.to(device) for place in places)
        similarity = gallery.score(device).pairs(image, caption).cpu().numpy()
    else:
        similarity = pair_cosines(*(encoded.within[at] for (encoded, _), at in zip(columns, places, strict=True)))
    mean, spread = bootstrap_correlation(similarity, rows[2], np.array(rows[0]))
    return {name: 100 * mean, f"{name}_std": 100 * spread, f"{name}_all": 100 * correlation(similarity, rows[2])}


def _rows_of(ids: Tensor, known: Tensor, name: str) -> Tensor:
    at, found = find_rows(ids, known)
    missing = ids[~found]
    if len(missing):
        raise UserError(f"{name}: {len(missing)} judged images or captions have no embedding, such as {missing[0]}")
    return at
