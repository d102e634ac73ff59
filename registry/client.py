"""A small client of a served model over plain tritonclient: bytes and texts in, arrays and a version out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from polyweft.errors import ServingError
from registry.configs import ensemble_name, triton_name

FloatArray = npt.NDArray[np.float32]
Protocol = Literal["grpc", "http"]
BATCH_SIZE = 16


@dataclass(frozen=True)
class Answer:
    """What the server said of B rows.

    Attributes
    ----------
    arrays
        `image_embedding` and `text_embedding` float32 [B, D], `probabilities` float32 [B, C]: those that
        the asked ensemble gives. An absent modality's embedding is zeros.
    model_version
        The export hash of the model that answered, the same for all rows.
    """

    arrays: dict[str, FloatArray]
    model_version: str


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

    def embed_images(self, images: Sequence[bytes]) -> tuple[FloatArray, str]:
        """Encoded images (JPEG, PNG, ...) to unit-length embeddings [B, D], and the model's version."""
        answer = self._ask("image", {"image": images})
        return answer.arrays["image_embedding"], answer.model_version

    def embed_texts(self, texts: Sequence[str]) -> tuple[FloatArray, str]:
        """Captions to unit-length embeddings [B, D], and the model's version."""
        answer = self._ask("text", {"text": [text.encode("utf-8") for text in texts]})
        return answer.arrays["text_embedding"], answer.model_version

    def classify(self, images: Sequence[bytes], texts: Sequence[str]) -> tuple[FloatArray, str]:
        """Class probabilities [B, C] and the model's version; an empty image or text is an absent one."""
        answer = self.ask(images, [text.encode("utf-8") for text in texts])
        if "probabilities" not in answer.arrays:
            raise ServingError(f"{self.name} has no class head, so it cannot classify. Train with classes.")
        return answer.arrays["probabilities"], answer.model_version

    def ask(self, images: Sequence[bytes], texts: Sequence[bytes]) -> Answer:
        """Everything the model says of B pairs of raw bytes; an empty string is an absent modality."""
        return self._ask("both", {"image": images, "text": texts})

    def _ask(self, kind: str, inputs: dict[str, Sequence[bytes]]) -> Answer:
        """Ask in batches; if a rollout came between two, ask all again, so that versions never mix."""
        rows = {len(values) for values in inputs.values()}
        if len(rows) != 1 or not (count := rows.pop()):
            raise ServingError(
                f"inputs hold {[len(v) for v in inputs.values()]} rows; expected as many of each, and some"
            )
        if self._batch_size is None:
            self._batch_size = min(BATCH_SIZE, self._served_batch_size(ensemble_name(self.name, kind)))
        for _ in range(3):
            parts = [
                self._infer(
                    kind, {name: values[begin : begin + self._batch_size] for name, values in inputs.items()}
                )
                for begin in range(0, count, self._batch_size)
            ]
            versions = {version for _, part_versions in parts for version in part_versions}
            if len(versions) == 1:
                names = parts[0][0]
                return Answer(
                    {n: np.concatenate([part[n] for part, _ in parts]) for n in names}, versions.pop()
                )
        raise ServingError(
            f"{self.name} at {self.url} changed its version three times while it was asked. Ask again."
        )

    def _served_batch_size(self, model: str) -> int:
        from tritonclient.utils import InferenceServerException

        try:
            if self.protocol == "http":
                return int(self._client.get_model_config(model)["max_batch_size"])
            answer = self._client.get_model_config(model, client_timeout=self._timeout)
            return int(answer.config.max_batch_size)
        except (InferenceServerException, OSError) as error:
            raise ServingError(f"{model} at {self.url} did not answer: {error}") from error

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


def _module(protocol: Protocol) -> Any:
    """Import one of tritonclient's two clients: late, for it costs half a second."""
    if protocol == "http":
        import tritonclient.http

        return tritonclient.http
    if protocol == "grpc":
        import tritonclient.grpc

        return tritonclient.grpc
    raise ServingError(f"protocol {protocol!r}: expected grpc or http")
