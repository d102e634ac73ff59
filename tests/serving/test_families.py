"""Every family is trained, evaluated, exported, registered and served by the same code, at a tiny size."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from polyweft.config import RuntimeParams
from polyweft.evaluation.evaluator import EvaluateParams
from polyweft.export.acceptance import ExportParams
from polyweft.export.bundle import read_spec
from polyweft.export.golden import read_golden
from registry import versions
from registry.client import Client
from registry.gate import RegisterParams
from registry.golden import ask_golden
from registry.repository import Repository
from registry.rollout import roll_out
from registry.server import Server
from stages import evaluate, export, register, train
from tests import small
from tests.unit.registry.fake_exports import make_workspace

pytestmark = pytest.mark.slow

LSTM = {"tower": "lstm", "lstm": {"width": 16, "hidden": 8}}
WIDE = {**small.IMAGE, "cnn": {**small.IMAGE["cnn"], "kernel": 7}}
PIXELS = {name: value for name, value in small.IMAGE.items() if name not in ("tower", "cnn")}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
ASKED = EvaluateParams(
    split="test", languages=None, caption_choice="all", bootstrap_samples=100, batch_size=8
)
RESNET = {**small.IMAGE, "tower": "resnet", "resnet": {"block": "basic", "blocks": [1, 1], "width": 8}}
VIT = {
    **small.IMAGE,
    "tower": "vit",
    "vit": {"patch": 8, "width": 16, "layers": 1, "heads": 2, "pool": "mean"},
}
MODELS: dict[str, dict[str, Any]] = {
    "dual-tower-siglip": {
        **small.DUAL_TOWER,
        "encoders": {"image": VIT, "text": small.TEXT_TOWER},
        "contrast": {"loss": "siglip"},
    },
    "fusion-attention": {
        "family": "fusion_classifier",
        "embedding_size": 0,
        "feature_size": 16,
        "encoders": {"image": WIDE, "text": small.TEXT_TOWER},
        "head": {
            **small.HEAD,
            "fusion": "attention",
            "missing": "impute",
            "tasks": {"binary": 1.0, "multi_label": 1.0, "regression": 0.5},
            "balance": "uncertainty",
        },
    },
    "fusion-video-graph": {
        "family": "fusion_classifier",
        "embedding_size": 0,
        "feature_size": 16,
        "encoders": {"video": small.VIDEO, "graph": small.GRAPH},
        "head": {**small.HEAD, "sees": ["video", "graph"], "fusion": "mid"},
    },
    "trimodal": {
        **small.DUAL_TOWER,
        "family": "trimodal",
        "encoders": {"image": RESNET, "text": LSTM, "audio": small.AUDIO},
        "head": {**small.HEAD, "sees": ["image", "text", "audio"], "fusion": "hierarchical"},
    },
    "captioner": {
        "family": "captioner",
        **small.SIZES,
        "encoders": {"image": small.IMAGE, "text": small.TEXT_TOWER},
        "contrast": {"loss": "infonce"},
        "matching": {"weight": 1.0, "negatives": "nearest"},
        "captioning": {"weight": 1.0, "label_smoothing": 0.1},
        "decoder": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.0},
        "generation": {"strategy": "beam", "beams": 2, "max_tokens": 6},
    },
    "huggingface": {
        "family": "huggingface_late_fusion",
        "embedding_size": 0,
        "feature_size": 16,
        "encoders": {
            "image": {
                "source": None, "config": {**BERT, "patch_size": 8}, "tuning": "full", "pool": "mean",
                **PIXELS,
            },
            "text": {"source": None, "config": BERT, "tuning": "full", "pool": "first"},
        },
        "head": {**small.HEAD, "fusion": "late"},
    },
    "huggingface-contrast": {
        "family": "huggingface_late_fusion",
        **small.SIZES,
        "encoders": {
            "image": {
                "source": None, "config": {**BERT, "patch_size": 8}, "tuning": "frozen", "pool": "pooler",
                **PIXELS,
            },
            "text": {
                "source": None, "config": {**BERT, "num_hidden_layers": 2}, "tuning": {"last_layers": 1},
                "pool": "pooler",
            },
        },
        "contrast": {"loss": "infonce"},
    },
}  # fmt: skip
EXPECTED = {
    "dual-tower-siglip": {"image_embedding", "text_embedding", "probabilities"},
    "fusion-attention": {"probabilities", "label_probabilities", "value"},
    "fusion-video-graph": {"probabilities"},
    "trimodal": {"image_embedding", "text_embedding", "audio_embedding", "probabilities"},
    "captioner": {"image_embedding", "text_embedding", "caption"},
    "huggingface": {"probabilities"},
    "huggingface-contrast": {"image_embedding", "text_embedding"},
}
METRIC = {
    "captioner": "cider",
    "dual-tower-siglip": "text_to_image_recall_at_10",
    "huggingface-contrast": "text_to_image_recall_at_10",
}
SECONDS_TOGETHER = 480.0
RUNTIME = RuntimeParams(seed=5, threads=1)
EXPORT = ExportParams(
    opset=20, batch_sizes=[1, 3], text_lengths=[3], max_abs_error=1e-4, max_metric_difference=0.05,
    metric_split="test", metric_rows=10, int8=False, int8_max_loss=0.5, golden_queries=3, tensorrt=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.prepare(tmp_path_factory.mktemp("families"), train=32, others=12)


@pytest.fixture(scope="module")
def seconds() -> dict[str, float]:
    """What each family has taken."""
    return {}


@pytest.mark.parametrize("name", list(MODELS))
def test_a_family_goes_from_data_over_the_registry_to_the_server(
    name: str,
    prepared: Path,
    server: Server,
    seconds: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = time.monotonic()
    make_workspace(tmp_path, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", str(Path(small.__file__).parents[1]))  # workers start in another folder
    model = small.model_params(MODELS[name])
    hiding = 0.2 if "head" in MODELS[name] else 0.0
    params = small.train_params(epochs=2, batch_size=8, modality_dropout=hiding)
    train.run(params, model, RUNTIME, prepared=prepared, out=tmp_path / "train")
    evaluated, out = tmp_path / "evaluate", tmp_path / "export"
    measured = evaluate.run(ASKED, RUNTIME, prepared=prepared, trained=tmp_path / "train", out=evaluated)
    metric = METRIC.get(name, "accuracy")
    assert measured.facts[f"{metric}_low"] <= measured.facts[metric] <= measured.facts[f"{metric}_high"]
    facts = export.run(EXPORT, RUNTIME, prepared=prepared, trained=tmp_path / "train", out=out).facts
    assert facts["max_abs_error"] <= 1e-4
    admitted = register.run(
        gate(f"family-{name}", metric), ASKED, RUNTIME,
        prepared=prepared, exported=out, evaluated=evaluated, receipt=tmp_path / "register" / "receipt.json",
    ).run_facts  # fmt: skip
    assert admitted["decision"] == "promoted", admitted["reasons"]
    champion = versions.champion(f"family-{name}")
    assert champion is not None
    got = champion.download(tmp_path / "champion")
    done = roll_out(server.url, Repository(server.root, f"family-{name}"), got)
    assert done.version == 1
    golden = read_golden(got / "golden")
    assert set(golden.expected) | set(golden.captions or {}) >= EXPECTED[name] - {"caption"}
    with Client(server.url, f"family-{name}") as client:
        worst = ask_golden(client, golden, export_hash=read_spec(out)["export_hash"], tolerance=1e-4)
    assert worst <= 1e-4
    seconds[name] = time.monotonic() - begin


def test_all_families_together_take_eight_minutes_at_most(seconds: dict[str, float]) -> None:
    if set(seconds) != set(MODELS):
        pytest.skip("not every family ran to its end")
    assert sum(seconds.values()) <= SECONDS_TOGETHER, seconds


def gate(name: str, metric: str) -> RegisterParams:
    """A gate with bars that a model of a few steps passes."""
    return RegisterParams(
        name=name, primary_metric=metric, non_inferiority_margin=0.05, minimum={metric: 0.0},
        bootstrap_samples=100, description="A family at a tiny size.",
    )  # fmt: skip
