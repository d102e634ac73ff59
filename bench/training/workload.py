"""What both sides train: the model's sizes and the synthetic batches. Imported by both environments.

Shape suffixes: B rows, T tokens, H and W pixels.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

BATCH = 256
IMAGE = {"size": 64, "patch": 8, "layers": 6, "width": 256, "heads": 4}
IMAGE_INPUT = {
    "tower": "vit",
    "size": IMAGE["size"],
    "resize": "squash",
    "normalization": "clip",
    "background": [255, 255, 255],
    "max_pixels": 10**6,
}
"""The part of ours' `model.encoders.image` that says what comes in."""

TEXT = {"tokens": 24, "vocabulary": 49408, "layers": 4, "width": 256, "heads": 4}
EMBEDDING = 256
START_ID, END_ID = 49406, 49407  # the last two of CLIP's vocabulary; the end token has the greatest id
ADAMW = {"lr": 1e-3, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8}


def batches(rows: int, words: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless pixels float32 (B, 3, H, W) and token ids int64 (B, T), of no meaning; the same on both sides.

    `words` is "full" (every row has all its tokens) or "short" (2 to 9 tokens a row, start and end included,
    the rest zeros: what names of things take).
    """
    rng = np.random.default_rng(17)
    tokens = TEXT["tokens"]
    while True:
        pixels = rng.standard_normal((rows, 3, IMAGE["size"], IMAGE["size"]), dtype=np.float32)
        ids = rng.integers(1, START_ID, (rows, tokens))
        ends = np.full(rows, tokens - 1) if words == "full" else rng.integers(2, 9, rows)
        places = np.arange(tokens)[None]
        ids = np.where(places < ends[:, None], ids, 0)
        ids[:, 0] = START_ID
        ids[np.arange(rows), ends] = END_ID
        yield pixels, ids


def only_exact_products() -> None:
    """Hold that fp32 products are taken in fp32: no TF32, no bf16 behind the scenes."""
    import torch

    assert torch.get_float32_matmul_precision() == "highest"
    for part in ("matmul", "conv"):
        assert getattr(torch.backends.mkldnn, part).fp32_precision in ("none", "ieee")


def serve(step: Callable[[int], float]) -> None:
    """Answer each line "N" on standard input with N steps' seconds and the last loss, as one JSON line."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        begin, cpu = time.perf_counter(), time.process_time()
        loss = step(int(line))
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "loss": loss}), flush=True)
