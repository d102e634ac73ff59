"""Checkpoints that a killed run resumes from: safetensors and JSON, written whole or not at all.

They live outside the stage's output folder, which DVC empties before each run, in a folder keyed by what
determines the result. A checkpoint is a folder `step-<n>`. Tensors that every process holds whole are in
`tensors.safetensors`; with tensors that are divided (FSDP2's DTensors) each process writes the parts it holds
to `rank-<r>-of-<n>.safetensors`, whose header says where each part belongs. `state.json` holds every file's
SHA-256 and is written last, then the folder is renamed into place: one that stands is complete, and one that
is damaged later is told by the hashes and passed over. Parts can be read by any number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, Shard

from polyweft.errors import DataError, TrainingError
from polyweft.io import write_json
from polyweft.training import curve as curves
from polyweft.training.distributed import ALONE, World

STATE = "state.json"
WHOLE = "tensors.safetensors"


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    *,
    world: World = ALONE,
    curve: curves.Curve | None = None,
    keep: int = 2,
) -> None:
    """Write checkpoint `step` below `folder` and remove all but the last `keep`.

    With DTensors among `tensors` every process of `world` must call it at the same step (each writes its
    part); without, the main process writes and a call in another returns at once. `curve` is the main
    process's; its mark goes into the state.
    """
    divided = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    if not divided and not world.is_main:
        return
    aside, place = folder / f".step-{step:09d}", folder / f"step-{step:09d}"
    if world.is_main:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    if divided and world.size > 1:
        distributed.barrier()
    name = _rank_file(world.rank, world.size) if divided else WHOLE
    digest = _write_part(aside / name, tensors, world)
    digests = _gather(digest, world) if divided else [digest]
    if not world.is_main:
        return
    names = [_rank_file(rank, world.size) for rank in range(world.size)] if divided else [WHOLE]
    content: dict[str, Any] = {**state, "step": step, "files": dict(zip(names, digests, strict=True))}
    if curve is not None:
        content["curve"] = curve.mark()
    write_json(aside / STATE, content)
    shutil.rmtree(place, ignore_errors=True)
    aside.rename(place)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def newest(
    folder: Path, world: World = ALONE, warn: Callable[[str], None] = lambda text: None
) -> Checkpoint | None:
    """The newest whole checkpoint; None where there is none. `warn` is told of each that is damaged.

    The main process verifies the hashes and tells the others which it is, so that all take the same one.
    """
    found: Checkpoint | None = None
    if world.is_main:
        found = _newest_whole(folder, warn)
    if world.size == 1:
        return found
    step = torch.tensor([-1 if found is None else found.step], dtype=torch.int64, device=world.device)
    distributed.broadcast(step, src=0)
    if int(step) < 0 or world.is_main:
        return found
    return at(folder / f"step-{int(step):09d}")


def at(place: Path) -> Checkpoint:
    """The checkpoint in this folder, not verified."""
    return Checkpoint(place, json.loads((place / STATE).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class _Piece:
    """Where a part of a tensor lies: from `offset` along `dim` of the whole."""

    file: Path
    shape: tuple[int, ...]
    dim: int
    offset: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint; its tensors are read when asked for."""

    place: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps that were taken when it was written."""
        return int(self.state["step"])

    def names(self, prefix: str = "") -> list[str]:
        """The tensors whose name begins with `prefix`, without it, sorted."""
        return sorted(name.removeprefix(prefix) for name in self._pieces if name.startswith(prefix))

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's whole shape."""
        return self._parts(name)[0].shape

    def read(self, name: str) -> Tensor:
        """A tensor, whole, on the CPU."""
        first = self._parts(name)[0]
        return self._range(name, first.dim, 0, first.shape[first.dim] if first.shape else 1)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Every tensor whose name begins with `prefix`, whole, under its name without it."""
        return {name: self.read(prefix + name) for name in self.names(prefix)}

    def restore(self, targets: Mapping[str, Tensor], prefix: str) -> None:
        """Copy the tensors below `prefix` into `targets`, in place; of a DTensor only the part it holds here.

        Raises
        ------
        TrainingError
            The names or shapes differ: the checkpoint is of another model.
        """
        wrong = [f"missing {n}" for n in sorted(set(targets) - set(self.names(prefix)))]
        wrong += [f"unexpected {n}" for n in sorted(set(self.names(prefix)) - set(targets))]
        for name in sorted(set(targets) & set(self.names(prefix))):
            if self.shape(prefix + name) != tuple(targets[name].shape):
                came, expected = list(self.shape(prefix + name)), list(targets[name].shape)
                wrong.append(f"{name} of shape {came}, expected {expected}")
        if wrong:
            shown = "; ".join(wrong[:5]) + ("; ..." if len(wrong) > 5 else "")
            raise TrainingError(
                f"the checkpoint {self.place} is of another model: {shown}. Remove its folder to begin anew."
            )
        with torch.no_grad():
            for name, target in targets.items():
                if isinstance(target, DTensor):
                    local = target.to_local()
                    dim, offset = _placed(target)
                    if local.numel():
                        local.copy_(self._range(prefix + name, dim, offset, local.shape[dim]))
                else:
                    target.copy_(self.read(prefix + name))

    def _parts(self, name: str) -> list[_Piece]:
        if name not in self._pieces:
            raise TrainingError(f"the checkpoint {self.place} holds no tensor {name}. Remove its folder.")
        return self._pieces[name]

    def _range(self, name: str, dim: int, begin: int, length: int) -> Tensor:
        """Rows `begin` to `begin + length` along `dim` of the whole tensor, put together from its parts."""
        out: Tensor | None = None
        for piece in self._parts(name):
            stored = self._files[piece.file].get_slice(name)
            shape = list(stored.get_shape())
            if not shape or (shape == list(piece.shape) and begin == 0 and length == shape[dim]):
                whole: Tensor = self._files[piece.file].get_tensor(name)
                return whole
            first, last = max(begin, piece.offset), min(begin + length, piece.offset + shape[dim])
            if first >= last:
                continue
            rows = slice(first - piece.offset, last - piece.offset)
            taken = stored[(*(slice(None),) * dim, rows)]
            if out is None:
                size = list(piece.shape)
                size[dim] = length
                out = torch.empty(size, dtype=taken.dtype)
            out.narrow(dim, first - begin, last - first).copy_(taken)
        assert out is not None
        return out

    @cached_property
    def _files(self) -> dict[Path, Any]:
        from safetensors import safe_open

        return {self.place / name: safe_open(self.place / name, "pt") for name in sorted(self.state["files"])}

    @cached_property
    def _pieces(self) -> dict[str, list[_Piece]]:
        pieces: dict[str, list[_Piece]] = {}
        for path, file in self._files.items():
            divided = json.loads((file.metadata() or {}).get("divided", "{}"))
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                shape, dim, offset = divided.get(name) or (file.get_slice(name).get_shape(), 0, 0)
                pieces.setdefault(name, []).append(_Piece(path, tuple(shape), dim, offset))
        return pieces


def _newest_whole(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    damaged: list[str] = []
    whole: Checkpoint | None = None
    for place in sorted(folder.glob("step-*"), reverse=True):
        if _is_whole(place):
            whole = at(place)
            break
        damaged.append(place.name)
    anew = "none before it is whole: training begins anew"
    instead = anew if whole is None else f"{whole.place.name} is used"
    for name in damaged:
        warn(f"checkpoint {name} is damaged, or the curve beside it; {instead}")
    return whole


def _is_whole(place: Path) -> bool:
    try:
        state = at(place).state
        mark = state.get("curve")
        return all(_digest(place / name) == digest for name, digest in state["files"].items()) and (
            mark is None or curves.holds(place.parent, mark)
        )
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _write_part(path: Path, tensors: Mapping[str, Tensor], world: World) -> str:
    """Write what this process is to write of `tensors`; the file's SHA-256."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    content: dict[str, Tensor] = {}
    divided: dict[str, list[Any]] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        part = tensor.detach()
        if isinstance(part, DTensor):
            dim, offset = _placed(part)
            divided[name] = [list(part.shape), dim, offset]
            part = part.to_local()
            if not part.numel():
                continue
        elif not world.is_main:
            continue
        part = part.contiguous()
        if part.untyped_storage().data_ptr() in seen:  # tied weights: the format refuses shared memory
            part = part.clone()
        seen.add(part.untyped_storage().data_ptr())
        content[name] = part
    try:
        save_file(content, path, metadata={"divided": json.dumps(divided)} if divided else None)
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"could not write the checkpoint {path.parent}: {error}. Free some space, then run the same "
            "command again: training goes on from the checkpoint before."
        ) from error
    return _digest(path)


def _placed(tensor: DTensor) -> tuple[int, int]:
    """The dimension along which a DTensor is divided, and where this process's part begins."""
    mesh, placements = tensor.device_mesh, tensor.placements
    if mesh.ndim != 1 or not isinstance(placements[0], Shard):
        raise TrainingError(
            f"a tensor placed as {placements} cannot be checkpointed; shard over one dimension."
        )
    dim = placements[0].dim
    size, parts = tensor.shape[dim], mesh.size()
    return dim, min(size, mesh.get_local_rank() * -(-size // parts))  # as torch.chunk divides


def _rank_file(rank: int, size: int) -> str:
    return f"rank-{rank}-of-{size}.safetensors"


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _gather(digest: str, world: World) -> list[str]:
    """Every process's SHA-256; returns when all have written."""
    if world.size == 1:
        return [digest]
    mine = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8, device=world.device)
    every = [torch.empty_like(mine) for _ in range(world.size)]
    distributed.all_gather(every, mine)
    return [bytes(row.tolist()).hex() for row in every]
