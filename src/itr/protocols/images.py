"""`itr evaluate images`: search for images by an image of the same class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from itr.embedding.encoder import Space, open_embedder, views
from itr.embedding.files import check_embeddings
from itr.errors import UserError
from itr.evaluation.provenance import about, figures_file, table, write_figures
from itr.files.digests import combined_digest, file_digest
from itr.protocols.image_sets import PUBLISHED, LabelledImages, Layout, read_images
from itr.protocols.same_class import Hits, search_same_class
from itr.teachers.base import Precision

PROTOCOL = (
    "images of the query's class are true matches, by cosine, the query itself excluded; In-Shop: queries against "
    "the gallery; ties count as wrong; queries without a true match are left out; percent"
)


def evaluate_images(
    root: str,
    out: str,
    layout: Layout = "auto",
    ckpt_path: str | None = None,
    image_model: str | None = None,
    space: Space = "auto",
    batch_size: int = 64,
    num_workers: int = 2,
    tile: int = 2048,
    device: str = "auto",
    precision: Precision = "32",
) -> None:
    """Measure image-to-image search on CUB, SOP, In-Shop, iNaturalist or any folder of classes.

    The file gets `images/NAME/r1`, `r10`, `map_at_r` and `r_precision`, in percent.

    Args:
        root: folder of the set; for CUB, SOP and In-Shop as it was unpacked.
        out: file to write, FILE.json.
        layout: cub (images.txt, image_class_labels.txt: classes 101 to 200), sop (Ebay_test.txt), inshop
            (list_eval_partition.txt), inaturalist (Inaturalist_test_set1.txt, or val2018.json), folder (one a class);
            auto finds out.
        ckpt_path: a checkpoint of `itr fit` or `itr convert`; give this or an image model.
        image_model: folder or name of transformers, a name of timm, open_clip:MODEL/TAG or unicom:FILE.
        space: which embeddings are compared: a method's own for search within a modality (uni), those that are searched
            across (cross), uni where there is one (auto), or both, cross then as `images_cross/...`.
        batch_size: images at a time.
        num_workers: processes that read and decode.
        tile: queries and images compared at a time; memory grows with its square.
        device: cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.
        precision: of the towers; similarities are exact anyway.
    """
    if tile < 1:
        raise UserError(f"--tile is {tile}; it must be 1 or more")
    target, images = figures_file(out), read_images(Path(root).expanduser(), layout)
    settings: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "precision": precision}
    embedder = open_embedder("image", ckpt_path, image_model, device, **settings)
    found = embedder.images(images.paths)
    if found.failed:
        number, reason = next(iter(found.failed.items()))
        raise UserError(
            f"{len(found.failed)} of {len(images.names)} images can't be decoded, and figures without them would "
            f"be others; mend {images.paths[number]}: {reason}"
        )
    figures: dict[str, float] = {}
    compared = views(found.encoded, "images", space)
    for prefix, view in compared.items():
        check_embeddings(view.rows, lambda row: f"the embedding of the image {images.names[row]}")
        hits = search(images, view.rows.to(embedder.device), tile)
        figures |= {f"{prefix}/{images.name}/{name}": value for name, value in hits.figures().items()}
    data = identity(images, hits, found.digests)
    spaces = {prefix: view.space for prefix, view in compared.items()}
    write_figures(target, figures, about(PROTOCOL, embedder.model, data, space=spaces, precision=precision))
    print("\n".join([*remarks(data), table(figures), f"wrote {target}"]))


def search(images: LabelledImages, rows: torch.Tensor, tile: int) -> Hits:
    """Search with each query of a set, by the embeddings [N, D] of its images.

    Raises:
        UserError: no query has a true match.
    """
    label = torch.from_numpy(np.unique(images.labels, return_inverse=True)[1]).to(rows.device)
    parts = (images.queries, images.gallery)
    if any(part is not None and not part for part in parts):
        raise UserError(f"{images.lists[0]} names no query or no gallery image")
    queries, gallery = (None if part is None else torch.tensor(part) for part in parts)
    hits = search_same_class(rows, label, queries, gallery, tile)
    if not len(hits.query):
        raise UserError(f"{images.name}: no query has another image of its class, so there is nothing to find")
    return hits


def identity(images: LabelledImages, hits: Hits, digests: list[str]) -> dict[str, Any]:
    """Counts and hash of a set; `published_images` is what the published protocol has, where there is one."""
    files = dict(zip(images.names, digests, strict=True)) | {path.name: file_digest(path) for path in images.lists}
    queries = len(images.names if images.queries is None else images.queries)
    facts = {
        "name": images.name,
        "images": len(images.names),
        "classes": len(set(images.labels)),
        "queries": queries,
        "queries_left_out": queries - len(hits.query),
        "blake2b": combined_digest(files),
    }
    published = PUBLISHED.get(images.name)
    return facts if published is None else facts | {"published_images": published}


def remarks(data: dict[str, Any]) -> list[str]:
    """What a reader of the figures should know of the set, a line each."""
    lines = []
    if data.get("published_images", data["images"]) != data["images"]:
        published = f"the published protocol has {data['published_images']:,}"
        lines.append(f"{data['name']}: {data['images']:,} images, and {published}: figures are not comparable")
    if data["queries_left_out"]:
        lines.append(f"left out {data['queries_left_out']} of {data['queries']} queries: alone in their class")
    return lines
