"""`itr evaluate images`: retrieve images of the same class as a query image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from itr.commands.inputs import check_at_least, chosen_model
from itr.embedding.encoder import Space, views
from itr.embedding.files import check_embeddings
from itr.embedding.models import open_embedder
from itr.errors import UserError
from itr.evaluation.provenance import about, figures_file, figures_table, write_figures
from itr.files.digests import combined_digest, file_digest
from itr.protocols.image_sets import PUBLISHED, ImageSetLayout, LabeledImages, read_images
from itr.protocols.same_class import SameClassHits, search_same_class
from itr.teachers.base import Precision

PROTOCOL = (
    "images of the query's class are true matches; ranked by cosine, excluding the query itself; In-Shop: queries "
    "against the gallery; ties count as wrong; queries without a true match are excluded; percent"
)


def evaluate_images(
    root: str,
    out: str,
    layout: ImageSetLayout = "auto",
    ckpt_path: str | None = None,
    model: str | None = None,
    space: Space = "auto",
    batch_size: int = 64,
    num_workers: int = 2,
    tile: int = 2048,
    device: str = "auto",
    precision: Precision = "32",
) -> None:
    """Evaluate image-to-image retrieval on CUB, SOP, In-Shop, iNaturalist or any folder of classes.

    The output file contains `images/NAME/r1`, `r10`, `map_at_r` and `r_precision`, in percent.

    Args:
        root: folder of the data set; for CUB, SOP and In-Shop as unpacked from the archive.
        out: output file, FILE.json.
        layout: cub (images.txt, image_class_labels.txt: classes 101 to 200), sop (Ebay_test.txt), inshop
            (list_eval_partition.txt), inaturalist (Inaturalist_test_set1.txt, or val2018.json), folder (one per class);
            auto detects it.
        ckpt_path: checkpoint of `itr fit` or `itr convert`; give either this or a model.
        model: a run folder, open_clip:MODEL/TAG, transformers folder or name, timm name, unicom:FILE or
            offline/efficientnet_lite0.
        space: embeddings to compare: a method's own embeddings for retrieval within a modality (uni), those for
            retrieval across modalities (cross), uni if the model has it (auto), or both, with cross as
            `images_cross/...`.
        batch_size: number of images per batch.
        num_workers: number of processes that read and decode images.
        tile: number of queries and of gallery images compared at a time; memory grows with its square.
        device: cpu, cuda, cuda:1 ...; auto uses a GPU if there is one.
        precision: precision of the towers; similarities are always exact.
    """
    check_at_least(1, tile=tile)
    target, images = figures_file(out), read_images(Path(root).expanduser(), layout)
    for notice in images.notices:
        print(notice)
    settings: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "precision": precision}
    embedder = open_embedder(chosen_model(ckpt_path, model), ["image"], device, **settings)
    found = embedder.images(images.paths)
    if found.failed:
        number, reason = next(iter(found.failed.items()))
        raise UserError(
            f"could not decode {len(found.failed)} of {len(images.names)} images, and skipping them would change the "
            f"metrics; repair them, starting with {images.paths[number]}: {reason}"
        )
    figures: dict[str, float] = {}
    compared = views(found.encoded, "images", space)
    for prefix, view in compared.items():
        check_embeddings(view.rows, lambda row: f"the embedding of the image {images.names[row]}")
        hits = search_image_set(images, view.rows.to(embedder.device), tile)
        figures |= {f"{prefix}/{images.name}/{name}": value for name, value in hits.figures().items()}
    data = image_set_identity(images, hits, found.digests)
    spaces = {prefix: view.space for prefix, view in compared.items()}
    write_figures(target, figures, about(PROTOCOL, embedder.model, data, space=spaces, precision=precision))
    print("\n".join([*image_set_warnings(data), figures_table(figures), f"wrote {target}"]))


def search_image_set(images: LabeledImages, rows: torch.Tensor, tile: int) -> SameClassHits:
    """Search the gallery with each query of a data set, given the embeddings [N, D] of its images.

    Raises:
        UserError: no query has a true match.
    """
    number = {label: number for number, label in enumerate(sorted(set(images.labels)))}
    label = torch.tensor([number[name] for name in images.labels]).to(rows.device)
    parts = (images.queries, images.gallery)
    if any(part is not None and not part for part in parts):
        raise UserError(f"{images.lists[0]} lists no query images or no gallery images")
    queries, gallery = (None if part is None else torch.tensor(part) for part in parts)
    hits = search_same_class(rows, label, queries, gallery, tile)
    if not len(hits.query):
        raise UserError(f"{images.name}: no query has another image of its class, so there is nothing to retrieve")
    return hits


def image_set_identity(images: LabeledImages, hits: SameClassHits, digests: list[str]) -> dict[str, Any]:
    """Counts and hash of a data set, and the number of images in the published protocol, if there is one."""
    files = dict(zip(images.names, digests, strict=True)) | {path.name: file_digest(path) for path in images.lists}
    queries = len(images.names if images.queries is None else images.queries)
    facts = {
        "name": images.name,
        "images": len(images.names),
        "classes": len(set(images.labels)),
        "queries": queries,
        "queries_left_out": queries - len(hits.query),
        "gallery": len(images.names if images.gallery is None else images.gallery),
        "blake2b": combined_digest(files),
    }
    if len(set(digests)) < len(digests):
        facts["equal_images"] = len(digests) - len(set(digests))
    published = PUBLISHED.get(images.name)
    return facts if published is None else facts | {"published_images": published}


def image_set_warnings(data: dict[str, Any]) -> list[str]:
    """Warnings about the data set that a reader of the metrics should know."""
    lines = []
    if data.get("published_images", data["images"]) != data["images"]:
        lines.append(
            f"{data['name']} has {data['images']:,} images here but {data['published_images']:,} in the published "
            "protocol, so the metrics are not comparable with published ones"
        )
    if equal := data.get("equal_images"):
        lines.append(f"{equal:,} images are equal to another one, so some queries can find themselves")
    if data["queries_left_out"]:
        skipped = f"{data['queries_left_out']} of {data['queries']} queries"
        lines.append(f"skipped {skipped}, because their class has no other image")
    return lines
