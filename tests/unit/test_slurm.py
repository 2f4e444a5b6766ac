"""The Slurm launcher without a Slurm: the script it writes, and what it refuses."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from studies.cli import studyhall
from studies.errors import StudyhallError
from studies.launch import cpus_per_worker
from studies.launch.slurm import WorkerArray, default_grace, find_tasks, seconds_of, slug
from studies.spec.study import StudySpec

ARRAY = WorkerArray(
    study="my study",
    uid="6f0e",
    storage="postgresql://lab@db.example/studies",
    program=Path("/opt/lab/bin/studyhall"),
    work=["work", "my study", "--workers", "1"],
    tasks=8,
    gpus_per_worker=1,
    partition="gpu",
    time="4:00:00",
    logs=Path("/scratch/slurm-my-study"),
)


def directives(array: WorkerArray) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in array.script.splitlines() if line.startswith("#SBATCH")]


def test_the_script_says_all_that_slurm_has_to_know() -> None:
    assert directives(ARRAY) == [
        "job-name=my-study",
        "comment=studyhall:6f0e",
        "array=0-7",
        "partition=gpu",
        "time=4:00:00",
        "signal=B:USR1@120",
        "requeue",
        "open-mode=append",
        "output=/scratch/slurm-my-study/%A_%a.log",
        "export=ALL",
        "cpus-per-task=1",
        "gres=gpu:1",
    ]
    assert "\n/opt/lab/bin/studyhall work 'my study' --workers 1 &\n" in ARRAY.script
    assert "\n(sleep 90 && scontrol requeue" not in ARRAY.script  # within the trap alone
    assert "    (sleep 90 && scontrol requeue" in ARRAY.script


@pytest.mark.parametrize(
    "array",
    [
        ARRAY,
        replace(ARRAY, gpus_per_worker=0, study="it's $HOME `id`", storage=None),
        replace(ARRAY, setup=["module load cuda; conda activate lab"], container="docker://r.example/lab:1", logs=None),
    ],
)
def test_the_script_is_one_that_bash_can_read(array: WorkerArray) -> None:
    done = subprocess.run(["bash", "-n"], input=array.script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def run(array: WorkerArray, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script as Slurm would, with programs from ``folder/bin`` that say how they were called."""
    (folder / "bin").mkdir(exist_ok=True)
    for name in ("studyhall", "apptainer", "conda-exe"):
        file = folder / "bin" / name
        file.write_text(f'#!/bin/sh\necho "{name} $* at ${{STUDYHALL_STORAGE:-nowhere}}"\n')
        file.chmod(0o755)
    (folder / "bin" / "conda-exe").write_text("#!/bin/sh\necho 'conda() { PATH=$PWD/env:$PATH; }'\n")
    slurm = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURMD_NODENAME": "n1", "HOME": str(folder)}
    argv = ["bash", *(["-l"] if array.setup else []), "-s"]
    path = f"{folder / 'bin'}:/usr/bin:/bin"
    return subprocess.run(
        argv, input=array.script, env={"PATH": path, **slurm, **environment}, cwd=folder, capture_output=True, text=True
    )


def test_the_script_runs_as_printed(tmp_path: Path) -> None:
    array = replace(ARRAY, program=tmp_path / "bin" / "studyhall")
    work = "studyhall work my study --workers 1 at"
    assert f"{work} postgresql://lab@db.example/studies\n" in run(array, tmp_path).stdout
    assert f"{work} postgresql://x/y\n" in run(array, tmp_path, STUDYHALL_STORAGE="postgresql://x/y").stdout
    done = run(replace(array, storage=None), tmp_path)
    assert done.returncode == 1
    assert "no STUDYHALL_STORAGE: export it (the URL of the studies) before sbatch" in done.stdout
    # A study may have the name of a placeholder.
    assert "studyhall work FORCE WORK at" in run(replace(array, work=["work", "FORCE", "WORK"]), tmp_path).stdout


def test_setup_and_container_come_before_the_workers(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "studyhall").write_text("#!/bin/sh\necho the environment\\'s $*\n")
    (tmp_path / "env" / "studyhall").chmod(0o755)
    array = replace(ARRAY, program=tmp_path / "bin" / "studyhall", setup=["loaded=yes", "conda activate lab"])
    assert "the environment's work my study" in run(array, tmp_path, CONDA_EXE=str(tmp_path / "bin/conda-exe")).stdout
    assert "studyhall work my study" in run(replace(array, setup=["true"]), tmp_path).stdout
    done = run(replace(array, setup=["false", "(exit 3)"]), tmp_path)
    assert (done.returncode, "the setup failed with exit status 3" in done.stdout) == (1, True)
    done = run(replace(array, setup=(), container="lab.sif", binds=[Path("/a b")]), tmp_path)
    assert "apptainer exec --nv --bind /a b lab.sif studyhall work my study --workers 1 at postgresql" in done.stdout


def test_a_workers_cpus_are_what_its_data_loader_needs() -> None:
    def needed(path: str, args: dict[str, object], *, has_gpu: bool = True) -> int:
        spec = StudySpec.from_dict({"name": "s", "objective": {"path": path, "args": args}, "budget": {"trials": 1}})
        return cpus_per_worker(spec, has_gpu=has_gpu)

    assert needed("lab:Net", {"num_workers": 6}) == 7
    assert needed("lab:Net", {"num_workers": 0}) == 1
    assert needed("lab:Net", {}) == 4
    assert needed("lab:Net", {}, has_gpu=False) == 1
    assert needed("objectives.mlp:MLP", {}) == 1
    assert cpus_per_worker(None, has_gpu=True) == 4
    assert "cpus-per-task=14" in directives(replace(ARRAY, tasks=1, workers_per_task=2, cpus_per_worker=7))


def test_a_task_of_several_workers_asks_for_all_their_cpus_and_gpus() -> None:
    told = directives(replace(ARRAY, tasks=2, workers_per_task=4))
    assert {"array=0-1", "cpus-per-task=4", "gres=gpu:4"} <= set(told)


def test_workers_on_cpus_touch_no_gpu_that_a_node_shows_them() -> None:
    array = replace(ARRAY, gpus_per_worker=0)
    assert "\nexport CUDA_VISIBLE_DEVICES=  #" in array.script
    assert not [line for line in directives(array) if "gpu:" in line]
    assert "CUDA_VISIBLE_DEVICES" not in ARRAY.script


def test_further_options_of_sbatch_overrule_ours() -> None:
    settings = {"account": "the lab", "exclusive": "", "cpus-per-task": "6", "gpus-per-node": "a100:1"}
    told = directives(replace(ARRAY, settings=settings))
    assert {"account='the lab'", "exclusive", "cpus-per-task=6", "gpus-per-node=a100:1"} <= set(told)
    assert "cpus-per-task=1" not in told
    assert "gres=gpu:1" not in told


def test_a_percent_sign_in_the_path_of_the_logs_is_not_one_of_slurms() -> None:
    assert "output='/scratch/100%% sure/%A_%a.log'" in directives(replace(ARRAY, logs=Path("/scratch/100% sure")))


@pytest.mark.parametrize(
    ("name", "expected"), [("mnist-mlp", "mnist-mlp"), ("../a b", "a-b"), ("größe", "größe"), ("//", "study")]
)
def test_a_studys_name_as_a_folder(name: str, expected: str) -> None:
    assert slug(name) == expected


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("1:30", 120), ("4:00:00", 14_400), ("1-12", 129_600), ("1-0:30", 88_200), ("2-0:0:1", 172_860)],
)
def test_a_time_limit_is_read_as_slurm_reads_it(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds


def test_the_grace_is_a_quarter_of_a_short_limit() -> None:
    assert [default_grace(seconds) for seconds in (60, 14_400, None)] == [15, 120, 120]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], "0 is not in the range x>=1"),
        (
            ["--gpus-per-worker", "2"],
            "2: a worker trains on one GPU (1), or on a CPU (0); for more GPUs, more --workers",
        ),
        (["--gpus-per-worker", "-1"], "-1: a worker trains on one GPU"),
        (["--time", "4h"], "'4h' is no time limit: write minutes (90), hours:minutes:seconds (4:00:00)"),
        (["--time", "0:00"], "'0:00' is no time limit"),
        (["--time", "1:2:3:4"], "'1:2:3:4' is no time limit"),
        (["--time", "1", "--grace", "60"], "a grace of 60 s leaves nothing of a time limit of 60 s"),
        (["--grace", "0"], "0 is not in the range"),
        (["--lease", "1"], "1.0 is not in the range"),
        (["--workers-per-task", "3"], "8 workers are no multiple of 3 in each task"),
        (["--logs", "a\\b"], "holds a backslash"),
        (["--sbatch", "mem 4G"], "'mem 4G' is not KEY=VALUE with a long option of sbatch, such as account=lab"),
        (["--sbatch", "-p=main"], "'-p=main' is not KEY=VALUE"),
        (["--sbatch", "mem=1\n#SBATCH --uid=0"], "is not KEY=VALUE"),
        (["--sbatch", "array=0-99"], "array is set by the launcher itself: use --workers"),
        (["--sbatch", "comment=x"], "comment is set by the launcher itself"),
        (
            ["--gpus-per-worker", "0", "--sbatch", "gres=gpu:1"],
            "--sbatch gres asks for GPUs, and --gpus-per-worker is 0: set it to 1",
        ),
    ],
)
def test_options_that_cannot_be(options: list[str], message: str) -> None:
    done = CliRunner().invoke(studyhall, ["launch", "slurm", "digits", "--workers", "8", *options])
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


@pytest.mark.parametrize("arguments", [["--workers", "8"], None])
def test_the_embedded_database_cannot_serve_a_cluster(arguments: list[str] | None) -> None:
    words = ["launch", "cancel", "digits"] if arguments is None else ["launch", "slurm", "digits", *arguments]
    done = CliRunner().invoke(studyhall, words)
    assert done.exit_code == 1
    assert done.stderr.startswith(
        "error: the embedded database serves this machine alone, and the workers run on others"
    )
    assert "--storage or STUDYHALL_STORAGE" in done.stderr


def test_a_script_is_printed_without_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDYHALL_HOME", str(tmp_path / "empty"))
    away = "postgresql://lab:secret@127.0.0.1:1/studies"
    for options, storage in {(): "before sbatch", ("--storage", away): "postgresql://lab@127.0.0.1:1/studies"}.items():
        done = CliRunner().invoke(studyhall, ["launch", "slurm", "digits", "--workers", "8", "--print", *options])
        assert done.exit_code == 0, done.stderr
        assert storage in done.stdout
        assert "secret" not in done.output
        assert "--comment" not in done.stdout
        assert "#SBATCH --output=slurm-%x-%A_%a.log\n" in done.stdout  # in no folder that may not be there
        assert "; study 'digits' was not checked: its workers find out whether it exists and may run" in done.stderr
        assert "#SBATCH --gres=gpu:1\n" in done.stdout  # the default of every launcher
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_slurms_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StudyhallError, match="there is no sbatch on this machine: run this where Slurm's commands are"):
        ARRAY.submit({"PATH": str(tmp_path)})
    with pytest.raises(StudyhallError, match="there is no squeue on this machine"):
        find_tasks("6f0e")
