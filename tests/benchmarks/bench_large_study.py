"""What it costs to look at a large study: the wall time and the peak memory of each command.

    python tests/benchmarks/bench_large_study.py --trials 50000 --only status report "plot history .png"

The study has four parameters, ten reports and two metrics per step and trial; see ``filled.mix``. Memory is the
largest resident set of the command, without the server's. ``imports`` is the floor: what a plot must load.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from studies import PostgresStorage, StudySpec
from studies.report.plot_kinds import PLOTS
from studies.storage.url import StorageURL
from tests.benchmarks.arms import in_turns, options, postgres, report
from tests.benchmarks.filled import fill, mix

STUDY = "filled"
STUDYHALL = Path(sys.executable).with_name("studyhall")
#: Plots of a study with one objective.
DRAWN = [kind for kind in PLOTS if kind not in ("pareto", "hypervolume")]
LOOKS = {
    "status": ("status", STUDY),
    "best": ("best", STUDY),
    "show": ("show", STUDY),
    "show trial": ("show", STUDY, "17"),
    "trials table": ("trials", STUDY),
    "trials csv": ("trials", STUDY, "--format", "csv"),
    "trials json": ("trials", STUDY, "--format", "json"),
    "watch": ("watch", STUDY),
    "report": ("report", STUDY, "-o", "report.html"),
    **{
        f"plot {kind} {end}": ("plot", STUDY, kind, "-o", f"{kind}{end}") for kind in DRAWN for end in (".png", ".html")
    },
}
IMPORTS = """
import matplotlib.pyplot, optuna.visualization.matplotlib, plotly.graph_objects, studies.storage.postgres
import studies.report.page
plotly.graph_objects.Figure(), matplotlib.pyplot.figure()
"""
COMMANDS = {
    "imports": (sys.executable, "-c", IMPORTS),
    **{name: (str(STUDYHALL), *arguments) for name, arguments in LOOKS.items()},
}
#: In a process of its own, since a child's peak memory begins with that of the process that started it.
MEASURE = """
import resource, subprocess, sys, time
begin = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, timeout=3600)
seconds = time.perf_counter() - begin
print(done.returncode, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def main() -> None:
    parser = options("Seconds and peak memory of each command that looks at a large study.")
    parser.add_argument("--trials", type=int, default=5_000, help="of the study (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="reported by each trial (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=COMMANDS, metavar="COMMAND", default=list(COMMANDS), help="these")
    settings = parser.parse_args()
    with postgres(settings.postgres) as url, tempfile.TemporaryDirectory() as folder:
        with closing(PostgresStorage(url)) as storage:
            storage.create_study(StudySpec.from_dict(spec(settings.trials)))
        fill(url, settings.trials, settings.steps, STUDY)
        mix(url, STUDY)
        medians = in_turns(settings.rounds, {name: partial(measure, name, url, folder) for name in settings.only})
    report("large_study", settings, medians)


def spec(trials: int) -> dict[str, Any]:
    """A study that is over, so that ``watch`` ends."""
    return {
        "name": STUDY,
        "objective": {"path": "objectives.mlp:MLP", "args": {"dataset": "digits"}},
        "budget": {"trials": trials // 20 * 17, "max_failures": trials},
        "space": {
            "x": {"type": "float", "low": -5.0, "high": 5.0},
            "rate": {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
            "width": {"type": "int", "low": 16, "high": 512},
            "kind": {"type": "categorical", "choices": ["relu", "tanh", "gelu"]},
        },
    }


def measure(name: str, url: StorageURL, folder: str, _round: int) -> dict[str, float]:
    environment = {**os.environ, "STUDYHALL_STORAGE": url.sqlalchemy}
    argv = [sys.executable, "-I", "-S", "-c", MEASURE, *COMMANDS[name]]
    done = subprocess.run(argv, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    code, seconds, kilobytes = done.stdout.split()
    if code != "0":
        sys.exit(f"{name} ended with {code}")
    return {"seconds": float(seconds), "peak_mb": int(kilobytes) * 1024 / 1e6}


if __name__ == "__main__":
    main()
