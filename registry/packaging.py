"""An export as an MLflow model: a pyfunc from code with signature, input example and pinned requirements."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyweft.errors import ExportError, RegistryError
from polyweft.export.bundle import read_spec, verify
from polyweft.io import inside, read_json
from polyweft.modalities import MEDIA
from registry.contents import GENERATION, reader_file, source_file
from registry.versions import (
    EXPORT_HASH,
    Version,
    check_name,
    connect,
    experiment_id,
    get,
    mlflow_errors,
    module_address,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MODEL_CODE = Path(__file__).parent / "pyfunc_model.py"
# What the registered model needs where it is loaded; MLflow would import everything to find out.
_REQUIREMENTS = ("mlflow", "numpy", "onnxruntime-gpu", "pandas", "pillow", "soundfile", "tokenizers", "av")
# The column `description` of MLflow's table of versions holds 5,000 characters.
_DESCRIPTION_CHARACTERS = 4900


@dataclass(frozen=True)
class Registration:
    """What stands beside the model in the registry.

    Attributes
    ----------
    metrics
        Logged to the version's run.
    tags
        Tags of the version and of its run.
    card
        The model card, Markdown.
    lineage
        The record that `registry.lineage` builds.
    """

    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    card: str
    lineage: Mapping[str, Any]


def check_export(export: Path, export_hash: str) -> None:
    """Check that a downloaded export is the one of this hash and that its files are whole.

    Raises
    ------
    RegistryError
        The hash is another one, or a file is missing or differs from its SHA-256 in `model.json`.
    """
    try:
        found = verify(export)
    except ExportError as error:
        raise RegistryError(
            f"the registry's copy of export {export_hash[:12]} is damaged: {error} If that copy is the "
            "registry's own, promote another version or register the export again."
        ) from error
    if found != export_hash:
        raise RegistryError(
            f"{export} holds export {found}, expected {export_hash}. The registry's files were changed; "
            "promote another version or register the export again."
        )


def register_export(name: str, export: Path, registration: Registration) -> Version:
    """Log the export as a model in a run of its own and register it as a new version of `name`.

    The version appears last and with its tags: killed before, nothing of it is seen in the registry and
    the next call starts again.

    Raises
    ------
    RegistryError
        MLflow cannot be reached or refuses.
    ExportError
        A file of the export is missing or differs from its `model.json`.
    """
    client, spec, export_hash = connect(), read_spec(export), verify(export)
    tags = {EXPORT_HASH: export_hash, **registration.tags}
    with module_address(), mlflow_errors(f"register {check_name(name)}"):
        run_id = _create_run(client, name, tags)
        try:
            model = _log_model(export, spec, run_id, registration)
            log_lineage(client, run_id, registration.lineage)
            _log_metrics(client, run_id, registration.metrics)
            _ensure_name(client, name)
            made = client.create_model_version(
                name,
                source=model.model_uri,
                run_id=run_id,
                tags=tags,
                description=_short(registration.card),
                model_id=model.model_id,
            )
        except BaseException:
            client.set_terminated(run_id, status="FAILED")
            raise
        client.set_terminated(run_id)
    return get(name, int(made.version))


def log_lineage(client: MlflowClient, run_id: str, lineage: Mapping[str, Any]) -> None:
    """Put a lineage record on a version's run; one that is there is replaced."""
    client.log_dict(run_id, dict(lineage), "lineage.json")


def _create_run(client: MlflowClient, name: str, tags: Mapping[str, str]) -> str:
    run = client.create_run(
        experiment_id(client),
        run_name=f"registration of {name}",
        tags={"polyweft.kind": "registration", **{f"polyweft.{key}": value for key, value in tags.items()}},
    )
    return str(run.info.run_id)


def _log_metrics(client: MlflowClient, run_id: str, metrics: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    now = time.time_ns() // 1_000_000
    # One transaction: SQLite waits for the disk at each.
    client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in sorted(metrics.items())])


def _ensure_name(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _log_model(export: Path, spec: Mapping[str, Any], run_id: str, registration: Registration) -> Any:
    import mlflow
    import mlflow.pyfunc

    with tempfile.TemporaryDirectory(prefix="polyweft-card-") as folder:
        card = Path(folder) / "model_card.md"
        card.write_text(registration.card, encoding="utf-8")
        # The run is given by its id: MLFLOW_RUN_ID in the environment would otherwise win.
        with mlflow.start_run(run_id=run_id, nested=True):
            mlflow.log_artifact(str(card))
            return mlflow.pyfunc.log_model(
                name="model",
                python_model=str(_MODEL_CODE),
                artifacts={"export": str(export.absolute()), "model_card": str(card), **_sources(spec)},
                signature=model_signature(spec),
                input_example=input_example(export),
                pip_requirements=[f"{package}=={installed_version(package)}" for package in _REQUIREMENTS],
                metadata={EXPORT_HASH: spec["export_hash"], "classes": len(spec["classes"])},
            )


def _sources(spec: Mapping[str, Any]) -> dict[str, str]:
    """The code that the registered model brings along: its readers, and what decodes captions."""
    found = {f"reader_{name}": str(reader_file(name)) for name in spec["modalities"]}
    return found | ({"generation": str(source_file(GENERATION))} if spec["generates"] else {})


def model_signature(spec: Mapping[str, Any]) -> Any:
    """Give the MLflow signature: an optional column a modality in (bytes; text as string), lists out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    given: list[Any] = [
        ColSpec(DataType.binary if name in MEDIA else DataType.string, name, required=False)
        for name in spec["modalities"]
    ]
    embeddings = [f"{name}_embedding" for name in spec["modalities"] if spec["embedding_size"]]
    columns = [*embeddings, *spec["outputs"]]
    answers: list[Any] = [ColSpec(Array(DataType.float), column, required=False) for column in columns]
    if spec["generates"]:
        answers.append(ColSpec(DataType.string, "caption", required=False))
    return ModelSignature(inputs=Schema(given), outputs=Schema(answers))


def input_example(export: Path) -> Any:
    """Give one row as an example: the golden query that has most modalities."""
    import pandas as pd

    golden = export / "golden" / "golden.json"
    rows = [row["contents"] for row in read_json(golden)]
    fullest = max(rows, key=lambda row: sum(said is not None for said in row.values()))
    return pd.DataFrame(
        {
            name: [inside(golden.parent, said).read_bytes() if name in MEDIA else said]
            for name, said in fullest.items()
            if said is not None
        }
    )


def _short(card: str) -> str:
    if len(card) <= _DESCRIPTION_CHARACTERS:
        return card
    return (
        card[:_DESCRIPTION_CHARACTERS].rsplit("\n", 1)[0] + "\n\n(Shortened: see model_card.md in the run.)"
    )
