"""Where the time of a training goes, by PyTorch's profiler."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

#: The most steps: a trace holds about 10 kB of each.
STEPS = 200
_ROWS = 25


@contextmanager
def profiled(directory: Path, device: str) -> Iterator[None]:
    """Profile what is done within.

    Args:
        directory: gets ``table.txt``, the operators by their own time, and ``trace.json``, in Chrome's format.
        device: where it is done.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # without a GPU it would report that as an error
    is_cuda = device != "cpu"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * is_cuda]) as profiler:
        yield
    by = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=by, row_limit=_ROWS, max_name_column_width=40)
    (directory / "table.txt").write_text(table, encoding="utf-8")
    profiler.export_chrome_trace(str(directory / "trace.json"))
