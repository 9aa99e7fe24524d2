"""`itr densify`: a vision-language model writes a dense caption of each image, once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from itr.commands.verbs import parse
from itr.data.features.reader import Chunk, ChunkReader, load_chunks
from itr.data.features.sharing import Share, print_outcome, split_names, store_chunks
from itr.data.shards.locations import find_split
from itr.data.shards.schema import Sample, data_identity, stable_id
from itr.distributed import choose_device
from itr.errors import UserError
from itr.images.transforms import BadImageError, decode
from itr.passes.dense_writer import DenseWriter
from itr.weights.hub import hub_or_cache, loading_failure, ways_out
from itr.weights.pretrained import load_pretrained

PROMPT = "Describe this image in detail."
LLAVA = "USER: <image>\n{prompt} ASSISTANT:"  # for a processor without a chat template


def densify(
    data: str,
    model: str,
    splits: str = "train",
    prompt: str = PROMPT,
    temperature: float = 0.2,
    top_p: float = 0.9,
    max_new_tokens: int = 500,
    batch_size: int = 8,
    num_workers: int = 2,
    precision: Literal["auto", "32", "bf16", "16"] = "auto",
    device: str = "auto",
    seed: int = 0,
    process: int | None = None,
    of: int | None = None,
    max_skipped: int = 10,
    max_pixels: int = 50_000_000,
    overwrite: bool = False,
) -> None:
    """Write a dense caption of each image with a vision-language model of transformers, once.

    The captions are stored beside the shards, where training finds them. To continue after an interruption, run
    the same command again; the captions depend neither on interruptions nor on the number of processes.

    Args:
        data: folder of the shards.
        model: folder or name of an image-text-to-text model of transformers, such as llava-hf/llava-1.5-13b-hf.
        splits: splits to describe, separated by commas; training needs only its own.
        prompt: the question to the model.
        temperature: of sampling, by default as in D2S-VSE; 0 always takes the most likely token.
        top_p: tokens are sampled from the most likely ones that together have this probability.
        max_new_tokens: limit on the length of a caption, in tokens.
        batch_size: images per batch.
        num_workers: processes that read and decode.
        precision: of the model; auto is bf16 on a GPU.
        device: cpu, cuda, cuda:1 ...; auto uses a GPU if there is one.
        seed: of sampling.
        process: number of this process among several that share the work, from 0; torchrun sets it.
        of: how many share the work; torchrun sets it.
        max_skipped: images that may fail to decode; training skips them too.
        max_pixels: images with more pixels are not decoded.
        overwrite: remove earlier dense captions.
    """
    folder, share = Path(data).expanduser(), Share.given(process, of)
    share.check(batch_size, overwrite)
    found = {name: find_split(folder, name) for name in split_names(splits, data)}
    settings = {"prompt": prompt, "temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens,
                "batch_size": batch_size, "seed": seed}  # fmt: skip
    open_model = cache(partial(Describer, model, choose_device(device, share.process), precision, settings))
    complete = True
    for name, split in found.items():
        facts = {"model": model, "settings": settings, "data": data_identity(split)}
        writer = DenseWriter(folder / name, facts, -(-split.images // batch_size), share.process, overwrite)
        todo = writer.todo(share.chunks(writer.num_chunks))
        reader = ImageReader(split, "image", batch_size, todo, None, max_pixels)
        chunks = load_chunks(reader, num_workers, max_skipped)
        complete = describe(open_model, reader, chunks, writer, name) and complete
    print_outcome(complete, share, data, "--data.texts dense")


class ImageReader(ChunkReader):
    """Chunks of decoded images of any size; those that cannot be decoded are omitted."""

    def _chunk(self, number: int, items: list[tuple[Sample, int]]) -> Chunk:
        ids, images, messages = [], [], []
        for sample, _ in items:
            try:
                images.append(decode(sample.image, self.max_pixels))
                ids.append(sample.image_id)
            except BadImageError as error:
                messages.append(f"image {sample.name} ({sample.where}) could not be decoded: {error}")
        return Chunk(number, ids, images, [], messages=messages)


class Describer:
    """A vision-language model with its processor.

    Raises:
        UserError: it could not be loaded.
    """

    def __init__(self, name: str, device: str, precision: str, settings: dict[str, Any]) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if precision == "auto":
            precision = "bf16" if device.startswith("cuda") else "32"
        dtype = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}[precision]
        try:
            with hub_or_cache(name):
                self.processor: Any = AutoProcessor.from_pretrained(name)
                load = partial(AutoModelForImageTextToText.from_pretrained, name, dtype=dtype)
                self.model: Any = load_pretrained(load, name, "the vision-language model")
        except UserError:
            raise
        except Exception as error:  # the hub, its clients and the readers of weights raise many unrelated types
            raise UserError(f"could not load model {name}: {loading_failure(name, error)}. {ways_out()}") from error
        self.model.to(device).eval()
        self.device, self.dtype, self.settings = torch.device(device), dtype, settings
        self.processor.tokenizer.padding_side = "left"  # the answer follows the prompt
        self.question = self._question(settings["prompt"])

    def _question(self, prompt: str) -> str:
        if not getattr(self.processor, "chat_template", None):
            return LLAVA.format(prompt=prompt)
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        return str(self.processor.apply_chat_template([turn], add_generation_prompt=True))

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor], seed: int) -> list[str]:
        """One caption for each image [3, H, W], uint8."""
        torch.manual_seed(seed)
        settings = self.settings
        inputs = self.processor(
            images=[image.numpy() for image in images], text=[self.question] * len(images), padding=True,
            return_tensors="pt", input_data_format="channels_first",
        ).to(self.device, self.dtype)  # fmt: skip
        sampling = {"do_sample": True, "temperature": settings["temperature"], "top_p": settings["top_p"]}
        drawn = sampling if settings["temperature"] > 0 else {"do_sample": False}
        answers = self.model.generate(**inputs, max_new_tokens=settings["max_new_tokens"], **drawn)
        new = answers[:, inputs["input_ids"].shape[1] :]
        return [" ".join(text.split()) for text in self.processor.batch_decode(new, skip_special_tokens=True)]


def describe(
    open_model: Callable[[], Describer], reader: ImageReader, chunks: Iterable[Chunk], writer: DenseWriter, split: str
) -> bool:
    """Describe the images of `reader` and write the captions; returns whether all processes are done now.

    The model is opened only if there are images to describe.
    """
    path = writer.results[0]

    def write(chunk: Chunk, texts: dict[int, str]) -> None:
        writer.write(chunk.number, texts)

    if writer.complete:
        print(f"{split}: {path} already exists")
        return True
    results = _described(open_model(), chunks, split) if reader.todo else ()
    complete = store_chunks(writer, reader, results, write, f"describing {split}")
    if complete:
        print(f"{split}: wrote {path}")
    return complete


def _described(model: Describer, chunks: Iterable[Chunk], split: str) -> Iterator[tuple[Chunk, dict[int, str]]]:
    """Chunks with the captions of their images by image_id; without an image if the model returned no text for it."""
    for chunk in chunks:
        seed = stable_id(model.settings["seed"], split, chunk.number) % 2**32
        texts = model(chunk.inputs, seed) if chunk.ids else []
        found = dict(zip(chunk.ids, texts, strict=True))
        for image_id in (i for i, text in found.items() if not text):
            tqdm.write(f"the model returns no text for image {image_id}")
        yield chunk, {i: text for i, text in found.items() if text}


def main(arguments: list[str]) -> None:
    """Parse the command line and write dense captions."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    densify(**parse(arguments)[1])
