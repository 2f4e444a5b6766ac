"""The checks of a machine: passwords, GPUs, disks, pending results, checkpoint stores."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

from studies.checkpoint_stores import PERMISSION, open_store, require_allowed
from studies.doctor.findings import Finding, KnownStudy
from studies.errors import CheckpointError, command, one_line
from studies.stop_reasons import way_on
from studies.storage.url import StorageURL
from studies.text import counted
from studies.worker.devices import cores

#: Bytes, and the share of a disk: a large one that is nearly full needs attention before 5 GB are left.
MIN_FREE_BYTES: Final = 5e9
MIN_FREE: Final = 0.05


def examine_url(url: StorageURL, given_by: str, pgpass: Path) -> list[Finding]:
    """Whether a password can be seen by others.

    Args:
        url: of the storage.
        given_by: ``--storage`` or ``STUDYHALL_STORAGE``.
        pgpass: where libpq looks for passwords.
    """
    findings = []
    if url.password:
        seen_by = "every user of this machine (ps)" if given_by == "--storage" else "every program that you start"
        host, port = url.hosts[0] if url.hosts else ("", None)
        shown = shlex.quote(str(pgpass))
        line = f"{host or 'localhost'}:{port or 5432}:{url.database or '*'}:{url.user or '*'}:PASSWORD"
        findings.append(
            Finding(
                level="warning",
                about="password",
                what=f"the one in {given_by} can be seen by {seen_by}: leave it out, and keep it in {shown}",
                fix=f"echo {shlex.quote(line)} >> {shown}; chmod 600 {shown}",
            )
        )
    if pgpass.exists():
        is_open = bool(pgpass.stat().st_mode & 0o077)
        findings.append(
            Finding(
                level="warning" if is_open else "ok",
                about="password",
                what=f"{pgpass} is open to others, and PostgreSQL ignores it"
                if is_open
                else f"{pgpass} is yours alone",
                fix=f"chmod 600 {shlex.quote(str(pgpass))}" if is_open else None,
            )
        )
    return findings


def examine_machine(
    home: Path,
    data_dir: Path,
    cuda_visible_devices: str | None,
    studies: Sequence[KnownStudy],
    allow: Sequence[str],
) -> list[Finding]:
    """Check its GPUs, disks, pending results and checkpoint stores.

    Args:
        home: what Studyhall keeps on this machine.
        data_dir: where data sets are.
        cuda_visible_devices: the variable, or ``None`` where it is not set.
        studies: of the storage, whose checkpoints may lie in directories.
        allow: what they may use here, as ``work --allow`` says it.
    """
    stores: dict[str, list[KnownStudy]] = {}
    for study in studies:
        if study.store.startswith("/"):
            stores.setdefault(study.store, []).append(study)
    return [
        gpus(cuda_visible_devices),
        *_results(home / "results", studies),
        *(_checkpoints(store, users, data_dir, allow) for store, users in stores.items()),
        *disks({"home": home, "data": data_dir} | {f"checkpoints in {store}": Path(store) for store in stores}),
    ]


def gpus(visible: str | None) -> Finding:
    """Whether workers would find the GPUs. Asks the driver: importing PyTorch takes seconds."""
    hidden = visible is not None and visible.strip() in ("", "-1")
    named = [] if visible is None or hidden else [part.strip() for part in visible.split(",")]
    on_cores = f"workers run on {cores()} CPU core{'s' if cores() > 1 else ''}"
    unset = "unset CUDA_VISIBLE_DEVICES"
    if not shutil.which("nvidia-smi"):
        if named:
            what = f"CUDA_VISIBLE_DEVICES is {visible!r}, and there is no nvidia-smi to see whether they are there"
            return Finding(level="warning", about="GPUs", what=what, fix=unset)
        return Finding(level="ok", about="GPUs", what=f"none here (no nvidia-smi): {on_cores}")
    found = _nvidia_smi()
    if isinstance(found, str):
        what = f"nvidia-smi fails: {found}; fix the driver, or reboot"
        return Finding(level="warning", about="GPUs", what=what, fix="nvidia-smi")
    if hidden and found:
        what = f"{len(found)} here, hidden by CUDA_VISIBLE_DEVICES={visible!r}: {on_cores}"
        return Finding(level="warning", about="GPUs", what=what, fix=unset)
    # Names such as GPU-8932f937… or MIG-… are legal as well; only numbers can be checked without PyTorch.
    missing = [name for name in named if name.isdecimal() and int(name) >= len(found)]
    if missing:
        what = f"CUDA_VISIBLE_DEVICES names GPU {', '.join(missing)}, and there are {len(found)}, from 0"
        return Finding(level="warning", about="GPUs", what=what, fix=unset)
    if not found:
        return Finding(level="ok", about="GPUs", what=f"none here: {on_cores}")
    shown = f"{len(named or found)} of {len(found)}: {', '.join(sorted(set(found)))}"
    # The version of the wheel names its build; to ask PyTorch itself would take seconds.
    torch = _torch_version()
    if torch.endswith("+cpu"):
        what = f"{shown}; PyTorch {torch} is built without CUDA and cannot use them"
        return Finding(level="warning", about="GPUs", what=what, fix="pip install --force-reinstall torch")
    return Finding(level="ok", about="GPUs", what=shown)


def _torch_version() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def _nvidia_smi() -> list[str] | str:
    """The names of the GPUs; or an error message."""
    try:
        # A hanging driver is what doctor should find, not what should hang it.
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return one_line(error)
    if done.returncode:
        return " ".join((done.stderr or done.stdout).split()) or f"exit status {done.returncode}"
    return re.findall(r"^GPU \d+: (.*?) \(UUID", done.stdout, re.MULTILINE)


def _results(directory: Path, studies: Sequence[KnownStudy]) -> Iterator[Finding]:
    # By the id in the folder's name: a study of the same name in another database has other results.
    by_uid = {study.uid: study for study in studies}
    for folder in sorted(directory.glob("*")):
        # Refused ones were told as FAIL: they are kept only for a person to read why.
        waiting, refused = list(folder.glob("*.json")), list(folder.glob("*.refused"))
        study = by_uid.get(folder.name)
        if waiting and study:
            what = f"{counted(len(waiting), 'result')} of study {study.name!r} in {folder}, not in the database yet"
            fix = study.work
            if study.ended:
                fix = f"{way_on(study.name, study.ended)}; {fix}"
            yield Finding(level="warning", about="results", what=what, fix=fix)
        elif waiting:
            # The folder may belong to another --storage, and hold the only copy: only a person knows.
            pending = f"{counted(len(waiting), 'result')} in {folder}"
            what = f"{pending} for a study of another database; if that was deleted, remove the folder"
            fix = f"rm -r {shlex.quote(str(folder))}"
            yield Finding(level="warning", about="results", what=what, fix=fix)
        if refused:
            what = f"{counted(len(refused), 'refusal')} of the database in {folder}; read them, then remove them"
            fix = f"rm {shlex.quote(str(folder))}/*.refused"
            yield Finding(level="warning", about="results", what=what, fix=fix)


def _checkpoints(store: str, users: Sequence[KnownStudy], data_dir: Path, allow: Sequence[str]) -> Finding:
    going_on = [study for study in users if not study.ended]
    whose = f"of {', '.join(repr(study.name) for study in going_on) or 'studies that have ended'}"
    try:
        require_allowed(store, allow, data_dir, users[0].name)
    except CheckpointError:  # a study must not make a machine write where its operator did not allow it
        examine = command("doctor", "--allow", PERMISSION + store)
        return Finding(
            level="warning" if going_on else "ok",
            about="checkpoints",
            what=f"{whose} lie in {store}, which this machine does not allow; if you trust that place:",
            fix="; ".join([examine, *(study.work for study in going_on)]),
        )
    try:
        if not Path(store).exists():  # the check would create it, in place of a share that is not mounted
            raise CheckpointError(f"there is no {store} on this machine: mount its share, or make it")
        open_store(store, users[0].uid).check()
    except CheckpointError as error:
        return Finding(
            # A study that has ended needs its checkpoints no more, unless somebody extends it.
            level="error" if going_on else "warning",
            about="checkpoints",
            what=f"{whose}: {error}",
            fix=f"{'ls -ld' if Path(store).exists() else 'mkdir -p'} {shlex.quote(store)}",
        )
    return Finding(level="ok", about="checkpoints", what=f"can be written to {store}")


def disks(directories: Mapping[str, Path]) -> Iterator[Finding]:
    """Whether the file systems of these directories have free space; one finding for each file system."""
    seen: dict[int, tuple[Path, list[str]]] = {}
    for name, path in directories.items():
        # A folder that is not made yet will be on the file system of its nearest parent.
        existing = next(parent for parent in (path, *path.parents) if parent.is_dir())
        seen.setdefault(existing.stat().st_dev, (existing, []))[1].append(name)
    for path, names in seen.values():
        usage = shutil.disk_usage(path)
        yield disk(", ".join(names), path, usage.free, usage.total)


def disk(names: str, path: Path, free: int, total: int) -> Finding:
    """Whether ``path`` has free space.

    Args:
        names: of the directories there.
        path: on the file system.
        free: bytes.
        total: bytes.
    """
    what = f"{free / 1e9:.1f} GB of {total / 1e9:.0f} GB free for {names}"
    if free >= MIN_FREE_BYTES and free >= MIN_FREE * total:
        return Finding(level="ok", about="disk", what=what)
    fix = f"du -xsh {shlex.quote(str(path))}/* | sort -h"
    return Finding(level="warning", about="disk", what=f"{what}: make room at {path}", fix=fix)
