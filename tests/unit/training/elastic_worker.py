"""A worker of the launch tests: it adds up numbers with the others, step by step."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch import distributed

from polyweft.processes import die_with_parent
from polyweft.training import checkpoint
from polyweft.training.distributed import agree, world


def main() -> None:
    """Go on from the newest checkpoint to the last step; leave a line a step in `steps.jsonl`."""
    die_with_parent()
    place = Path(sys.argv[1])
    spec, folder = json.loads(place.read_text()), place.parent
    with world() as here:
        found = checkpoint.newest(folder, here)
        total = torch.zeros(1)
        begin = 0
        if found is not None:
            found.restore({"total": total}, "")
            begin = found.step
        if spec.get("fail") == "ours":
            (folder / "error.json").write_text(json.dumps({"message": "as asked"}))
            sys.exit(1)
        for step in range(begin, spec["steps"]):
            part = torch.tensor([float(step) / here.size])
            if here.size > 1:
                distributed.all_reduce(part)
            total += part
            assert not agree(False, here)
            if here.is_main:
                line = {"step": step, "size": here.size, "pid": os.getpid(), "agent": os.getppid()}
                with (folder / "steps.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
            checkpoint.save(folder, step + 1, {"total": total}, {}, world=here)
            time.sleep(spec.get("pause", 0.0))
        if here.is_main:
            (folder / "result.json").write_text(json.dumps({"total": float(total), "size": here.size}))


if __name__ == "__main__":
    main()
