"""The lines that processes read, as a parent that runs since before an upgrade sends them, and those that they send."""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from studies import StudySpec
from studies.errors import ObjectiveError
from studies.mirror import process as mirror
from studies.processes import Child
from studies.serve import process as site
from studies.serve.guard import Access
from studies.worker import process as worker
from studies.worker.devices import Device
from studies.worker.supervisor import Supervisor

#: Of the layout in which the mirror lay in ``studies.tracking`` and the sites in ``studies.sites``.
OLD_WORKER = (
    '{"worker_id": "box-1", "device": "cpu", "label": "cpu", "objectives": [{"study": "s", "path": "script.py:f",'
    ' "sha256": null, "args": {}, "space": ["x"], "share": 1.0}], "allow": ["script.py"], "data_dir": "data",'
    ' "results": "results", "until_idle": null}'
)
OLD_ASSIGNMENT = '{"storage": "postgresql://box/db", "lease_seconds": 60.0}'
OLD_MIRROR = '{"storage": "postgresql://box/db", "tracking": null, "artifacts": null, "studies": ["s"], "once": false}'
OLD_SITE = (
    '{"site": "MLflow", "descriptor": 3, "storage": "postgresql://box/db", "tracking": null, "home": "home", "access":'
    ' {"viewer_password": null, "admin_password": "word", "token": "t", "anybody": false,'
    ' "role": "admin", "hosts": []}}'
)


def test_a_worker_reads_the_lines_of_an_older_supervisor() -> None:
    setup = worker._read_setup(OLD_WORKER)
    assert setup.slots is None
    assert [(each.study, each.path) for each in setup.objectives] == [("s", "script.py:f")]
    # All that was said is there under its name.
    told, read = json.loads(OLD_WORKER), json.loads(json.dumps(asdict(setup)))
    for old, new in zip(told.pop("objectives"), read.pop("objectives"), strict=True):
        assert old.items() <= new.items()
    assert told.items() <= read.items()
    assert worker.Assignment(**json.loads(OLD_ASSIGNMENT)).lease_seconds == 60


@pytest.mark.parametrize(("line", "read"), [(OLD_MIRROR, mirror.Setup), (OLD_SITE, site.Setup)])
def test_a_mirror_and_a_site_read_the_line_of_an_older_parent(line: str, read: Any) -> None:
    told = json.loads(line)
    assert json.loads(json.dumps(asdict(read(**told)))) == told
    if access := told.get("access"):
        assert Access(**access).admin_password == "word"


def supervisor_of(spec: StudySpec, folder: Path, output: Callable[[str], object]) -> Supervisor:
    return Supervisor(
        [(spec, 1.0)],
        [Device(label="cpu", torch="cpu")],
        scripts={},
        allow=[],
        data_dir=folder,
        results=folder,
        environment=os.environ,
        output=output,
    )


def test_why_a_worker_does_not_start_is_said_however_late_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Child._read_events

    def read_late(child: Child, pipe: IO[str]) -> None:
        child.popen.wait()
        time.sleep(0.5)
        read(child, pipe)

    monkeypatch.setattr(Child, "_read_events", read_late)
    spec = StudySpec.from_dict({"name": "s", "objective": {"path": "objectives.mlp:nothing"}})
    supervisor = supervisor_of(spec, tmp_path, print)
    with supervisor, pytest.raises(ObjectiveError, match="has no 'nothing'"):
        supervisor.wait_until_ready()


def test_what_every_worker_says_when_it_starts_is_shown_once_and_what_it_says_later_each_time(tmp_path: Path) -> None:
    shown: list[str] = []
    supervisor = supervisor_of(
        StudySpec.from_dict({"name": "s", "objective": {"path": "s.py:f"}}), tmp_path, shown.append
    )
    first, second = (SimpleNamespace(slot=slot, last_events={}) for slot in (0, 1))
    for process, line in [(second, "a column is constant"), (first, "a column is constant"), (first, "on 4 cores")]:
        supervisor._relay(process, line)
    assert shown == ["worker 1 | a column is constant", "worker 0 | on 4 cores"]
    for process, line in [
        (first, "Traceback (most recent call last):"),
        (second, "Traceback (most recent call last):"),
    ]:
        supervisor._relay(process, line)
        supervisor._relay(process, "  in the same line")
    assert shown[2:] == [
        f"worker {slot} | {line}"
        for slot in (0, 1)
        for line in ("Traceback (most recent call last):", "  in the same line")
    ]
    del shown[2:]
    first.last_events = second.last_events = {"ready": {}}
    for process in (first, second):
        supervisor._relay(process, "a column is constant")
    assert shown[2:] == ["worker 0 | a column is constant", "worker 1 | a column is constant"]


def test_open_files_are_written_out_although_something_stands_for_what_is_gone(tmp_path: Path) -> None:
    gone = weakref.proxy(set())
    with (tmp_path / "kept.txt").open("w") as kept:
        kept.write("a line")
        worker._write_out()
        assert (tmp_path / "kept.txt").read_text() == "a line"
    with pytest.raises(ReferenceError):
        str(gone.anything)
