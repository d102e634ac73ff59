"""A small client of a served model over plain tritonclient: raw bytes in, answers and a version out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from polyweft.errors import ServingError
from registry.configs import ALL, ensemble_name, triton_name

FloatArray = npt.NDArray[np.float32]
Protocol = Literal["grpc", "http"]
BATCH_SIZE = 16


@dataclass(frozen=True)
class Answer:
    """What the server said of B rows.

    Attributes
    ----------
    arrays
        `<modality>_embedding` float32 [B, D] and the head's outputs (`probabilities` float32 [B, C], ...):
        those that the asked ensemble gives. An absent modality's embedding is zeros.
    model_version
        The export hash of the model that answered, the same for all rows.
    captions
        Of a model that writes them, one a row; empty for a row without an image.
    """

    arrays: dict[str, FloatArray]
    model_version: str
    captions: list[str] = field(default_factory=list)


class Client:
    """Asks one served model. Use it as a context manager, and from one thread.

    Parameters
    ----------
    url
        `host:port` of the server's gRPC or HTTP port; a scheme in front is dropped.
    name
        The registered model's name (`polyweft-scenes`) or the served one (`polyweft_scenes`).
    protocol
        Which of the two ports `url` names.
    batch_size
        Rows a request holds at most; by default 16, or the served model's `max_batch_size` where less.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        protocol: Protocol = "grpc",
        batch_size: int | None = None,
        timeout_seconds: float = 60.0,
    ) -> None:
        self.url, self.name, self.protocol = url.split("://")[-1].rstrip("/"), triton_name(name), protocol
        self._batch_size, self._timeout = batch_size, timeout_seconds
        self._modalities: list[str] = []
        self._triton: Any = _module(protocol)
        if protocol == "http":
            self._client = self._triton.InferenceServerClient(
                self.url, connection_timeout=timeout_seconds, network_timeout=timeout_seconds
            )
        else:
            self._client = self._triton.InferenceServerClient(self.url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def embed(self, modality: str, contents: Sequence[bytes]) -> tuple[FloatArray, str]:
        """Raw bytes of one modality to unit-length embeddings [B, D], and the model's version."""
        answer = self.ask_alone(modality, contents)
        return _of(answer, f"{modality}_embedding", self.name), answer.model_version

    def embed_images(self, images: Sequence[bytes]) -> tuple[FloatArray, str]:
        """Encoded images (JPEG, PNG, ...) to unit-length embeddings [B, D], and the model's version."""
        return self.embed("image", images)

    def embed_texts(self, texts: Sequence[str]) -> tuple[FloatArray, str]:
        """Captions to unit-length embeddings [B, D], and the model's version."""
        return self.embed("text", [text.encode("utf-8") for text in texts])

    def classify(self, images: Sequence[bytes], texts: Sequence[str]) -> tuple[FloatArray, str]:
        """Class probabilities [B, C] and the model's version; an empty image or text is an absent one."""
        answer = self.ask({"image": images, "text": [text.encode("utf-8") for text in texts]})
        return _of(answer, "probabilities", self.name), answer.model_version

    def describe(self, images: Sequence[bytes]) -> tuple[list[str], str]:
        """A caption of each image, and the model's version."""
        answer = self.ask_alone("image", images)
        if not answer.captions:
            raise ServingError(f"{self.name} writes no captions. Train the family `captioner`.")
        return answer.captions, answer.model_version

    def ask(self, contents: Mapping[str, Sequence[bytes]]) -> Answer:
        """Everything the model says of B rows of raw bytes by modality.

        An empty string is an absent modality; so are modalities that the model takes and `contents` lacks.
        """
        known = self._modalities
        try:
            return self._ask_all(contents)
        except ServingError:
            if not known or (self._look(ALL) and self._modalities == known):
                raise
            # A rollout brought a model that takes other modalities.
            return self._ask_all(contents)

    def _ask_all(self, contents: Mapping[str, Sequence[bytes]]) -> Answer:
        nothing = [b""] * _rows(contents)
        if not self._modalities:
            self._look(ALL)
        unknown = sorted(set(contents) - set(self._modalities))
        if unknown:
            raise ServingError(f"{self.name} takes {', '.join(self._modalities)}, not {unknown[0]!r}.")
        return self._ask(ALL, {name: contents.get(name, nothing) for name in self._modalities})

    def ask_alone(self, modality: str, contents: Sequence[bytes]) -> Answer:
        """Everything the model says of B rows of one modality."""
        return self._ask(modality, {modality: contents})

    def _ask(self, kind: str, inputs: dict[str, Sequence[bytes]]) -> Answer:
        """Ask in batches; if a rollout came between two, ask all again, so that versions never mix."""
        count = _rows(inputs)
        size = self._batch_size or min(BATCH_SIZE, self._look(kind))
        self._batch_size = size
        for _ in range(3):
            parts = [
                self._infer(kind, {name: values[begin : begin + size] for name, values in inputs.items()})
                for begin in range(0, count, size)
            ]
            versions = {version for _, part_versions in parts for version in part_versions}
            if len(versions) == 1:
                arrays = {name: np.concatenate([part[name] for part, _ in parts]) for name in parts[0][0]}
                captions = arrays.pop("caption", np.zeros((0, 1), object)).reshape(-1)
                return Answer(arrays, versions.pop(), [caption.decode("utf-8") for caption in captions])
        raise ServingError(
            f"{self.name} at {self.url} changed its version three times while it was asked. Ask again."
        )

    def _look(self, kind: str) -> int:
        """Read the served configuration: the modalities of `ALL`, and the most rows of a request."""
        from tritonclient.utils import InferenceServerException

        model = ensemble_name(self.name, kind)
        try:
            if self.protocol == "http":
                config = self._client.get_model_config(model)
            else:
                answer = self._client.get_model_config(model, as_json=True, client_timeout=self._timeout)
                config = answer["config"]
        except (InferenceServerException, OSError) as error:
            raise ServingError(f"{model} at {self.url} did not answer: {error}") from error
        if kind == ALL:
            self._modalities = [given["name"] for given in config["input"]]
        return int(config["max_batch_size"])

    def _infer(self, kind: str, inputs: dict[str, Sequence[bytes]]) -> tuple[dict[str, FloatArray], set[str]]:
        from tritonclient.utils import InferenceServerException

        model = ensemble_name(self.name, kind)
        tensors = []
        for name, values in inputs.items():
            tensors.append(self._triton.InferInput(name, [len(values), 1], "BYTES"))
            tensors[-1].set_data_from_numpy(np.array([[value] for value in values], dtype=object))
        try:
            extra = {"client_timeout": self._timeout} if self.protocol == "grpc" else {}
            result = self._client.infer(model, tensors, **extra)
        except (InferenceServerException, OSError) as error:
            raise ServingError(f"{model} at {self.url} did not answer: {error}") from error
        response = result.get_response()
        outputs = response["outputs"] if self.protocol == "http" else response.outputs
        names = [output["name"] if self.protocol == "http" else output.name for output in outputs]
        versions = {value.decode() for value in result.as_numpy("model_version").reshape(-1)}
        return {name: result.as_numpy(name) for name in names if name != "model_version"}, versions


def _rows(contents: Mapping[str, Sequence[bytes]]) -> int:
    counts = [len(values) for values in contents.values()]
    if len(set(counts)) != 1 or not counts[0]:
        raise ServingError(f"inputs hold {counts} rows; expected as many of each, and some")
    return counts[0]


def _of(answer: Answer, name: str, model: str) -> FloatArray:
    if name not in answer.arrays:
        raise ServingError(f"{model} does not answer with {name}, only with {sorted(answer.arrays)}.")
    return answer.arrays[name]


def _module(protocol: Protocol) -> Any:
    """Import one of tritonclient's two clients: late, for it costs half a second."""
    if protocol == "http":
        import tritonclient.http

        return tritonclient.http
    if protocol == "grpc":
        import tritonclient.grpc

        return tritonclient.grpc
    raise ServingError(f"protocol {protocol!r}: expected grpc or http")
