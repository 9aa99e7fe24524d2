"""Warnings of libraries that are of no use to users."""

from __future__ import annotations

import logging
import warnings


def quieten() -> None:
    """Hide messages of Lightning and transformers that are of no use to users."""
    for message in (
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # about Lightning's own code
        ".*is smaller than the logging interval.*",
        ".*does not have many workers.*",
        ".*is not supported by the model summary.*",
        ".*module\\(s\\) in eval mode at the start of training.*",  # frozen towers
        ".*predict returned None.*",  # the embeddings are in the module
        ".*It is recommended to use `self.log.*sync_dist=True.*",  # every process has the same metrics
        "Checkpoint directory .* exists and is not empty.*",  # before_fit checks this
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*`IterableDataset` has `__len__` defined.*",  # the length of our streams is exact
        ".*the hooks will not be called on every batch.*",  # values are clamped after each step, not each batch
        ".*You requested to overfit but enabled .* shuffling.*",  # it cannot see the order of our streams
        ".*module\\(s\\) in eval mode at the start of training.*",  # frozen towers stay in it
        ".*Detected call of `lr_scheduler.step.*` before `optimizer.step.*",  # fp16 skipped the first step
    ):
        warnings.filterwarnings("ignore", message=message)
    useless = (
        "pypi.org/project/lit", "TPU available: False", "to estimate number of stepping batches",
        "an integer within the vocabulary",  # about SigLIP's config as published; no start or end id of it is used
    )  # fmt: skip
    for name in (
        "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero",
        "transformers.configuration_utils",
    ):  # fmt: skip
        logging.getLogger(name).addFilter(lambda record: not any(text in record.getMessage() for text in useless))
