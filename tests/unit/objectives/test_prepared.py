"""Prepared data: made once per machine, shared, and never out of date."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import objectives.data
from objectives.data import Dataset, load
from objectives.data.prepared import UNUSED_SECONDS

#: With a constant column, of which a warning tells.
LINES = ["a,b,y", *(f"{i},1,{'cat' if i % 2 else 'dog'}" for i in [*range(20, 60), 7])]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "own.csv").write_text("\n".join(LINES))
    return tmp_path / "own.csv"


@pytest.fixture
def prepared_anew(table: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Loads the table; says whether it had to be prepared, and looks whether what comes is what was."""
    made: list[Dataset] = []
    latest: dict[str, Dataset] = {}
    divided = objectives.data.divided

    def counted(*args: object) -> Dataset:
        made.append(divided(*args))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(objectives.data, "divided", counted)

    def prepared_anew(**options: object) -> bool:
        before = len(made)
        data = load(str(table), data_dir=table.parent, target="y", **options)  # type: ignore[arg-type]
        is_anew = len(made) > before
        if is_anew:
            latest[str(options)] = made[-1]
        expected = latest[str(options)]
        assert str(replace(data, fingerprint=expected.fingerprint)) == str(expected)
        assert data.train.stored_NF.equal(expected.train.stored_NF)
        return is_anew

    return prepared_anew


def test_a_data_set_is_prepared_again_only_if_something_has_changed(
    table: Path, prepared_anew: Callable[..., bool]
) -> None:
    assert prepared_anew()
    assert not prepared_anew()
    for other in ({"split_seed": 1}, {"validation": 0.2}, {"columns": {"b": "ignore"}}):
        assert prepared_anew(**other)
        assert not prepared_anew(**other)
    os.utime(table, ns=(0, 0))
    status = table.stat()
    table.write_text("\n".join(LINES).replace("cat", "cow"))
    os.utime(table, ns=(0, 0))
    assert (table.stat().st_size, table.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert prepared_anew()
    assert not prepared_anew()


def test_a_damaged_file_is_made_again_with_one_warning(
    table: Path, prepared_anew: Callable[..., bool], caplog: pytest.LogCaptureFixture
) -> None:
    assert prepared_anew(columns={"b": "ignore"})
    (file,) = (table.parent / "prepared").glob("*.pt")
    whole = file.read_bytes()
    flipped = bytearray(whole)
    row = load(str(table), data_dir=table.parent, target="y", columns={"b": "ignore"}).train.stored_NF[-1]
    flipped[whole.index(row.numpy().tobytes())] ^= 1
    for damaged in (b"", whole[:1000], bytes(flipped), pickle.dumps(print), b"PK\x05\x06" + bytes(18)):
        caplog.clear()
        file.unlink()  # and not written over: it is mapped
        file.write_bytes(damaged)
        assert prepared_anew(columns={"b": "ignore"})
        (record,) = caplog.records
        assert "cannot be used" in record.getMessage()
        assert not prepared_anew(columns={"b": "ignore"})


def test_where_nothing_can_be_written_each_process_prepares_for_itself(
    table: Path, prepared_anew: Callable[..., bool], caplog: pytest.LogCaptureFixture
) -> None:
    (table.parent / "prepared").write_text("")
    assert prepared_anew(columns={"b": "ignore"})
    (record,) = caplog.records
    assert "cannot be kept in" in record.getMessage()


FULL = """
import resource, sys
from pathlib import Path
from objectives.data import load
load(sys.argv[1], target="y", data_dir=Path(sys.argv[1]).parent, split_seed=1)  # libraries write caches
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
load(sys.argv[1], target="y", data_dir=Path(sys.argv[1]).parent)
"""


@pytest.mark.slow
def test_a_full_disk_is_a_warning_and_leaves_nothing_behind(table: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(table)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be kept in" in done.stderr
    assert len(list((table.parent / "prepared").iterdir())) == 2, "the lock and the first data set"


def test_whoever_maps_a_data_set_is_told_how_it_was_read(
    table: Path, prepared_anew: Callable[..., bool], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    header, *lines = LINES
    table.write_text(
        "\n".join([f"c,{header}", *(f"{'yes' if i % 3 else 'no'},{line}" for i, line in enumerate(lines))])
    )
    assert prepared_anew()
    first = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert [level for level, message in first if "b (always 1)" in message] == [logging.WARNING]
    assert [level for level, message in first if "read as 1 and 0: 'c'" in message] == [logging.INFO]
    caplog.clear()
    assert not prepared_anew()
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == first


def test_what_nobody_has_asked_for_in_a_month_is_deleted(table: Path, prepared_anew: Callable[..., bool]) -> None:
    folder = table.parent / "prepared"
    assert prepared_anew()
    assert prepared_anew(split_seed=1)
    for file in [*folder.glob("*.pt"), folder / ".lock"]:
        os.utime(file, times=(0, time.time() - UNUSED_SECONDS - 60))
    assert not prepared_anew()  # which says that it is needed
    assert prepared_anew(split_seed=2)
    assert not prepared_anew()
    assert prepared_anew(split_seed=1)


TOGETHER = """
import os, sys
from pathlib import Path
import torch, objectives.data
divided = objectives.data.divided
def counted(*args):
    os.write(1, b"prepared\\n")
    return divided(*args)
objectives.data.divided = counted
go, wait = os.pipe(), os.pipe()
children = []
while len(children) < 4 and 0 not in children:
    children.append(os.fork())
if 0 in children:
    part = objectives.data.load("own.npz", data_dir=Path(sys.argv[1])).train
    part.stored_NF.sum()
    os.write(go[1], b".")
    os.read(wait[0], 1)  # all have it in memory
    lines = Path("/proc/self/smaps").read_text().splitlines()
    of_file = [i for i, line in enumerate(lines) if line.endswith(".pt")]
    kib = sum(int(next(line for line in lines[i:] if line.startswith("Pss:")).split()[1]) for i in of_file)
    os.write(1, f"{kib * 1024}\\n".encode())
    os.write(go[1], b".")
    os.read(wait[0], 1)  # all have looked
else:
    for _ in range(2):
        for _ in children:
            os.read(go[0], 1)
        os.write(wait[1], b"....")
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="tells memory by /proc")
def test_processes_that_start_together_prepare_once_and_share_the_memory(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", X=np.zeros((20_000, 500), dtype=np.uint8), y=np.arange(20_000) % 2)
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *shares = done.stdout.splitlines()
    assert first == "prepared"
    (file,) = (tmp_path / "prepared").glob("*.pt")
    assert len(shares) == 4
    assert 0.5 * file.stat().st_size < sum(map(int, shares)) < 1.1 * file.stat().st_size


def test_a_mapped_data_set_needs_no_scikit_learn_and_no_pyarrow(
    table: Path, prepared_anew: Callable[..., bool]
) -> None:
    assert prepared_anew()
    program = (
        "import sys; from pathlib import Path; from objectives.mlp import MLP\n"
        "MLP(sys.argv[1], target='y', data_dir=Path(sys.argv[1]).parent)\n"
        "print({'sklearn', 'pyarrow', 'pandas', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(table)], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == "set()\n"
