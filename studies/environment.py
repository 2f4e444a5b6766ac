"""The environment of a training: what its numbers depend on beside parameters, seed and code that the study stores.

A study stores the environment of its first worker, a trial its own where that differs, and ``studyhall reproduce`` says
what differs from the present one.
"""

from __future__ import annotations

import inspect
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from studies.errors import ObjectiveError

#: Packages that numbers may depend on, where they are installed.
PACKAGES: Final = ("studyhall", "optuna", "torch", "numpy", "scipy", "scikit-learn", "torchvision", "pandas", "pyarrow")
#: System attribute: of a study, its environment; of a trial, the facts of its own that differ.
ATTRIBUTE: Final = "studyhall:environment"
#: Seconds for git, which may have to wait for a disk.
_PATIENCE: Final = 10.0

Environment = Mapping[str, Any]
"""Flat: a fact by its name, such as ``torch``, ``commit``, ``cpu``; ``data NAME`` is the fingerprint of a data set."""


def collect(path: str, objective: Any, device: str) -> dict[str, Any]:
    """The environment of this process.

    Args:
        path: of the objective.
        objective: as it was built.
        device: the PyTorch name of the device.

    Returns:
        Facts by name, ``None`` where one is not known. ``commit`` is that of the git repository which tracks the
        objective's file, and ``dirty`` whether tracked files there differ from it.

    Raises:
        ObjectiveError: the objective's ``fingerprint`` is no table of texts.
    """
    facts: dict[str, Any] = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            facts[name] = metadata.version(name)
    facts |= _repository(_file_of(objective))
    facts |= {"system": f"{platform.system()} {platform.machine()}", "cpu": _cpu(), "device": _device(device)}
    return facts | {f"data {name}": found for name, found in _fingerprints(path, objective).items()}


def of_trial(stored: Environment, system_attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The environment of a trial, given that of its study and what the trial stores of its own."""
    return {**stored, **system_attrs.get(ATTRIBUTE, {})}


def differing(stored: Environment, now: Environment) -> dict[str, Any]:
    """The facts of ``now`` that are others than in ``stored``; ``None`` for one that is missing now."""
    return {name: now.get(name) for name in {**stored, **now} if stored.get(name) != now.get(name)}


def in_words(stored: Environment, now: Environment) -> list[str]:
    """What differs, a line for each fact: ``torch: 2.8.0 then, 2.9.1 now``."""

    def shown(value: Any) -> str:
        text = "unknown" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        return text[:12] if re.fullmatch(r"[0-9a-f]{40,}", text) else text

    return [f"{name}: {shown(stored.get(name))} then, {shown(now)} now" for name, now in differing(stored, now).items()]


def require_same_data(study: str, stored: Environment, now: Environment) -> None:
    """Check that a worker's data sets are the study's.

    Raises:
        ObjectiveError: one has another content.
    """
    for name, fingerprint in now.items():
        if name.startswith("data ") and stored.get(name, fingerprint) != fingerprint:
            raise ObjectiveError(
                f"the data set {name.removeprefix('data ')!r} of study {study!r} has the fingerprint "
                f"{stored[name][:12]}…, and this machine's has {fingerprint[:12]}…; bring the study's data set here "
                "(--data-dir), or give a study of this one another --name"
            )


def _fingerprints(path: str, objective: Any) -> dict[str, str]:
    found = getattr(objective, "fingerprint", None)
    found = found() if callable(found) else found
    if found is None:
        return {}
    if not isinstance(found, Mapping) or not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise ObjectiveError(
            f"objective {path!r} has fingerprint = {found!r:.80}; it must be the fingerprint of each data set by its "
            "name, as texts, by which Studyhall checks a machine's data, or have another name"
        )
    return dict(found)


def _file_of(objective: Any) -> Path | None:
    definition = objective if inspect.isroutine(objective) else type(objective)
    try:
        return Path(inspect.getfile(inspect.unwrap(definition)))
    except (TypeError, OSError, ValueError):
        return None  # built in, or made at run time


def _repository(file: Path | None) -> dict[str, Any]:
    if file is None or _git(file.parent, "ls-files", "--error-unmatch", "--", file.name) is None:
        return {
            "commit": None,
            "dirty": None,
        }  # no git, no repository, or one that happens to hold an installed package
    status = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(file.parent, "rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _git(folder: Path, *words: str) -> str | None:
    """What git says; ``None`` where it fails. A repository's settings may name programs: git runs none of them."""
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str | None:
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or None


def _device(device: str) -> str:
    """``cpu``, or the GPU's model where the objective's PyTorch knows it."""
    torch = sys.modules.get("torch")
    if device == "cpu" or torch is None:
        return device
    try:
        return str(torch.cuda.get_device_name(device))
    except Exception:  # a broken driver says so in many ways; the training will
        return device
