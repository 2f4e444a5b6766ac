"""The devices of this machine for workers: its GPUs, else its CPU cores."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from studies.errors import StudyhallError, nearest


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where one worker trains."""

    label: str
    """Shown to people: ``cuda:1`` or ``cpu``."""
    torch: str
    """PyTorch's name in the worker, which sees only its own GPU: ``cuda`` or ``cpu``."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that must be set in the worker before PyTorch is imported."""


# Two threads for one small model are no faster than one, and many times slower when the other core is busy.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_CPU = Device(label="cpu", torch="cpu", environment=_ONE_THREAD)


def choose(workers: int | None, visible_gpus: str | None) -> list[Device]:
    """The device of each worker: one worker per GPU, else one per core; or ``workers``, round-robin.

    Args:
        workers: how many to start; ``None`` for one per device.
        visible_gpus: ``CUDA_VISIBLE_DEVICES``; ``None`` if it is not set.
    """
    gpus = _gpus(visible_gpus)
    offered = [
        Device(label=f"cuda:{i}", torch="cuda", environment={"CUDA_VISIBLE_DEVICES": gpu} | _ONE_THREAD)
        for i, gpu in enumerate(gpus)
    ] or [_CPU] * cores()
    return [offered[i % len(offered)] for i in range(workers or len(offered))]


def find(label: str | None, visible_gpus: str | None) -> Device:
    """The device that people call ``label``; without one the first that the machine offers.

    Raises:
        StudyhallError: there is no such device here.
    """
    offered = choose(None, visible_gpus)
    if label is None:
        return offered[0]
    known = {device.label: device for device in [*offered, _CPU]}
    if label not in known:
        raise StudyhallError(f"there is no device {label!r} here; {nearest(label, known, in_order=True)}")
    return known[label]


def cores() -> int:
    """The CPU cores that this process may use: its affinity, and the quota of its cgroup (containers)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return count  # no cgroup v2 here
    return count if quota == "max" else max(1, min(count, int(quota) // int(period)))


def _gpus(visible: str | None) -> list[str]:
    """The GPUs by index or UUID, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if visible is not None:
        return [gpu for gpu in (part.strip() for part in visible.split(",")) if gpu and gpu != "-1"]
    if not shutil.which("nvidia-smi"):
        return []
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []  # the tool without its driver: no GPU to use
    # A GPU in MIG mode cannot be used as a whole: its slices are listed below it.
    slices = re.findall(r"\(UUID: (MIG-[^)]+)\)", listing)
    return slices or re.findall(r"\(UUID: (GPU-[^)]+)\)", listing)
