"""open_clip's own training step, driven by its own `train_one_epoch`; runs in an environment of its own."""

from __future__ import annotations

import argparse
import logging
from itertools import islice
from types import SimpleNamespace

import torch
from workload import ADAMW, BATCH, EMBEDDING, IMAGE, TEXT, batches, only_exact_products, serve

# torchvision's compiled half does not load beside this torch; its import asks only that these are declared.
_OPERATORS = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from open_clip import ClipLoss, get_input_dtype  # noqa: E402
from open_clip.model import CLIP  # noqa: E402
from open_clip_train.train import train_one_epoch  # noqa: E402


def model() -> CLIP:
    """Its CLIP of the workload's sizes; everything else as its configurations leave it."""
    vision = {
        "image_size": IMAGE["size"],
        "patch_size": IMAGE["patch"],
        "layers": IMAGE["layers"],
        "width": IMAGE["width"],
        "head_width": IMAGE["width"] // IMAGE["heads"],
    }
    text = {
        "context_length": TEXT["tokens"],
        "vocab_size": TEXT["vocabulary"],
        "layers": TEXT["layers"],
        "width": TEXT["width"],
        "heads": TEXT["heads"],
    }
    return CLIP(embed_dim=EMBEDDING, vision_cfg=vision, text_cfg=text, output_dict=True)


def optimizer(trained: torch.nn.Module) -> torch.optim.AdamW:
    """As its main.py builds it: no weight decay on gains and biases."""
    named = list(trained.named_parameters())
    gains = [
        p for n, p in named if p.ndim < 2 or any(part in n for part in ("bn", "ln", "bias", "logit_scale"))
    ]
    chosen = {id(p) for p in gains}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [{"params": gains, "weight_decay": 0.0}, {"params": rest, "weight_decay": ADAMW["weight_decay"]}]
    return torch.optim.AdamW(groups, lr=ADAMW["lr"], betas=(ADAMW["beta1"], ADAMW["beta2"]), eps=ADAMW["eps"])


class Loader:
    """What its loop asks of a data loader, over batches that lie ready in memory."""

    num_samples = 1_000_000

    def __init__(self, ready: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.ready, self.num_batches, self.position = ready, 0, 0
        self.dataloader = self

    def set_epoch(self, epoch: int) -> None:
        """Nothing to shuffle."""

    def __iter__(self):
        for _ in range(self.num_batches):
            yield self.ready[self.position % len(self.ready)]
            self.position += 1


def main() -> None:
    """Build, then answer requests for steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", choices=["bf16", "fp32"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--words", required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    only_exact_products()
    torch.manual_seed(17)
    logging.disable(logging.CRITICAL)
    trained = model()
    adamw = optimizer(trained)
    ready = [(torch.from_numpy(p), torch.from_numpy(i)) for p, i in islice(batches(BATCH, options.words), 4)]
    loader = Loader(ready)
    precision = "amp_bf16" if options.precision == "bf16" else "fp32"
    assert get_input_dtype(precision) is None
    settings = SimpleNamespace(
        device="cpu",
        precision=precision,
        distill=False,
        accum_freq=1,
        skip_scheduler=True,
        horovod=False,
        grad_clip_norm=1.0,
        rank=0,
        local_rank=0,
        world_size=1,
        log_every_n_steps=10**9,
        batch_size=BATCH,
        wandb=False,
        log_local=False,
    )
    record: dict[str, float] = {}

    class Loss(ClipLoss):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            record["loss"] = out["contrastive_loss"].detach()
            return out

    def step(count: int) -> float:
        loader.num_batches = count
        train_one_epoch(trained, {"train": loader}, Loss(), 0, adamw, None, None, None, settings)
        return float(record["loss"])

    serve(step)


if __name__ == "__main__":
    main()
