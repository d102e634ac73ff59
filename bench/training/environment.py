"""open_clip in an environment of its own, beside the project's own torch."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

FOLDER = Path(".bench/open_clip")
PACKAGES = [
    "open_clip_torch==3.3.0",
    "timm==1.0.31",
    "torchvision==0.28.0",
    "ftfy==6.3.1",
    "huggingface_hub==2.4.0",
    "regex==2026.11.15",
    "wcwidth",
]
"""Without their dependencies: torch and numpy are the project's, so that both sides run the same build."""


def peer_python() -> Path:
    """The interpreter of open_clip's environment, which is made where it is not there yet."""
    python = FOLDER / "bin" / "python"
    mark = FOLDER / ".ready"
    if not mark.exists() or mark.read_text() != "\n".join(PACKAGES):
        uv = [sys.executable, "-m", "uv"]
        subprocess.run(
            [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)], check=True
        )
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        shared = FOLDER / "lib" / version / "site-packages" / "torch_of_the_project.pth"
        shared.write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
        install = [*uv, "pip", "install", "--quiet", "--python", str(python), "--no-deps", *PACKAGES]
        subprocess.run(install, check=True)
        mark.write_text("\n".join(PACKAGES), encoding="utf-8")
    return python
