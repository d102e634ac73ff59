"""Triton's model configurations as text: what each served model is called, takes and answers.

For a registered model, N being its name with `-` written `_`:

- components, one numbered folder a version: for each modality `N_<m>_preprocess` (raw bytes to tensors) and
  `N_<m>_encoder` (ONNX); `N_join` (zeros for what is absent); `N_head` (ONNX) where the model has a head;
  `N_generate` where it writes captions;
- ensembles, which clients call: `N` takes every modality, `N_<m>` one alone; each step pins an exact
  component version.

Sizes stand in a component's one configuration, which all its versions share, and the official container
holds them against the ONNX. So versions of another geometry live in components of another generation
(`N_image_encoder_g2`); the ensembles, which are rewritten at each switch, keep their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polyweft.errors import ServingError
from polyweft.export import signature
from polyweft.export.signature import DESCRIBED, HEAD, Graph

ALL = "all"
CANDIDATE = "candidate"
JOIN, GENERATE = "join", "generate"
AFTER = "after"
"""The input of a preprocessing step that another one's end is passed to."""

Tensor = tuple[str, str, list[int]]
_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}


@dataclass(frozen=True)
class Geometry:
    """What configurations state of a model: its modalities and every size; the keys are `model.json`'s."""

    modalities: list[str]
    inputs: dict[str, dict[str, Any]]
    features: dict[str, list[int]]
    embedding_size: int
    sees: list[str]
    outputs: dict[str, list[int]]
    generates: bool

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> Geometry:
        """From an export's `model.json`."""
        kept = ("tensor", "dtype", "shape", "largest")
        return cls(
            modalities=list(model["modalities"]),
            inputs={name: {key: given[key] for key in kept} for name, given in model["inputs"].items()},
            features=dict(model["features"]),
            embedding_size=int(model["embedding_size"]),
            sees=list(model["sees"]),
            outputs=dict(model["outputs"]),
            generates=bool(model["generates"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    def graphs(self) -> dict[str, Graph]:
        """The export's graphs by name."""
        return signature.graphs(asdict(self))

    def components(self) -> tuple[str, ...]:
        """The kinds of components of this geometry, in the order in which they are loaded."""
        sides = [f"{name}_{what}" for what in ("preprocess", "encoder") for name in self.modalities]
        head = [HEAD] if self.outputs else []
        return (*sides, JOIN, *head, *([GENERATE] if self.generates else []))

    def ensembles(self) -> tuple[str, ...]:
        """What clients call: `ALL`, and each modality that is answered with something by itself."""
        return (ALL, *(name for name in self.modalities if self.answers(name)))

    def answers(self, kind: str) -> list[Tensor]:
        """The outputs of an ensemble, but for `model_version`.

        A modality alone has its embedding, the head's answers where the head looks at it, and a caption.
        """
        taken = self.taken(kind)
        found: list[Tensor] = []
        if self.embedding_size:
            found += [(f"{name}_embedding", "TYPE_FP32", [self.embedding_size]) for name in taken]
        if set(taken) & set(self.sees):
            found += [(name, "TYPE_FP32", shape) for name, shape in self.outputs.items()]
        if self.generates and DESCRIBED in taken:
            found.append(("caption", "TYPE_STRING", [1]))
        return found

    def taken(self, kind: str) -> list[str]:
        """The modalities that an ensemble takes."""
        return self.modalities if kind in (ALL, CANDIDATE) else [kind]


@dataclass(frozen=True)
class ServingSettings:
    """How every served model runs.

    Attributes
    ----------
    max_batch_size
        Rows that one request, or one batch that Triton forms of several, may hold.
    threads
        CPU threads of each ONNX session.
    queue_delay_microseconds
        How long a request may wait before an ONNX model for others to form a batch with.
    """

    max_batch_size: int = 32
    threads: int = 1
    queue_delay_microseconds: int = 500


def triton_name(name: str) -> str:
    """The served name of a registered model; refuses names that are no safe file names."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", name):
        raise ServingError(f"model name {name!r}: expected letters, digits, `-` and `_`, at most 100")
    return name.replace("-", "_")


def component_name(name: str, kind: str, generation: int) -> str:
    """E.g. `scenes_image_encoder`; from the second generation on with a suffix."""
    return f"{name}_{kind}" + (f"_g{generation}" if generation > 1 else "")


def ensemble_name(name: str, kind: str) -> str:
    """E.g. `scenes` for `ALL`, `scenes_image` for `image`."""
    return name if kind == ALL else f"{name}_{kind}"


def component_config(
    kind: str, model_name: str, geometry: Geometry, versions: Sequence[int], settings: ServingSettings
) -> str:
    """The `config.pbtxt` of a component that keeps exactly `versions` loaded."""
    inputs, outputs = _tensors(kind, geometry)
    onnx = kind == HEAD or kind.endswith("_encoder")
    lines = [
        f'name: "{model_name}"',
        f'backend: "{"onnxruntime" if onnx else "python"}"',
        f"max_batch_size: {settings.max_batch_size}",
        # An ensemble of one modality passes that one's alone.
        *(_tensor("input", *tensor, optional=kind == JOIN or tensor[0] == AFTER) for tensor in inputs),
        *(_tensor("output", *tensor) for tensor in outputs),
        f"version_policy {{ specific {{ versions: [ {', '.join(map(str, sorted(versions)))} ] }} }}",
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
        # What takes rows one by one anyway gains nothing by waiting for others.
        f"dynamic_batching {{ max_queue_delay_microseconds: {settings.queue_delay_microseconds * onnx} }}",
    ]
    if onnx or kind == GENERATE:
        lines.append(_parameter("intra_op_thread_count", str(settings.threads)))
    if kind.endswith("_preprocess"):
        lines.append(_parameter("modality", kind.removesuffix("_preprocess")))
    return "\n".join(lines) + "\n"


def ensemble_config(
    kind: str, name: str, geometry: Geometry, version: int, generation: int, settings: ServingSettings
) -> str:
    """The `config.pbtxt` of an ensemble (`Geometry.ensembles`, `CANDIDATE`), pinned to `version`."""
    answers = geometry.answers(kind)
    lines = [
        f'name: "{ensemble_name(name, kind)}"',
        'platform: "ensemble"',
        f"max_batch_size: {settings.max_batch_size}",
        *(_tensor("input", modality, "TYPE_STRING", [1]) for modality in geometry.taken(kind)),
        *(_tensor("output", *tensor) for tensor in (*answers, ("model_version", "TYPE_STRING", [1]))),
        f"version_policy {{ specific {{ versions: [ {version} ] }} }}",
        "ensemble_scheduling { step ["
        + ",".join(
            _step(component_name(name, component, generation), version, inputs, outputs)
            for component, inputs, outputs in _steps(kind, geometry, {output for output, _, _ in answers})
        )
        + "\n] }",
    ]
    return "\n".join(lines) + "\n"


Step = tuple[str, dict[str, str], dict[str, str]]


def _steps(kind: str, geometry: Geometry, wanted: set[str]) -> list[Step]:
    """Component, what its inputs are taken from, and what its outputs are called within the ensemble."""
    steps: list[Step] = []
    joined: dict[str, str] = {}
    taken = geometry.taken(kind)
    for place, modality in enumerate(taken):
        tensor = geometry.inputs[modality]["tensor"]
        made = {tensor: f"{modality}_inputs", "present": f"{modality}_present"}
        if place == 0:
            made["model_version"] = "model_version"
        # One step at a time reads the client's bytes: when a step fails, the server frees them, and another
        # step that still read them has crashed it (signal 11, tritonserver 2.51, HTTP).
        after = {AFTER: f"{taken[place - 1]}_present"} if place else {}
        steps.append((f"{modality}_preprocess", {modality: modality, **after}, made))
        raw = {output: f"raw_{output}" for output in geometry.graphs()[modality].outputs}
        steps.append((f"{modality}_encoder", {tensor: f"{modality}_inputs"}, raw))
        joined |= raw | {f"{modality}_present": f"{modality}_present"}
    classified = wanted & set(geometry.outputs)
    needed = list(geometry.graphs()[HEAD].inputs) if classified else []
    passed = {output: output for output in [*sorted(wanted), *needed] if output in _joined(geometry)}
    if passed:
        steps.append((JOIN, joined, passed))
    if classified:
        steps.append((HEAD, {name: name for name in needed}, {name: name for name in sorted(classified)}))
    if "caption" in wanted:
        features, present = f"{DESCRIBED}_features", f"{DESCRIBED}_present"
        steps.append((GENERATE, {features: f"raw_{features}", present: present}, {"caption": "caption"}))
    return steps


def _joined(geometry: Geometry) -> dict[str, list[int]]:
    """What `join` answers: every modality's embedding and features, and `present`."""
    outputs = {
        name: tensor.shape
        for modality in geometry.modalities
        for name, tensor in geometry.graphs()[modality].outputs.items()
    }
    return {**outputs, "present": [len(geometry.modalities)]}


def _tensors(kind: str, geometry: Geometry) -> tuple[list[Tensor], list[Tensor]]:
    version: Tensor = ("model_version", "TYPE_STRING", [1])
    present: Tensor = ("present", "TYPE_FP32", [1])
    if kind.endswith("_preprocess"):
        modality = kind.removesuffix("_preprocess")
        given = geometry.inputs[modality]
        made: Tensor = (given["tensor"], _TYPES[given["dtype"]], given["shape"])
        return [(modality, "TYPE_STRING", [1]), (AFTER, "TYPE_FP32", [1])], [made, present, version]
    if kind == JOIN:
        outputs: list[Tensor] = [(name, "TYPE_FP32", shape) for name, shape in _joined(geometry).items()]
        there: list[Tensor] = [(f"{name}_present", "TYPE_FP32", [1]) for name in geometry.modalities]
        return [*outputs[:-1], *there], outputs
    if kind == GENERATE:
        features = geometry.features[DESCRIBED]
        return [
            (f"{DESCRIBED}_features", "TYPE_FP32", features),
            (f"{DESCRIBED}_present", "TYPE_FP32", [1]),
        ], [("caption", "TYPE_STRING", [1])]
    graph = geometry.graphs()[kind.removesuffix("_encoder")]
    given_and_made = (
        [(name, _TYPES[tensor.dtype], tensor.shape) for name, tensor in part.items()]
        for part in (graph.inputs, graph.outputs)
    )
    takes, gives = given_and_made
    return takes, gives


def _tensor(way: str, name: str, kind: str, dims: Sequence[int], *, optional: bool = False) -> str:
    extra = " optional: true" if optional else ""
    return f'{way} [ {{ name: "{name}" data_type: {kind} dims: [ {", ".join(map(str, dims))} ]{extra} }} ]'


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'


def _step(model: str, version: int, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    lines = [f'\n  {{ model_name: "{model}" model_version: {version}']
    lines += [f'    input_map {{ key: "{key}" value: "{value}" }}' for key, value in inputs.items()]
    lines += [f'    output_map {{ key: "{key}" value: "{value}" }}' for key, value in outputs.items()]
    return "\n".join(lines) + " }"
