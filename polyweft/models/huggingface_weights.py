"""Models of transformers: from a local folder, a hub name, or a configuration with random weights.

Weights come from safetensors alone, no code of a model's repository runs, nothing is sent home, and the
network is used for a hub name only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyweft.errors import ConfigError, DataError
from polyweft.workspace import quiet_environment, workspace

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

OF_THE_FILE = frozenset({"_name_or_path", "architectures", "dtype", "transformers_version"})
"""Keys of a configuration that do not say what the model is."""


def transformers() -> Any:
    """The package, without usage statistics, progress bars and chatter; what it raises is the caller's."""
    quiet_environment()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import transformers as package

    logging: Any = package.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return package


def pretrained(source: str, where: str, kind: str = "AutoModel") -> tuple[PreTrainedModel, set[str]]:
    """The model in folder `source` (from the workspace's root), or of that hub name, `name@revision` too.

    Parameters
    ----------
    where
        The parameter that names it, for messages.
    kind
        The class of transformers.

    Returns
    -------
    The model, float32, and the names of its tensors that the source lacks, which have fresh weights.

    Raises
    ------
    ConfigError
        There is no such folder or hub model, or it has no safetensors weights.
    """
    folder = workspace() / source
    name, _, revision = source.partition("@")
    try:
        if folder.is_dir():
            return _from_pretrained(kind, str(folder), local_files_only=True)
        return _from_pretrained(kind, name, revision=revision or "main")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{where} is {source!r}, which is neither a folder from the workspace's root with config.json "
            f"and safetensors weights nor a model that the hub gave: {_first_line(error)} Name a folder, or "
            "set it to null for random weights."
        ) from error


def configured(model_type: str, settings: dict[str, Any], where: str) -> PretrainedConfig:
    """A configuration of transformers, `model_type` unless `settings` names another.

    Raises
    ------
    ConfigError
        A key or a model type is unknown, or a value is of no use.
    """
    settings = dict(settings)
    model_type = settings.pop("model_type", model_type)
    try:
        known = transformers().AutoConfig.for_model(model_type).to_dict()
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ValueError(f"{model_type} has no key {unknown[0]!r}; it has {', '.join(sorted(known))}")
        config: PretrainedConfig = transformers().AutoConfig.for_model(model_type, **settings)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{where}: {error}.") from error
    return config


def settings_of(config: PretrainedConfig) -> dict[str, Any]:
    """What `configured` makes the same configuration from: JSON values."""
    known = transformers().AutoConfig.for_model(config.model_type).to_dict()
    every = config.to_dict()
    kept = {k: every[k] for k in known if k in every and k not in OF_THE_FILE and every[k] != known[k]}
    return {"model_type": config.model_type, **kept}


def random_model(config: PretrainedConfig, where: str) -> PreTrainedModel:
    """The model with fresh weights from torch's generator; raises `ConfigError` where sizes do not fit."""
    try:
        model: PreTrainedModel = transformers().AutoModel.from_config(config, attn_implementation="sdpa")
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{where}: {error}.") from error
    return model


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a transformers folder, by the names of this version's modules.

    Raises
    ------
    DataError
        It holds no safetensors weights, or a model that this version does not know.
    """
    try:
        model, made_up = _from_pretrained("AutoModel", str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(
            f"the transformers folder {folder} cannot be read: {_first_line(error)} It needs config.json and "
            "safetensors weights; convert pickled ones where they come from."
        ) from error
    return {name: tensor for name, tensor in model.state_dict().items() if name not in made_up}


def _from_pretrained(kind: str, source: str, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    model, info = getattr(transformers(), kind).from_pretrained(
        source,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=torch.float32,
        attn_implementation="sdpa",
        output_loading_info=True,
        **options,
    )
    return model, set(info["missing_keys"])


def _first_line(error: Exception) -> str:
    return f"{(str(error).strip() or type(error).__name__).splitlines()[0].rstrip('.')}."
