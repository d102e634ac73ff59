"""Loading alone: shards to the tensors that a step takes, again and again, with nothing trained.

Each 512 rows the shards are opened, the images (PNG of 128 px, noise, the worst to decode) decoded and made
smaller, the texts tokenized, and two batches assembled with augmentation of every kind. Training decodes once
a run and only assembles from then on, so it asks for less than this.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.training.workload import BATCH, IMAGE_INPUT, TEXT, serve
from polyweft.data.batches import batch_bounds, choose_contents, epoch_order, load_arrays, take
from polyweft.data.shards import DATASET_FILE, Sample, write_split
from polyweft.data.tokenizer_training import write_tokenizer
from polyweft.io import write_json
from polyweft.models.build import context_of_data
from polyweft.models.family import ModelParams
from polyweft.training.augment import AugmentParams, draws
from polyweft.training.feed import Feed

ROWS = 2 * BATCH
SIDE = 128
AUGMENT = AugmentParams(
    shift=0.1, scale=0.2, stretch=0.1, rotate=15.0, shear=0.1, elastic=0.05, flip=True, hue=20.0,
    saturation=0.5, gray=0.1, brightness=0.2, contrast=0.2, color=0.1, gamma=0.3, cutout=0.5,
)  # fmt: skip


def prepare(folder: Path) -> None:
    """Shards of ROWS pictures with a text of 22 words each, and a vocabulary."""
    rng = np.random.default_rng(17)
    words = [f"word{number}" for number in range(2000)]
    samples = []
    for row in range(ROWS):
        picture = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(picture, "png")
        text = " ".join(rng.choice(words, TEXT["tokens"] - 2))
        samples.append(
            Sample(
                id=f"row-{row}", captions=[{"text": text, "language": None}], label=None, class_index=-1,
                labels=[], target=None, group=None, leak=False, difficulty=None,
                media={"image": picture.getvalue()},
                extensions={"image": "png"},
            )
        )  # fmt: skip
    shards = {"train": write_split(folder, "train", samples, shard_samples=ROWS)}
    content = {"classes": [], "labels": [], "splits": {"train": ROWS}, "shards": shards, "languages": []}
    write_json(folder / DATASET_FILE, content | {"modalities": {"image": ROWS, "text": ROWS}})
    texts = [str(sample.captions[0]["text"]) for sample in samples]
    write_tokenizer(
        folder, texts, kind="bpe", vocabulary_size=4096, max_tokens=TEXT["tokens"], lowercase=True,
        clip_vocabulary=None,
    )  # fmt: skip


def params() -> ModelParams:
    """The section `model` whose readers do the work; no model is built."""
    image = {**IMAGE_INPUT, "vit": {"patch": 8, "layers": 1, "width": 64, "heads": 1, "pool": "mean"}}
    text = {"tower": "transformer", "transformer": {"layers": 1, "width": 64, "heads": 1, "dropout": 0.0}}
    encoders = {"image": image, "text": text}
    sizes = {"embedding_size": 64, "feature_size": 64}
    return ModelParams.model_validate(
        {"family": "dual_tower", "encoders": encoders, **sizes, "contrast": {"loss": "infonce"}}
    )


def batches(prepared: Path) -> Iterator[float]:
    """Load without end; a number of each batch, so that nothing is left undone."""
    readers = context_of_data(params(), prepared).readers
    feed = Feed(readers, torch.device("cpu"))
    epoch = 0
    while True:
        arrays = load_arrays(prepared, "train", readers)
        order_N = epoch_order(len(arrays), seed=1, epoch=epoch)
        chosen = choose_contents(arrays, seed=1, epoch=epoch)
        draws_NX = draws(len(arrays), seed=1, epoch=epoch)
        for first, last in batch_bounds(len(arrays), BATCH):
            batch = take(arrays, order_N[first:last], chosen)
            inputs = feed.inputs(batch, draws_BX=draws_NX[order_N[first:last]], params=AUGMENT)
            feed.targets(batch)
            yield float(inputs["image"][0, 0, 0, 0]) + float(inputs["text"][0, 1])
        epoch += 1


def main() -> None:
    """Prepare, then answer requests for batches."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    torch.set_num_threads(parser.parse_args().threads)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        coming = batches(Path(folder))

        def load(count: int) -> float:
            return [next(coming) for _ in range(count)][-1]

        serve(load)


if __name__ == "__main__":
    main()
