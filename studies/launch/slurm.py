"""Workers as an array of Slurm jobs: the script, and the few of Slurm's own commands that it takes.

The jobs of a study carry its uid in their comment, by which they are found again: names need not be unique.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from studies.errors import StudyhallError

#: Options of sbatch that the launcher sets itself → our option for each.
RESERVED: Final[Mapping[str, str | None]] = {
    "array": "--workers",
    "comment": None,
    "error": "--logs",
    "export": None,
    "no-requeue": None,
    "open-mode": None,
    "output": "--logs",
    "partition": "--partition",
    "requeue": None,
    "signal": "--grace",
    "time": "--time",
    "wrap": None,
}
#: The longest warning of Slurm in seconds.
MAX_GRACE: Final = 65_535
_DEFAULT_GRACE: Final = 120
# Reasons why a submitted job never starts: it asks for resources that no node has.
_NEVER: Final = ("PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints")
_TIME: Final = re.compile(r"(?:(?P<days>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?", re.ASCII)

_BODY: Final = """
task=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
say() { echo "$(date '+%F %T') task $task on $SLURMD_NODENAME: $*"; }
STORAGE
PREPARE
# Slurm's warning before the time limit. Running trials are requeued, and the task is queued again: by force if
# a step takes longer than the grace, since Slurm would not queue again what it ends at the limit.
again=
warned() {
    again=yes
    kill -USR1 "${work:=$!}"
    (sleep FORCE && scontrol requeue "$task") &
}
trap warned USR1
# Cancelled, preempted or requeued. Slurm tells the workers, too, and queues again by itself what is to be.
trap 'again=' TERM

say "begins${SLURM_RESTART_COUNT:+, restart $SLURM_RESTART_COUNT}"
# An unreachable database is waited for.
export STUDYHALL_WAIT="${STUDYHALL_WAIT:-3600}"
WORK &
work=$!
# A signal ends `wait`, but not yet the workers.
while wait "$work"; status=$?; [ "$status" -gt 128 ] && kill -0 "$work" 2>/dev/null; do :; done
say "the workers ended with exit status $status${again:+; queueing it again}"
[ "$again" ] || exit "$status"
exec scontrol requeue "$task"
"""


@dataclass(frozen=True, kw_only=True)
class WorkerArray:
    """An array of jobs; each task runs ``studyhall work``, and is queued again until the study is over."""

    study: str
    uid: str | None
    """``None`` where the database was not asked; :func:`find_tasks` does not find such jobs."""
    storage: str | None
    """Its URL without a password, used where ``STUDYHALL_STORAGE`` is not set."""
    program: Path
    """Which ``studyhall`` a task runs, unless ``setup`` or ``container`` brings one."""
    work: Sequence[str]
    """The arguments of ``studyhall work``."""
    tasks: int
    workers_per_task: int = 1
    gpus_per_worker: int = 0
    cpus_per_worker: int = 1
    setup: Sequence[str] = ()
    """Commands of the shell that come before, such as ``module load cuda``."""
    container: str | None = None
    """An image of Apptainer (Singularity) with ``studyhall``, in which the workers run."""
    binds: Sequence[Path] = ()
    """Directories that the container sees, beside what Apptainer shows it anyway: the home, ``/tmp``, this one."""
    partition: str | None = None
    """``None`` for Slurm's default."""
    time: str | None = None
    """As Slurm writes it; ``None`` for the partition's limit."""
    grace: int = _DEFAULT_GRACE
    """Seconds before the time limit at which trials are requeued; up to 60 s more, as Slurm checks once a minute."""
    logs: Path | None
    """A directory, absolute; ``None`` for files where ``sbatch`` is called."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further options of sbatch by their long names; an empty value for one that takes none."""

    @property
    def directives(self) -> dict[str, str]:
        """The options of sbatch, as ``settings``, which overrule ours."""
        said = {
            "job-name": slug(self.study),
            **({"comment": marker(self.uid)} if self.uid else {}),
            "array": f"0-{self.tasks - 1}",
            **({"partition": self.partition} if self.partition else {}),
            **({"time": self.time} if self.time else {}),
            "signal": f"B:USR1@{self.grace}",
            "requeue": "",
            "open-mode": "append",
            "output": f"{str(self.logs).replace('%', '%%')}/%A_%a.log" if self.logs else "slurm-%x-%A_%a.log",
            "export": "ALL",
            "cpus-per-task": str(self.workers_per_task * self.cpus_per_worker),
        }
        if self.gpus_per_worker and not any(asks_for_gpus(*setting) for setting in self.settings.items()):
            said["gres"] = f"gpu:{self.workers_per_task * self.gpus_per_worker}"
        return {**said, **self.settings}

    @property
    def script(self) -> str:
        """The script, as sbatch reads it."""
        # A login shell has the function `module`; one without setup has all it needs from whoever called sbatch.
        lines = ["#!/bin/bash -l" if self.setup else "#!/bin/bash"]
        for key, value in self.directives.items():
            lines.append(f"#SBATCH --{key}" + (f"={shlex.quote(value)}" if value else ""))
        lines += ["", f"# Workers of study {self.study!r}, by `studyhall launch slurm`. Run it with: sbatch FILE"]
        if not self.gpus_per_worker:
            lines.append("export CUDA_VISIBLE_DEVICES=  # it asks for no GPU, and is to touch none that it may see")
        parts = {
            "STORAGE": self._storage,
            "PREPARE": "".join(f"{line}\n" for line in self._preparation),
            "WORK": self._work,
            "FORCE": str(max(1, self.grace * 3 // 4)),
        }
        # In one go: a study's name may be WORK.
        return "\n".join(lines) + re.sub("|".join(parts), lambda found: parts[found[0]], _BODY)

    @property
    def _storage(self) -> str:
        # Without one, `studyhall work` would start an embedded server on each node.
        unset = '[ "${STUDYHALL_STORAGE:-}" ] || '
        if self.storage:
            return f"{unset}export STUDYHALL_STORAGE={shlex.quote(self.storage)}"
        return unset + "{ say 'no STUDYHALL_STORAGE: export it (the URL of the studies) before sbatch'; exit 1; }"

    @property
    def _preparation(self) -> Iterator[str]:
        if self.setup:
            if any(re.search(r"\bconda +activate\b", command) for command in self.setup):
                # `conda activate` is a function, which only interactive shells have by themselves.
                yield '[ "${CONDA_EXE:-}" ] && eval "$("$CONDA_EXE" shell.bash hook)"'
            yield "{"
            yield from self.setup
            yield '} || { say "the setup failed with exit status $?"; exit 1; }'
            yield f'export PATH="$PATH":{shlex.quote(str(self.program.parent))}  # after what the setup has put there'
        if self.container:
            yield "apptainer=$(command -v apptainer || command -v singularity) ||"
            yield "    { say 'neither apptainer nor singularity is here; --setup may load it'; exit 1; }"
            # The image's own may lie within the image, where nothing can be written.
            yield 'export STUDYHALL_HOME="${STUDYHALL_HOME:-$HOME/.local/share/studyhall}"'
            yield 'export STUDYHALL_DATA="${STUDYHALL_DATA:-$STUDYHALL_HOME/data}"'

    @property
    def _work(self) -> str:
        if not self.container:
            return shlex.join(["studyhall" if self.setup else str(self.program), *self.work])
        binds = [option for path in self.binds for option in ("--bind", str(path))]
        argv = ["exec", *(["--nv"] if self.gpus_per_worker else []), *binds, self.container, "studyhall", *self.work]
        return f'"$apptainer" {shlex.join(argv)}'

    def submit(self, environment: Mapping[str, str]) -> str:
        """Hand it to Slurm.

        Args:
            environment: of the jobs, with ``STUDYHALL_STORAGE``.

        Returns:
            The array's job id.

        Raises:
            StudyhallError: Slurm is not here, or refuses it.
        """
        # Environment variables win over the script: SBATCH_TIMELIMIT would override --time.
        names = {"array": "ARRAY_INX", "time": "TIMELIMIT"}
        overruling = {f"SBATCH_{names.get(key, key.upper().replace('-', '_'))}" for key in self.directives}
        kept = {name: value for name, value in environment.items() if name not in overruling | {"SBATCH_NO_REQUEUE"}}
        done = _run(["sbatch", "--parsable"], environment=kept, given=self.script)
        if done.returncode:
            advice = _advice(done.stderr, has_gpu=self.gpus_per_worker > 0)
            raise StudyhallError(f"sbatch refuses the job: {_told(done.stderr)}{advice}")
        return done.stdout.strip().partition(";")[0]


def slug(name: str) -> str:
    """A study's name as a file and a job can bear it."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "study"


def asks_for_gpus(key: str, value: str) -> bool:
    """Whether sbatch's option ``--key=value`` does, as ``gpus-per-node=a100:1`` and ``gres=gpu:1`` do."""
    return key.startswith("gpus") or (key == "gres" and "gpu" in value)


def marker(uid: str) -> str:
    """The comment of the jobs of the study ``uid``."""
    return f"studyhall:{uid}"


def seconds_of(time: str) -> int:
    """A time limit in seconds, as Slurm reads it: ``90``, ``90:00``, ``4:00:00``, ``1-12``, ``1-12:30:00``.

    Raises:
        ValueError: it is none, or zero.
    """
    found = _TIME.fullmatch(time)
    days, a, b, c = (int(part) if part else None for part in found.groups()) if found else (None, None, None, None)
    if a is None:
        seconds = 0
    elif days is not None:
        seconds = days * 86_400 + a * 3_600 + (b or 0) * 60 + (c or 0)
    elif c is not None:
        seconds = a * 3_600 + (b or 0) * 60 + c
    else:
        seconds = a * 60 + (b or 0)
    if not seconds:
        raise ValueError(
            f"{time!r} is no time limit: write minutes (90), hours:minutes:seconds (4:00:00) or "
            "days-hours:minutes:seconds (1-12:00:00)"
        )
    return -(-seconds // 60) * 60  # Slurm counts whole minutes


def default_grace(seconds: int | None) -> int:
    """Seconds of warning before a time limit of ``seconds``, of which it takes a quarter at most."""
    return _DEFAULT_GRACE if seconds is None else min(_DEFAULT_GRACE, seconds // 4)


def find_tasks(uid: str) -> list[str]:
    """The array's job id of each task of one's own that waits or runs for the study ``uid``.

    Raises:
        StudyhallError: Slurm is not here, or does not answer.
    """
    done = _run(["squeue", "--noheader", "--me", "--array", "--format=%F|%k"])
    if done.returncode:
        raise StudyhallError(f"squeue does not answer: {_told(done.stderr)}")
    jobs = [line.partition("|") for line in done.stdout.splitlines()]
    return [job for job, _, comment in jobs if comment.strip() == marker(uid)]


def why_never(job_id: str) -> str | None:
    """Slurm's reason why a job will never start; ``None`` if it may."""
    told = _run(["squeue", "--noheader", f"--jobs={job_id}", "--format=%r"]).stdout.split()
    return next((reason for reason in told if reason in _NEVER), None)


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel jobs; their workers requeue their trials.

    Raises:
        StudyhallError: Slurm refuses.
    """
    done = _run(["scancel", *job_ids])
    if done.returncode:
        raise StudyhallError(f"scancel refuses: {_told(done.stderr)}")


def _run(
    argv: Sequence[str], *, environment: Mapping[str, str] | None = None, given: str = ""
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, input=given, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise StudyhallError(
            f"there is no {argv[0]} on this machine: run this where Slurm's commands are, such as the cluster's "
            "login node; `studyhall launch slurm --print` shows the script anywhere"
        ) from None


def _told(stderr: str) -> str:
    """The output of one of Slurm's commands, in one line."""
    lines = [re.sub(r"^(sbatch|squeue|scancel): (error: )?", "", line).strip() for line in stderr.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)) or "it does not say why"


def _advice(stderr: str, *, has_gpu: bool) -> str:
    """The end of an error message: the partitions or nodes that exist."""
    if "partition" in stderr:
        known = _run(["sinfo", "--noheader", "--format=%R"]).stdout.split()
        return f"; the partitions here are: {', '.join(dict.fromkeys(known)) or 'none'}"
    if "node configuration" in stderr or "gres" in stderr.lower():
        nodes = _run(["sinfo", "--noheader", "--format=%R: %c CPUs, %m MB, GPUs %G"]).stdout.splitlines()
        return f"; the nodes here have: {'; '.join(nodes)}" + ("; on CPUs: --gpus-per-worker 0" if has_gpu else "")
    return ""
