"""The environment that Triton runs in: virtual environment, programs, libraries, backends."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from polyweft.errors import ServingError
from polyweft.workspace import workspace
from registry.contents import BACKENDS

VENV_VARIABLE = "POLYWEFT_TRITON_VENV"


@dataclass(frozen=True)
class TritonEnvironment:
    """Where things of the serving environment lie.

    Attributes
    ----------
    venv
        The virtual environment (numpy below 2, no torch).
    packages
        Its site-packages.
    python
        `3.11`: the stub must be built for it.
    base
        The folder of the interpreter that the environment was made from; libpython is in its `lib`.
    """

    venv: Path
    packages: Path
    python: str
    base: Path

    @property
    def triton(self) -> Path:
        """The folder that the nvidia-pytriton wheel brings tritonserver in; pytriton itself is not used."""
        return self.packages / "pytriton" / "tritonserver"

    @property
    def program(self) -> Path:
        """The tritonserver binary."""
        return self.triton / "bin" / "tritonserver"

    def variables(self) -> dict[str, str]:
        """The server's environment variables: this process's, less what would reach into the stubs."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COV_", "COVERAGE_"))}
        libraries = [str(self.packages / "nvidia_pytriton.libs"), str(self.base / "lib")]
        given = [kept["LD_LIBRARY_PATH"]] if kept.get("LD_LIBRARY_PATH") else []
        return {
            **kept,
            # The stub finds its packages through PATH alone; PYTHONPATH is ignored.
            "PATH": f"{self.venv / 'bin'}:{kept.get('PATH', '')}",
            "VIRTUAL_ENV": str(self.venv),
            "LD_LIBRARY_PATH": ":".join([*libraries, *given]),
            "PYTHONDONTWRITEBYTECODE": "1",  # version folders are immutable
        }


def find_environment() -> TritonEnvironment:
    """Find the serving environment: `POLYWEFT_TRITON_VENV`, else `.venv-triton` in the workspace.

    Raises
    ------
    ServingError
        It is missing or incomplete.
    """
    venv = Path(os.environ.get(VENV_VARIABLE) or workspace() / ".venv-triton").absolute()
    remedy = f"Run `make setup`, or set {VENV_VARIABLE} to an environment made from requirements-triton.lock."
    packages = sorted(venv.glob("lib/python3.*/site-packages"))
    if not packages:
        raise ServingError(f"there is no serving environment in {venv}. {remedy}")
    interpreter = (venv / "bin" / "python").resolve()
    python = packages[0].parent.name.removeprefix("python")
    found = TritonEnvironment(venv, packages[0], python, interpreter.parent.parent)
    for needed in (
        found.program,
        found.triton / "python_backend_stubs" / python,
        found.packages / "onnxruntime",
    ):
        if not needed.exists():
            raise ServingError(f"the serving environment lacks {needed}. {remedy}")
    return found


def install_backends(environment: TritonEnvironment, folder: Path) -> Path:
    """Put the python and the onnxruntime backend into `folder`, and give it.

    Copies, for Triton refuses a library that lies outside its backend's folder; each renamed into place,
    so that a server which runs on the old file keeps it.
    """
    library = environment.triton / "backends" / "python"
    stub = environment.triton / "python_backend_stubs" / environment.python / "triton_python_backend_stub"
    wanted = {
        folder / "python" / "libtriton_python.so": library / "libtriton_python.so",
        folder / "python" / "triton_python_backend_utils.py": library / "triton_python_backend_utils.py",
        folder / "python" / stub.name: stub,
        folder / "onnxruntime" / "model.py": BACKENDS / "onnxruntime" / "model.py",
    }
    try:
        for target, source in wanted.items():
            if _same(target, source):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.copyfile(source, fresh)
            fresh.chmod(0o755 if source == stub else 0o644)
            fresh.replace(target)
    except OSError as error:
        raise ServingError(
            f"could not install Triton's backends into {folder}: {error}. Free some space."
        ) from error
    return folder


def _same(target: Path, source: Path) -> bool:
    return (
        target.exists()
        and target.stat().st_size == source.stat().st_size
        and target.read_bytes() == source.read_bytes()
    )
