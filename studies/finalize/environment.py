"""The environment of a training: versions, commit and device."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from studies.worker.devices import Device

#: What a model's numbers may depend on.
PACKAGES: Final = ("studyhall", "optuna", "torch", "numpy", "pandas", "pyarrow", "scikit-learn", "mlflow")


def environment(device: Device, folder: Path) -> dict[str, Any]:
    """What a person needs to train the model again.

    Args:
        device: on which it was trained.
        folder: with the objective's code; its commit is named where it is in a Git repository.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device.label,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        **commit(folder),
    }


def commit(folder: Path) -> dict[str, Any]:
    """The ``commit`` that is checked out there, and whether tracked files differ (``dirty``); empty without Git."""
    found = _git(folder, "rev-parse", "HEAD")
    if not found:
        return {}
    return {"commit": found, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
