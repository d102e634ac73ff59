"""Triton's model configurations as text: what each served model is called, takes and answers.

For a registered model, N being its name with `-` written `_`:

- components, one numbered folder a version: `N_image_preprocess` and `N_text_preprocess` (raw bytes to
  tensors), `N_image_encoder`, `N_text_encoder` and `N_classifier` (ONNX), `N_join` (zeros for what
  is absent);
- ensembles, which clients call: `N`, `N_image`, `N_text`; each step pins an exact component version.

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

ENSEMBLES = ("both", "image", "text")
CANDIDATE = "candidate"
OPTIONAL = {
    "text_preprocess": ("image_present",),
    "join": tuple(
        f"{side}_{what}" for side in ("image", "text") for what in ("embedding", "features", "present")
    ),
}
"""Inputs that an ensemble of one side does not pass."""


@dataclass(frozen=True)
class Geometry:
    """The sizes that configurations state: pixels a side, D, F, number of classes, and what the head sees."""

    image_size: int
    embedding_size: int
    feature_size: int
    classes: int
    sees: str

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> Geometry:
        """From an export's `model.json`."""
        return cls(
            image_size=int(model["image"]["size"]),
            embedding_size=int(model["embedding_size"]),
            feature_size=int(model["feature_size"]),
            classes=len(model["classes"]),
            sees=str(model["sees"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    def components(self) -> tuple[str, ...]:
        """The kinds of components of this geometry, in the order in which they are loaded."""
        head = ("classifier",) if self.classes else ()
        return ("image_preprocess", "text_preprocess", "image_encoder", "text_encoder", "join", *head)


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
    """`N` for both, `N_image`, `N_text`, and `N_candidate` for the one that only a rollout asks."""
    return name if kind == "both" else f"{name}_{kind}"


def component_config(
    kind: str, model_name: str, geometry: Geometry, versions: Sequence[int], settings: ServingSettings
) -> str:
    """The `config.pbtxt` of a component that keeps exactly `versions` loaded."""
    inputs, outputs = _tensors(kind, geometry)
    onnx = kind in ("image_encoder", "text_encoder", "classifier")
    lines = [
        f'name: "{model_name}"',
        f'backend: "{"onnxruntime" if onnx else "python"}"',
        f"max_batch_size: {settings.max_batch_size}",
        *(_tensor("input", *tensor, optional=tensor[0] in OPTIONAL.get(kind, ())) for tensor in inputs),
        *(_tensor("output", *tensor) for tensor in outputs),
        f"version_policy {{ specific {{ versions: [ {', '.join(map(str, sorted(versions)))} ] }} }}",
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
        # What takes rows one by one anyway gains nothing by waiting for others.
        f"dynamic_batching {{ max_queue_delay_microseconds: {settings.queue_delay_microseconds * onnx} }}",
    ]
    if onnx:
        lines.append(_parameter("intra_op_thread_count", str(settings.threads)))
    return "\n".join(lines) + "\n"


def ensemble_config(
    kind: str, name: str, geometry: Geometry, version: int, generation: int, settings: ServingSettings
) -> str:
    """The `config.pbtxt` of an ensemble (`ENSEMBLES`, `CANDIDATE`), each step pinned to `version`."""
    sides = (kind,) if kind in ("image", "text") else ("image", "text")
    classified = _classified(kind, geometry)
    outputs = [(f"{side}_embedding", "TYPE_FP32", [geometry.embedding_size]) for side in sides]
    if classified:
        outputs.append(("probabilities", "TYPE_FP32", [geometry.classes]))
    outputs.append(("model_version", "TYPE_STRING", [1]))
    steps: list[str] = []
    joined: dict[str, str] = {}

    def step(component: str, inputs: dict[str, str], outputs: dict[str, str]) -> None:
        steps.append(_step(component_name(name, component, generation), version, inputs, outputs))

    for side, tensor in zip(
        sides, ["pixel_values" if s == "image" else "input_ids" for s in sides], strict=True
    ):
        answers = {tensor: tensor, "present": f"{side}_present"}
        if side == sides[0]:
            answers["model_version"] = "model_version"
        # One step at a time reads the client's bytes: when a step fails, the server frees them, and another
        # step that still read them has crashed it (signal 11, tritonserver 2.51, HTTP).
        after = {"image_present": "image_present"} if sides == ("image", "text") and side == "text" else {}
        step(f"{side}_preprocess", {side: side, **after}, answers)
        raw = {f"{side}_{what}": f"raw_{side}_{what}" for what in ("embedding", "features")}
        step(f"{side}_encoder", {tensor: tensor}, raw)
        joined |= raw | {f"{side}_present": f"{side}_present"}
    answers = {f"{side}_embedding": f"{side}_embedding" for side in sides}
    features = {what: what for what in ("image_features", "text_features", "present")}
    step("join", joined, answers | (features if classified else {}))
    if classified:
        step("classifier", features, {"probabilities": "probabilities"})
    lines = [
        f'name: "{ensemble_name(name, kind)}"',
        'platform: "ensemble"',
        f"max_batch_size: {settings.max_batch_size}",
        *(_tensor("input", side, "TYPE_STRING", [1]) for side in sides),
        *(_tensor("output", *tensor) for tensor in outputs),
        f"version_policy {{ specific {{ versions: [ {version} ] }} }}",
        "ensemble_scheduling { step [\n" + ",\n".join(steps) + "\n] }",
    ]
    return "\n".join(lines) + "\n"


def _classified(kind: str, geometry: Geometry) -> bool:
    if not geometry.classes:
        return False
    return kind in ("both", CANDIDATE) or kind == geometry.sees


Tensor = tuple[str, str, list[int]]


def _tensors(kind: str, geometry: Geometry) -> tuple[list[Tensor], list[Tensor]]:
    size = geometry.image_size
    pixels: Tensor = ("pixel_values", "TYPE_FP32", [3, size, size])
    ids: Tensor = ("input_ids", "TYPE_INT64", [-1])
    version: Tensor = ("model_version", "TYPE_STRING", [1])
    present: Tensor = ("present", "TYPE_FP32", [1])
    both: Tensor = ("present", "TYPE_FP32", [2])
    side = kind.split("_")[0]

    def embedding(side: str) -> Tensor:
        return (f"{side}_embedding", "TYPE_FP32", [geometry.embedding_size])

    def features(side: str) -> Tensor:
        return (f"{side}_features", "TYPE_FP32", [geometry.feature_size])

    if kind == "image_preprocess":
        return [("image", "TYPE_STRING", [1])], [pixels, present, version]
    if kind == "text_preprocess":
        after: Tensor = ("image_present", "TYPE_FP32", [1])
        return [("text", "TYPE_STRING", [1]), after], [ids, present, version]
    if kind.endswith("_encoder"):
        return [pixels if side == "image" else ids], [embedding(side), features(side)]
    ends = [embedding("image"), features("image"), embedding("text"), features("text")]
    if kind == "join":
        there: list[Tensor] = [(f"{s}_present", "TYPE_FP32", [1]) for s in ("image", "text")]
        return [*ends, *there], [*ends, both]
    if kind == "classifier":
        return [features("image"), features("text"), both], [
            ("probabilities", "TYPE_FP32", [geometry.classes])
        ]
    raise ValueError(f"no component is called {kind!r}")


def _tensor(way: str, name: str, kind: str, dims: Sequence[int], *, optional: bool = False) -> str:
    extra = " optional: true" if optional else ""
    return f'{way} [ {{ name: "{name}" data_type: {kind} dims: [ {", ".join(map(str, dims))} ]{extra} }} ]'


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'


def _step(model: str, version: int, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    lines = [f'  {{ model_name: "{model}" model_version: {version}']
    lines += [f'    input_map {{ key: "{key}" value: "{value}" }}' for key, value in inputs.items()]
    lines += [f'    output_map {{ key: "{key}" value: "{value}" }}' for key, value in outputs.items()]
    return "\n".join(lines) + " }"
