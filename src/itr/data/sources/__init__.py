"""Where shards come from: one file for each source, with a class that `itr prepare` runs."""

from itr.data.raw.entries import ImageEntry, RawData
from itr.data.sources.base import Source

__all__ = ["ImageEntry", "RawData", "Source"]
