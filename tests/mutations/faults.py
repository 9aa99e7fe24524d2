"""Small faults that the fast suite must notice: a line of `src/itr`, a wrong one in its place, and where to look first.

`make mutations` plants each in a copy of the project (see `plant.py`). Add one for each kind of fault that was found
the hard way.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """A fault.

    Attributes:
        what: what is then wrong.
        file: path within `src/itr`.
        right: text that occurs once in the file.
        wrong: what replaces it.
        tests: the tests that are run, folders or files within `tests`.
    """

    what: str
    file: str
    right: str
    wrong: str
    tests: str


FAULTS = [
    # Losses and objectives
    Fault(
        "other captions of the same image count as negatives",
        "types/encoded.py",
        "image_id[rows, None] == image_id[None, :]",
        "torch.eye(len(image_id), dtype=torch.bool, device=image_id.device)[rows]",
        "types losses test_module.py methods",
    ),
    Fault(
        "InfoNCE counts images to captions in both directions",
        "losses/contrastive.py",
        "cross_entropy(scores.text_to_image, temperature, targets)",
        "cross_entropy(scores.image_to_text, temperature, targets)",
        "losses",
    ),
    Fault("InfoNCE is not averaged", "losses/contrastive.py", "/ (2 * scores.size)", "/ 2", "losses"),
    Fault(
        "the sigmoid loss mixes up positives and negatives",
        "losses/contrastive.py",
        "torch.where(scores.positives, -logits, logits)",
        "torch.where(scores.positives, logits, -logits)",
        "losses",
    ),
    Fault(
        "the triplet loss takes true captions for negatives",
        "losses/triplet.py",
        "similarity.masked_fill(scores.positives, -math.inf)",
        "similarity.clone()",
        "losses",
    ),
    Fault(
        "the hardest negative counts from the first step",
        "objectives.py",
        '"hardest" if progress >= self.hardest_after else "all"',
        '"hardest"',
        "losses test_module.py",
    ),
    Fault(
        "a learnable temperature leaves its bounds",
        "objectives.py",
        "self.value.clamp_(*self.bounds)",
        "self.value.clamp_(min=0)",
        "losses test_module.py",
    ),
    Fault(
        "the gradient of the temperature has the wrong sign",
        "losses/cross_entropy.py",
        "(factor * slope_sum).neg_()",
        "(factor * slope_sum)",
        "losses",
    ),
    Fault(
        "soft labels are not sharpened by their temperature",
        "losses/soft_label.py",
        "F.log_softmax(teacher * rate, dim=1)",
        "F.log_softmax(teacher, dim=1)",
        "losses methods",
    ),
    # Methods
    Fault(
        "CUSA gives the captions' teacher to the images",
        "methods/cusa.py",
        'teacher_similarity(pairs.extra[f"teacher_{side}"], pairs.rows) for side in SIDES]',
        'teacher_similarity(pairs.extra[f"teacher_{side}"], pairs.rows) for side in SIDES[::-1]]',
        "methods",
    ),
    Fault(
        "CUSA compares cross-modal embeddings within a modality",
        "methods/cusa.py",
        "side.rows(rows).unit_within @ side.unit_within.T",
        "side.rows(rows).unit @ side.unit.T",
        "methods",
    ),
    Fault(
        "the frozen text encoder of D2S drops words",
        "methods/d2s_teacher.py",
        "super().train(False)",
        "super().train(mode)",
        "methods",
    ),
    Fault(
        "D2S distills in proportion to the wrong rows",
        "methods/d2s_module.py",
        "pairs.extra[TEACHER][pairs.rows]",
        "pairs.extra[TEACHER][: len(pairs.scores.positives)]",
        "methods training test_distributed.py",
    ),
    Fault(
        "the prompt output replaces the caption's embedding",
        "methods/d2s_module.py",
        "encoded.pooled + prompt if self.residual else prompt",
        "prompt",
        "methods",
    ),
    # Backbones
    Fault(
        "padding takes part in the mean",
        "backbones/pooling.py",
        "features.masked_fill(~mask.unsqueeze(-1), 0.0).sum(dim=1)",
        "features.sum(dim=1)",
        "backbones",
    ),
    Fault(
        "GPO weighs the smallest values like the largest",
        "backbones/pooling.py",
        "sort(dim=2, descending=True)",
        "sort(dim=2, descending=False)",
        "backbones",
    ),
    Fault(
        "the dropout of a frozen tower stays on",
        "backbones/vse.py",
        "self.text_tower.train(mode and not self.freeze_text)",
        "self.text_tower.train(mode)",
        "backbones test_module.py",
    ),
    Fault(
        "a truncated caption loses its end token",
        "backbones/tokenizers.py",
        "rows = [[self.start_id, *body, self.end_id] for body in bodies]",
        "rows = [[self.start_id, *body, self.end_id][:-1] for body in bodies]",
        "backbones",
    ),
    # Training
    Fault(
        "gradients of gathered rows are not summed over processes",
        "distributed.py",
        "dist.reduce_scatter_tensor(own, gradient)",
        "own.copy_(gradient.chunk(world_size())[dist.get_rank()])",
        "test_distributed.py training",
    ),
    Fault(
        "the local loss lacks the factor that undoes DDP's mean",
        "training/large_batch.py",
        "factor = world_size() if self.local_loss else 1",
        "factor = 1",
        "test_distributed.py training",
    ),
    Fault(
        "the second pass of gradient caching draws other random numbers",
        "training/gradient_cache.py",
        "preserve_rng_state=True",
        "preserve_rng_state=False",
        "training",
    ),
    Fault(
        "the second pass of gradient caching changes running statistics",
        "training/gradient_cache.py",
        "own.update({name: None if value is None else value.clone() for name, value in own.items()})",
        "pass",
        "training",
    ),
    Fault(
        "a block of the loss forgets the gradients of the one before",
        "training/loss_blocks.py",
        "(whole if rows is None else whole[rows]).add_(gradient)",
        "(whole if rows is None else whole[rows]).copy_(gradient)",
        "training",
    ),
    Fault(
        "towers learn as fast as heads",
        "training/optim.py",
        "settings.lr * (settings.tower_lr_factor if tower else 1)",
        "settings.lr",
        "test_module.py training",
    ),
    Fault(
        "biases and temperatures decay",
        "training/optim.py",
        "settings.weight_decay if decays else 0.0",
        "settings.weight_decay",
        "test_module.py training",
    ),
    Fault(
        "the first step of warm-up has a rate of zero",
        "training/optim.py",
        "(step + 1) / (warmup + 1) if step < warmup",
        "step / (warmup + 1) if step < warmup",
        "test_module.py training",
    ),
    # Data
    Fault(
        "workers shuffle alike",
        "data/loading/pipeline.py",
        "np.random.default_rng([seed, epoch, 2, worker_key])",
        "np.random.default_rng([seed, epoch, 2])",
        "data/loading",
    ),
    Fault(
        "every epoch has the same order of shards",
        "data/loading/plan.py",
        "np.random.default_rng([seed, epoch]).permutation(num_shards)",
        "np.random.default_rng([seed]).permutation(num_shards)",
        "data/loading",
    ),
    Fault(
        "every epoch draws the same captions",
        "data/loading/pipeline.py",
        "np.random.default_rng([self.reading.seed, self.epoch, 3, sample.image_id])",
        "np.random.default_rng([self.reading.seed, 3, sample.image_id])",
        "data/loading",
    ),
    Fault(
        "every epoch augments an image alike",
        "data/loading/batches.py",
        "stable_id(self.reading.seed, self.epoch.number, sample.image_id, *item.captions)",
        "stable_id(self.reading.seed, sample.image_id, *item.captions)",
        "data/loading images",
    ),
    Fault(
        "evaluation drops the last images where processes divide them unevenly",
        "data/loading/plan.py",
        "start, stop = rank * total // world, (rank + 1) * total // world",
        "start, stop = rank * (total // world), (rank + 1) * (total // world)",
        "data/loading",
    ),
    Fault(
        "a resumed epoch repeats its first batches",
        "data/loading/plan.py",
        "return WorkerShare(min(first + done, last), last)",
        "return WorkerShare(first, last)",
        "data/loading",
    ),
    Fault(
        "all captions of an image of COCO count in a test, also those beyond the standard five",
        "data/loading/pipeline.py",
        "min(count, standard) if standard and is_whole(standard) else count",
        "count",
        "data",
    ),
    Fault(
        "teachers' features are taken in the order of the file",
        "data/features/stored.py",
        "selected = rows[positions]",
        "selected = rows[np.arange(len(positions))]",
        "passes data/features methods",
    ),
    Fault(
        "images are squashed instead of cropped",
        "images/transforms.py",
        "if self.squash:",
        "if True:",
        "images backbones",
    ),
    # Evaluation
    Fault(
        "a wrong caption that ties with the true one does not count",
        "evaluation/counting.py",
        "self.captions[rows] += (scores >= self.best[0][rows, None])",
        "self.captions[rows] += (scores > self.best[0][rows, None])",
        "evaluation",
    ),
    Fault(
        "a score of NaN ranks last",
        "evaluation/counting.py",
        "scores = scores.nan_to_num(nan=torch.inf)",
        "scores = scores.nan_to_num(nan=-torch.inf)",
        "evaluation",
    ),
    Fault(
        "R@K counts the candidate at rank K + 1",
        "evaluation/retrieval.py",
        "int((ranks < k).sum())",
        "int((ranks <= k).sum())",
        "evaluation",
    ),
    Fault(
        "rsum leaves out the captions",
        "evaluation/retrieval.py",
        "for way in DIRECTIONS for k in (1, 5, 10))",
        "for way in ['i2t'] for k in (1, 5, 10))",
        "evaluation protocols",
    ),
    Fault(
        "mAP@R credits true matches first where scores tie",
        "evaluation/ranks.py",
        "torch.argsort(positives.to(torch.uint8), dim=1, stable=True)",
        "torch.argsort(positives.to(torch.uint8), dim=1, stable=True, descending=True)",
        "evaluation protocols",
    ),
    Fault(
        "equal judgements get ranks in the order of the file",
        "evaluation/correlation.py",
        "(last - (count - 1) / 2)[group]",
        "np.argsort(np.argsort(values)) + 1.0",
        "protocols evaluation",
    ),
    Fault(
        "the bootstrap draws each model's images separately",
        "evaluation/bootstrap.py",
        "change = (second - first).astype(np.float64)",
        "change = (rng.permutation(second) - first).astype(np.float64)",
        "evaluation",
    ),
    Fault(
        "both captions of an equal image keep their own rounding",
        "evaluation/gallery.py",
        "texts.rows(_first_of_equals(text_mark, first_text))",
        "texts.rows(first_text)",
        "evaluation test_module.py",
    ),
    # Runs
    Fault(
        "a worse checkpoint replaces the best one",
        "runs/checkpoints/checkpointing.py",
        "better = score > (-math.inf if self.best_score is None else self.best_score)",
        "better = score == score",
        "runs",
    ),
    Fault(
        "a run that is stopped while averages replace the weights saves the averages as its weights",
        "runs/checkpoints/checkpointing.py",
        "if self._idle(trainer) or averaged:",
        "if self._idle(trainer):",
        "runs",
    ),
    Fault(
        "a checkpoint is written while gradients wait for their step",
        "runs/checkpoints/checkpointing.py",
        "*([] if waits else [LAST]), score=",
        "LAST, score=",
        "runs",
    ),
    Fault(
        "a checkpoint that could not be written counts as the best",
        "runs/checkpoints/checkpointing.py",
        "        if BEST not in written:\n            self.best_score = earlier\n",
        "",
        "runs",
    ),
]
