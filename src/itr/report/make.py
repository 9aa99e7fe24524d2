"""The command `itr report`: read run folders, evaluate their embeddings and write the page."""

from __future__ import annotations

import logging
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from itr.commands.inputs import check_at_least, check_report
from itr.commands.parsing import options_of
from itr.commands.verbs import parse
from itr.data.shards.locations import NoSplitError, find_split, read_positives
from itr.data.shards.positives import Positives
from itr.data.shards.schema import Split, data_identity
from itr.distributed import choose_device
from itr.errors import UserError, refusing
from itr.evaluation.gallery import Gallery
from itr.evaluation.provenance import measured, measured_notes
from itr.files.digests import file_digest
from itr.files.writing import file_to_write, whole_file
from itr.report.content.embeddings import checkpoint_embeddings, ready_embeddings
from itr.report.content.entry import RunEntry, plural
from itr.report.content.measure import Measured, measure
from itr.report.content.published import changed_settings, published_results
from itr.report.content.runs import Run, read_run, run_names
from itr.report.content.samples import read_samples
from itr.report.page.page import report_page

log = logging.getLogger(__name__)


def report(
    runs: list[str],
    out: str | None = None,
    split: str = "test",
    data: str | None = None,
    embeddings: list[str] | None = None,
    pictures: int = 24,
    device: str = "auto",
) -> None:
    """Write an HTML page that describes one run, or compares several, and opens offline.

    Args:
        runs: run folders; the others are compared with the first.
        out: output file, FILE.html; by default report/index.html in the first run folder.
        split: data set split to evaluate and show.
        data: shard folder, if the shards are no longer where the run's config says.
        embeddings: precomputed embeddings, one .npz file per run, used instead of the run's checkpoint.
        pictures: number of gallery queries per direction, divided among the runs; 0 for no gallery.
        device: cpu, cuda, cuda:1 ...; auto uses a GPU if there is one.
    """
    folders = [Path(run).expanduser() for run in runs]
    given: list[Path | None] = [Path(file).expanduser() for file in embeddings or []]
    check_report(len(folders), len(given))
    check_at_least(0, pictures=pictures)
    requested = None if out is None else file_to_write(out, ".html", ".htm")
    run_list = [_read(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]
    target = requested or file_to_write(folders[0] / "report" / "index.html", ".html")
    root = None if data is None else Path(data).expanduser()
    if root is not None:
        find_split(root, split)  # a wrong --data is an error; a wrong path in a config is only a note on the page
    num_queries = -(-pictures // len(folders))
    files = given or [None] * len(run_list)
    entries = []
    for run, file in zip(run_list, files, strict=True):
        with refusing(f"could not show the run in {run.folder}"):
            entries.append(_entry(run, split, root, file, num_queries, device))
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as page:
        page.write(report_page(entries, split).encode("utf-8", errors="replace"))
    for entry in entries:
        for note in entry.run.notes:
            log.info("%s: %s", entry.name, note)
    print(f"wrote the report to {target} ({target.stat().st_size / 1e6:.1f} MB)")


def _read(folder: Path, name: str) -> Run:
    with refusing(f"could not read the run in {folder}"):
        return read_run(folder, name)


def _entry(run: Run, split: str, data: Path | None, ready: Path | None, num_queries: int, device: str) -> RunEntry:
    entry = RunEntry(run, published=published_results(run.config_name), changes=changed_settings(run))
    entry.checkpoint = file_digest(run.checkpoint) if run.checkpoint else ""
    entry.facts["checkpoint"] = f"{run.checkpoint.name}, BLAKE2b {entry.checkpoint}" if run.checkpoint else "none"
    entry.facts["software"] = ", ".join(_versions())
    root = data or Path(run.setting("data.root", "shards")).expanduser()
    shards = _find_shards(entry, root, split, needed=ready is None)
    _compare_metrics(entry, split)
    try:
        gallery = _gallery(run, root, split, ready, device).merged()
    except UserError as error:
        if ready is not None:
            raise
        run.notes.append(f"No embeddings, so there are no recall curves and no gallery: {error}")
        return entry
    counts = measured({}, len(gallery.image_id), len(gallery.text_id), gallery.num_samples)
    entry.facts["measured"] = f"{plural(counts['images'], 'image')}, {plural(counts['captions'], 'caption')}"
    run.notes += measured_notes(counts)
    if shards and (shards.images, shards.captions) != (gallery.num_samples, len(gallery.text_id)):
        run.notes.append(
            f"No images and no list of true matches: the embeddings cover {entry.facts['measured']}, which does not "
            f"match {root}"
        )
        shards = None
    pairs = read_positives(root, split) if shards else None
    positives = None if pairs is None else Positives.from_pairs(*pairs)
    log.info("%s: ranking %s", run.name, plural(len(gallery.text_id), "caption"))
    entry.measured = measure(gallery, positives, num_queries, torch.device(choose_device(device)))
    if shards and num_queries:
        _add_samples(entry, entry.measured, root, split)
    return entry


def _find_shards(entry: RunEntry, root: Path, split: str, needed: bool) -> Split | None:
    """The shards of the split; if they are missing, a note on the page says so.

    Raises:
        UserError: the shards exist without this split, and there is nothing else to show: it is `needed`.
    """
    try:
        shards = find_split(root, split)
    except NoSplitError as error:
        message = f"{entry.name}: {error}"
        if needed:
            raise UserError(message) from None
        entry.run.notes.append(f"No images: {message}")
        return None
    except UserError as error:
        entry.run.notes.append(f"No images: {error}. If the shards have moved, give their folder with --data")
        return None
    entry.data = data_identity(shards)
    size = f"{plural(shards.images, 'image')}, {plural(shards.captions, 'caption')}"
    entry.facts["data"] = f"{root}, split {split}: {size}; identity {entry.data[:16]}"
    return shards


def _compare_metrics(entry: RunEntry, split: str) -> None:
    """Note which metrics files are not of the checkpoint and the shards that the rest of the page shows."""
    for file in entry.run.metrics:
        if origin := entry.origin(file, split):
            entry.run.notes.append(f"{file.name} is {origin}; the rest of this page is of {entry.facts['checkpoint']}")


def _versions() -> list[str]:
    """Versions of the software that writes this page."""
    found = [f"Python {platform.python_version()}"]
    for name in ("itr", "torch", "lightning", "transformers", "open_clip_torch"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def _gallery(run: Run, root: Path, split: str, ready: Path | None, device: str) -> Gallery:
    if ready is not None:
        return ready_embeddings(ready, run.checkpoint)
    if run.checkpoint is None:
        raise UserError("checkpoints/ contains no checkpoint")
    cache = run.folder / "report" / f"embeddings-{split}.npz"
    return checkpoint_embeddings(run.checkpoint, root, split, cache, device)


def _add_samples(entry: RunEntry, measured: Measured, root: Path, split: str) -> None:
    """Read the images and captions that the gallery shows."""
    images: set[int] = set()
    captions: set[int] = set()
    for query in measured.queries:
        rows = [query.row, *(hit.row for hit in query.hits)]
        image_rows, text_rows = (rows[:1], rows[1:]) if query.way == "i2t" else (rows[1:], rows[:1])
        image_rows += [int(measured.own_image[row]) for row in text_rows if query.way == "t2i"]
        images |= {int(measured.image_id[row]) for row in image_rows}
        captions |= {int(measured.text_id[row]) for row in text_rows}
    try:
        entry.samples = read_samples(root, split, images, captions)
    except UserError as error:
        entry.run.notes.append(f"No images: {error}")
        return
    missing = len(images - set(entry.samples.image))
    if missing:
        entry.run.notes.append(
            f"{missing} of {len(images)} images are not in the shards; check that --data and --split match the run"
        )


def main(arguments: list[str]) -> None:
    """Parse `itr report RUN [RUN ...] [options]` and write the page."""
    report(**options_of(parse(arguments)[1]))
