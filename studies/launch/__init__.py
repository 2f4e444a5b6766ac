"""Starting workers by the schedulers of other machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from studies.spec.study import StudySpec

#: The argument of an objective that says how many processes load its data, as PyTorch's DataLoader calls it.
LOADERS: Final = "num_workers"
#: Cores of a worker on a GPU whose objective does not say how it loads its data.
CPUS_BESIDE_GPU: Final = 4


def cpus_per_worker(spec: StudySpec | None, *, has_gpu: bool) -> int:
    """How many cores a worker needs: one to train or to feed the GPU, and one for each process that loads data.

    Args:
        spec: of the study; ``None`` where it is not known.
        has_gpu: whether the worker trains on a GPU, which a starved loader would leave idle.
    """
    loaders = spec.objective.args.get(LOADERS) if spec else None
    if isinstance(loaders, int) and not isinstance(loaders, bool) and loaders >= 0:
        return 1 + loaders
    # The objectives that come with studyhall keep their data on the GPU.
    is_ours = spec is not None and spec.objective.path.startswith("objectives.")
    return CPUS_BESIDE_GPU if has_gpu and not is_ours else 1
