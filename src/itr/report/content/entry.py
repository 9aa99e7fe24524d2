"""One run, with everything that the page shows about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from itr.report.content.measure import Measured
from itr.report.content.published import PublishedResults
from itr.report.content.runs import Run
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
    """

    run: Run
    facts: dict[str, str] = field(default_factory=dict)
    published: PublishedResults | None = None
    changes: list[str] | None = None
    measured: Measured | None = None
    samples: Samples | None = None

    @property
    def name(self) -> str:
        """The run's name on the page."""
        return self.run.name


def plural(number: int, word: str) -> str:
    """A count with its noun: `1 image`, `2,000 images`."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")
