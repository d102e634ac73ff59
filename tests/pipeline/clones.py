"""A clone of this project in another folder, with tiny parameters, and the commands a person runs in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]

TINY: dict[str, Any] = {
    "ingest.scenes.samples": 400,
    "ingest.scenes.image_size": 32,
    "model.encoders.image.size": 32,
    "model.embedding_size": 32,
    "model.feature_size": 64,
    "model.encoders.image.cnn.channels": [16, 32, 64],
    "model.encoders.image.cnn.blocks": [0, 1, 1],
    "model.encoders.text.transformer.width": 64,
    "model.encoders.text.transformer.layers": 1,
    "model.encoders.text.transformer.heads": 2,
    "model.head.hidden": 64,
    "train.epochs": 12,
    "train.lr": 3e-3,
    "train.batch_size": 16,
    "train.warmup_steps": 4,
    "train.checkpoint_steps": 20,
    "evaluate.bootstrap_samples": 100,
    "export.metric_rows": 64,
    "export.golden_queries": 4,
    "export.max_metric_difference": 0.05,
    "register.bootstrap_samples": 100,
    "register.minimum": {"accuracy": 0.4},
    "register.primary_metric": "accuracy",
}
"""A run of seconds a stage. Bars are low: what a tiny model must show is that it learned anything."""


class Clone:
    """A copy of the project's files in `folder`, committed to a repository of its own."""

    def __init__(self, folder: Path, params: dict[str, Any] | None = None, base: str = "params.yaml") -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file() and name != "dvc.lock" and not name.startswith("data/reports/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        if base != "params.yaml":
            shutil.copyfile(ROOT / base, folder / "params.yaml")
        self.set(TINY if params is None else params)
        self.run("git", "init", "-q", "-b", "main")
        self.run("git", "add", "-A")
        self.commit("A clone")

    def environment(self) -> dict[str, str]:
        """The test's own, without what binds it to another workspace."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("POLYWEFT_", "MLFLOW_", "TRITON_"))}
        kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        kept["POLYWEFT_TRITON_VENV"] = str(ROOT / ".venv-triton")
        return kept

    def run(self, *command: str, code: int = 0, **environment: str) -> str:
        """Run a command in the clone; its output. Another exit code than `code` fails the test."""
        done = subprocess.run(
            command, cwd=self.folder, env={**self.environment(), **environment}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == code, f"{command} ended with {done.returncode}:\n{done.stdout[-6000:]}"
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in the clone, in a process group of its own."""
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment(), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def commit(self, message: str) -> None:
        """Commit everything that git does not ignore."""
        self.run("git", "add", "-A")
        who = ("-c", "user.name=test", "-c", "user.email=test@example.invalid")
        self.run("git", *who, "commit", "-q", "-m", message)

    def set(self, values: dict[str, Any]) -> None:
        """Change keys of the clone's params.yaml, by dotted name."""
        yaml, path = YAML(), self.folder / "params.yaml"
        content = yaml.load(path.read_text(encoding="utf-8"))
        for name, value in values.items():
            *above, key = name.split(".")
            section = content
            for part in above:
                section = section.setdefault(part, {})
            section[key] = value
        with path.open("w", encoding="utf-8") as handle:
            yaml.dump(content, handle)

    def stages(self) -> list[str]:
        """The graph's stages, in its order."""
        return list(YAML().load((self.folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"])

    def lock(self) -> str:
        """dvc.lock, byte for byte."""
        return (self.folder / "dvc.lock").read_text(encoding="utf-8")
