"""`open_clip_train`'s own epoch and `itr fit`, on the same shards and with the same towers."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch

from itr.commands.quieten import quieten
from itr.runs.command import TrainingCLI
from measuring import device, synchronise
from step_parts import NARROW, PRECISION

WORKERS = 1 if device() == "cpu" else 12


class TimedLoader:
    """Loader for `open_clip_train` that records when each batch is requested."""

    def __init__(self, loader: Any, steps: int, batch_size: int) -> None:
        self.loader, self.num_batches, self.num_samples = loader, steps, steps * batch_size
        self.requested: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in itertools.islice(self.loader, self.num_batches):
            self.record()
            yield batch
        self.record()

    def record(self) -> None:
        """Record the time: the previous step has ended, and the next batch is ready."""
        synchronise()
        self.requested.append(time.perf_counter())


def open_clip_loader(shards: Path, batch_size: int, size: int) -> Any:
    """Return open_clip's input pipeline on our tars: Pillow, random crops, the first caption padded to 77 tokens.

    NOTE: `open_clip_train.data` imports pandas for CSV files, so its list of filters is repeated here.
    """
    import open_clip
    import webdataset as wds

    image, tokenizer = open_clip.image_transform(size, is_train=True), open_clip.get_tokenizer("ViT-B-32")
    tars = sorted(str(path) for path in shards.glob("train/*.tar"))
    stream = wds.WebDataset(tars, resampled=True, shardshuffle=False, nodesplitter=None).shuffle(100)
    stream = stream.decode("pilrgb").rename(image="jpg;png", text="json")
    stream = stream.map_dict(image=image, text=lambda meta: tokenizer(meta["captions"][0])[0])
    stream = stream.to_tuple("image", "text").batched(batch_size, partial=False)
    return wds.WebLoader(stream, batch_size=None, shuffle=False, num_workers=WORKERS, persistent_workers=WORKERS > 0)


class OpenClipTraining:
    """Model, optimizer and loader of open_clip.

    Args:
        shards: folder written by `itr prepare`.
        model: model name in open_clip; None for the narrow towers.
        batch_size: pairs per batch.
    """

    def __init__(self, shards: Path, model: str | None, batch_size: int) -> None:
        import open_clip

        config: Any = open_clip.get_model_config(model) if model else copy.deepcopy(NARROW)
        self.model = open_clip.CLIP(**config, output_dict=True).to(device())
        self.loader = open_clip_loader(shards, batch_size, config["vision_cfg"]["image_size"])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 5e-5, (0.9, 0.98), 1e-6, weight_decay=0.2)
        self.batch_size = batch_size

    def rate(self, steps: int) -> float:
        """Return pairs per second from the second step on, in an epoch of `open_clip_train`."""
        import open_clip
        from open_clip_train.train import train_one_epoch

        timed = TimedLoader(self.loader, steps, self.batch_size)
        data = {"train": SimpleNamespace(dataloader=timed, set_epoch=lambda epoch: None)}
        settings = SimpleNamespace(
            device=device(), precision="amp_bf16" if device() == "cuda" else "fp32", distill=False, accum_freq=1,
            skip_scheduler=True, horovod=False, grad_clip_norm=None, log_every_n_steps=100, world_size=1, rank=0,
            wandb=False, batch_size=self.batch_size, log_local=False,
        )  # fmt: skip
        train_one_epoch(self.model, data, open_clip.ClipLoss(), 0, self.optimizer, None, None, None, settings)
        return self.batch_size * (steps - 1) / (timed.requested[-1] - timed.requested[1])


class Clock(pl.Callback):
    """Records when training steps end."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Record the end of the step."""
        synchronise()
        self.ended.append(time.perf_counter())


def our_rate(shards: Path, model: str | None, batch_size: int, steps: int, folder: Path) -> float:
    """Return pairs per second from the second step on, in the training that `itr fit` runs."""
    import yaml

    quieten()
    chosen = {"model": model} if model else {"config": NARROW}
    clock = Clock()
    cli = TrainingCLI(
        [
            "--model.backbone=CLIP", f"--model.backbone={yaml.safe_dump(chosen, default_flow_style=True, width=10**6)}",
            f"--data.root={shards}", f"--data.batch_size={batch_size}", f"--data.num_workers={WORKERS}",
            "--data.val_split=null", f"--trainer.max_steps={steps}", f"--trainer.default_root_dir={folder}",
            f"--trainer.precision={PRECISION}", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=-1",
            "--trainer.enable_model_summary=false",
        ], run=False,
    )  # fmt: skip
    cli.trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, cli.datamodule)
    return batch_size * (len(clock.ended) - 1) / (clock.ended[-1] - clock.ended[0])
