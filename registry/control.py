"""What a rollout asks of a running Triton: load, unload, and which versions are there."""

from __future__ import annotations

from typing import Any, Self

from polyweft.errors import ServingError

LOAD_SECONDS = 180.0
PROBE_SECONDS = 3.0


class Control:
    """One server's model control interface, over gRPC. Use it as a context manager.

    Every method that Triton refuses raises `ServingError` with Triton's reason.
    """

    def __init__(self, url: str) -> None:
        import tritonclient.grpc

        self.url = url
        self._client: Any = tritonclient.grpc.InferenceServerClient(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ready(self) -> bool:
        """Whether the server answers; not whether a model does (ask golden queries for that)."""
        from tritonclient.utils import InferenceServerException

        try:
            return bool(self._client.is_server_ready(client_timeout=PROBE_SECONDS))
        except InferenceServerException:
            return False

    def about(self) -> tuple[str, str]:
        """The server's name and version as it states them."""
        answer = self._call("get_server_metadata", client_timeout=PROBE_SECONDS)
        return str(answer.name), str(answer.version)

    def load(self, model: str) -> None:
        """Load or reload `model` from the repository; an old state serves on until the new one is ready."""
        self._call("load_model", model, client_timeout=LOAD_SECONDS)

    def unload(self, model: str) -> None:
        """Unload all versions of `model`; one that is not loaded is no fault."""
        self._call("unload_model", model, client_timeout=LOAD_SECONDS)

    def known(self) -> set[str]:
        """Names of all models in the repository that the server reads."""
        return {str(entry.name) for entry in self._index()}

    def loaded(self, model: str) -> set[int]:
        """Versions of `model` that are ready."""
        entries = self._index()
        return {int(e.version) for e in entries if e.name == model and e.state == "READY" and e.version}

    def _index(self) -> list[Any]:
        return list(self._call("get_model_repository_index", client_timeout=PROBE_SECONDS).models)

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        from tritonclient.utils import InferenceServerException

        try:
            return getattr(self._client, method)(*arguments, **options)
        except InferenceServerException as error:
            what = " ".join([method.replace("_", " "), *map(str, arguments)])
            raise ServingError(f"Triton at {self.url} refused to {what}: {error.message()}") from error


def is_triton(url: str) -> bool:
    """Whether a Triton answers at gRPC's host:port `url`."""
    with Control(url) as control:
        try:
            return control.ready() and control.about()[0] == "triton"
        except ServingError:
            return False
