"""One run, with everything that the page shows about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from itr.report.content.measure import Measured
from itr.report.content.published import PublishedResults
from itr.report.content.runs import MetricsFile, Run
from itr.report.content.samples import Samples


@dataclass
class RunEntry:
    """A run with its metrics and samples.

    Attributes:
        run: contents of its folder.
        facts: checkpoint, data and software, by name.
        published: the paper's results for its config.
        changes: settings that differ from its shipped config; None if it has no shipped config.
        measured: metrics of its embeddings; None if there are no embeddings.
        samples: images and captions to show; None if the shards are missing.
        checkpoint: hash of its checkpoint, as in metrics files; empty if it has none.
        data: identity of the shards of the shown split, as in metrics files; empty if they are missing.
    """

    run: Run
    facts: dict[str, str] = field(default_factory=dict)
    published: PublishedResults | None = None
    changes: list[str] | None = None
    measured: Measured | None = None
    samples: Samples | None = None
    checkpoint: str = ""
    data: str = ""

    def origin(self, file: MetricsFile, split: str) -> str:
        """What a metrics file is of, if that is not the run's checkpoint or the shown shards; empty if it is."""
        found = []
        model, data = file.provenance("model"), file.provenance("data")
        digest, shards = model.get("blake2b"), data.get("shards")
        if model.get("checkpoint") == "none":
            found.append("of random weights")
        elif isinstance(digest, str) and self.checkpoint and "checkpoint" in model and digest != self.checkpoint:
            found.append(f"of another checkpoint, {str(model['checkpoint'])[:80]} {digest[:8]}")
        if isinstance(shards, str) and self.data and data.get("split") == split and shards != self.data:
            found.append("of other shards")
        return ", ".join(found)

    @property
    def name(self) -> str:
        """The run's name on the page."""
        return self.run.name


def plural(number: int, word: str) -> str:
    """A count with its noun: `1 image`, `2,000 images`."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")
