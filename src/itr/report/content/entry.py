"""One run as the page shows it."""

from __future__ import annotations

from dataclasses import dataclass, field

from itr.report.content.measure import Measured
from itr.report.content.published import Published
from itr.report.content.runs import Run
from itr.report.content.samples import Samples


@dataclass
class Entry:
    """A run with everything found of it.

    Attributes:
        run: what its folder tells.
        facts: what was measured and with what, by name.
        published: the paper's figures for its config.
        departures: settings that differ from that config; None where it names none.
        measured: figures of its embeddings; None where there are none.
        samples: images and captions to show; None where the shards are gone.
    """

    run: Run
    facts: dict[str, str] = field(default_factory=dict)
    published: Published | None = None
    departures: list[str] | None = None
    measured: Measured | None = None
    samples: Samples | None = None

    @property
    def name(self) -> str:
        """What the page calls the run."""
        return self.run.name


def plural(number: int, word: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")
