"""The picture that `watch` shows: an overview of a study, in as many lines and columns as the terminal has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from studies.cli.formats import readable
from studies.cli.status import WORK, work_cells
from studies.errors import command
from studies.objective import work_command
from studies.overview import share_rows, sparkline
from studies.stop_reasons import STOP_REASONS
from studies.text import counted, duration, number, printable, time_left

if TYPE_CHECKING:
    from collections.abc import Sequence

    from studies.overview import Overview, Running, Throughput

#: The most lines of what is wrong, of a command to type, of the best parameters, and of reasons why trials failed.
TROUBLE_LINES, JOIN_LINES, PARAMETER_LINES, REASONS = 3, 4, 2, 2
#: Of a Pareto front so many trials are shown.
FRONT_LINES = 5
#: The parameters of running trials are shown where they have so many columns.
PARAMETER_COLUMNS = 16
#: Of the steps at which trials were pruned, so many are named.
STEPS = 5


def picture(seen: Overview, metric: str, console: Console, *, trouble: str | None = None, height: int) -> Group:
    """``seen`` in at most ``height`` lines, if that is at all possible.

    Args:
        seen: the study.
        metric: what its objective returns; of several, all names.
        console: where it will be shown.
        trouble: why this is not how it stands now.
        height: lines.
    """
    top = [*_headline(seen, console, trouble), Text(), *_best(seen, metric, console), Text()]
    bottom = _lost(seen)
    running, workers = seen.running, seen.status.workers
    # Each table has a line of names above and an empty one below.
    tables = bool(running) + bool(workers)
    rows = share_rows(height - len(top) - len(bottom) - 2 * tables, [len(running), len(workers)])
    parts = top
    if running:
        parts += [_running_table(running, rows[0], console.width), Text()]
    if workers:
        parts += [_workers_table(seen, rows[1], console.width), Text()]
    return Group(*parts, *bottom)


def state_of(seen: Overview) -> tuple[str, str]:
    """The study's state in words, and a style for them."""
    now = seen.status
    if now.ended is not None:
        return STOP_REASONS.get(now.ended, now.ended), "green" if now.ended in ("complete", "target") else "yellow"
    if now.paused:
        return f"paused; go on with: {command('resume', now.study)}", "yellow"
    if not now.workers and not now.trials["running"]:
        return "no worker is running", "yellow"
    return f"{counted(len(now.workers), 'worker')} at work" if now.workers else "running", "cyan"


def way_to_join(seen: Overview) -> str | None:
    """The `work` command of a study without workers, if it can have any."""
    now = seen.status
    if now.objective is None or now.ended is not None or now.paused or now.workers or now.trials["running"]:
        return None
    return work_command(now.study, now.objective, now.store)


def _line(*parts: str | tuple[str, str] | Text) -> Text:
    """One line, cut where the terminal ends."""
    shown = [
        printable(part) if isinstance(part, str) else part if isinstance(part, Text) else (printable(part[0]), part[1])
        for part in parts
    ]
    text = Text.assemble(*shown)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _folded(text: str, console: Console, lines: int, style: str = "") -> list[Text]:
    """``text`` in at most so many lines."""
    folded = list(Text(printable(text), style).wrap(console, max(10, console.width))) if text else []
    if len(folded) > lines:
        folded = folded[:lines]
        folded[-1].truncate(console.width - 2)
        folded[-1].append(" …")
    return folded


def _headline(seen: Overview, console: Console, trouble: str | None) -> list[RenderableType]:
    now = seen.status
    state, style = state_of(seen)
    name = Text(printable(now.study), "bold")
    name.truncate(max(10, console.width - len(state) - 2), overflow="ellipsis")
    lines: list[RenderableType] = [_line(name, "  ", (state, style))]
    if way := way_to_join(seen):
        # Whole, for it is to be typed.
        lines += _folded(f"join with: {way}", console, JOIN_LINES, "yellow")
    if trouble:
        lines += _folded(trouble, console, TROUBLE_LINES, "bold yellow")
    share = now.share_done
    if share is not None:
        words = now.done
        if now.ended is None:
            words += f", {time_left(seen.seconds_left)}"
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=1.0, completed=share, width=max(10, min(60, console.width - len(words) - 2))),
            _line(words),
        )
        lines.append(bar)
    states = ("complete", "pruned", "running", "waiting", "paused", "fail")
    counts = [f"{now.trials[key]} {'failed' if key == 'fail' else key}" for key in states if now.trials.get(key)]
    lines.append(_line(" · ".join(counts) or "no trial has begun"))
    return lines


def _best(seen: Overview, metric: str, console: Console) -> list[RenderableType]:
    now = seen.status
    if seen.front:
        return _front(seen, metric)
    if now.best is None:
        reason = "no complete trial keeps the constraints" if now.trials["complete"] else "no trial is complete"
        return [_line("best  – ", (f"({reason})", "dim"))]
    words = "  ".join(f"{name}={readable(value)}" for name, value in now.best.params.items())
    return [
        _line("best  ", (number(now.best.value), "bold green"), f" {metric}, trial {now.best.number}"),
        *_folded(words, console, PARAMETER_LINES),
    ]


def _front(seen: Overview, metrics: str) -> list[RenderableType]:
    """The Pareto front: its size, and the values and parameters of its newest trials."""
    newest = seen.front[-FRONT_LINES:]
    count = counted(len(seen.front), "trial")
    shown = "" if len(newest) == len(seen.front) else f", the newest {len(newest)}"
    lines: list[RenderableType] = [_line("best  ", (count, "bold green"), f" on the Pareto front of {metrics}{shown}:")]
    for trial in newest:
        words = "  ".join(f"{name}={readable(value)}" for name, value in trial.params.items())
        values = ", ".join(map(number, trial.values))
        lines.append(_line(f"  trial {trial.number}  ", (values, "green"), f"  {words}"))
    return lines


def _table(*columns: str, left: Sequence[str], widest: int = 32) -> Table:
    """A table whose first column gives way to the others beyond ``widest``."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for name in columns:
        table.add_column(
            name,
            justify="left" if name in left else "right",
            no_wrap=True,
            overflow="ellipsis",
            max_width=widest if name == columns[0] else 32,
        )
    return table


def _cut(count: int, rows: int) -> int:
    """How many of ``count`` are shown in ``rows`` lines, if the last line is to say how many are not."""
    return count if count <= rows else max(0, rows - 1)


def _more(count: int, shown: int) -> str:
    return f"… and {count - shown} more"


def _running_table(running: Sequence[Running], rows: int, width: int) -> Table:
    table = _table("trial", "step", "value", "reported so far", left=["reported so far"])
    shown = _cut(len(running), rows)
    # Curves and parameters share what the numbers leave of the terminal; without room for both there are curves.
    curves = min(32, (width - 32) // 2)
    room = width - 32 - curves
    has_room = room >= PARAMETER_COLUMNS and any(trial.params for trial in running)
    if not has_room:
        curves = max(8, min(32, width - 40))
    else:
        table.add_column("parameters", no_wrap=True, overflow="ellipsis", max_width=room)
    for trial in running[:shown]:
        words = " ".join(f"{name}={readable(value)}" for name, value in trial.params.items())
        table.add_row(
            str(trial.number),
            "–" if trial.step is None else str(trial.step),
            number(trial.value),
            Text(sparkline(trial.curve, curves), "cyan"),
            *([printable(words)] if has_room else []),
        )
    if shown < len(running):
        table.add_row("", "", "", Text(_more(len(running), shown), "dim"))
    return table


def _workers_table(seen: Overview, rows: int, width: int) -> Table:
    workers = seen.status.workers
    columns = ("worker", "pid", "device", *WORK, "done", "trials/h", "seen")
    # Names of hosts give way: the numbers of the other columns take 66 characters, and mean nothing if they are cut.
    table = _table(*columns, left=["worker", "device"], widest=max(8, min(32, width - 66)))
    shown = _cut(len(workers), rows)
    for worker in workers[:shown]:
        throughput: Throughput = seen.throughput[worker.id]
        table.add_row(
            printable(worker.host),
            str(worker.pid),
            printable(worker.device),
            *work_cells(worker),
            str(throughput.done),
            _rate(throughput.per_hour),
            f"{duration(worker.seen_seconds_ago, is_live=True)} ago",
        )
    if shown < len(workers):
        table.add_row(Text(_more(len(workers), shown), "dim"))
    return table


def _rate(per_hour: float | None) -> str:
    if per_hour is None:
        return "–"
    return f"{per_hour:,.0f}" if per_hour >= 99.5 else f"{per_hour:.2g}"


def _lost(seen: Overview) -> list[RenderableType]:
    """What came to no result: pruned, failed, cancelled."""
    lines: list[RenderableType] = []
    pruning = seen.pruning
    if pruning.at_step:
        steps = [
            f"{count} {'before the first step' if step is None else f'at step {step}'}"
            for step, count in pruning.at_step.items()
        ]
        lines.append(_line("pruned  ", ", ".join(steps[:STEPS]) + (", …" if len(steps) > STEPS else "")))
    if pruning.saved is not None and pruning.share is not None:
        lines.append(_line("saved   ", f"{counted(pruning.saved, 'step')} by pruning: {pruning.share:.0%} of all"))
    for failures in seen.failures[:REASONS]:
        lines.append(_line(("failed  ", "red"), f"{failures.count} × {failures.reason}"))
    if len(seen.failures) > REASONS:
        lines.append(_line("        ", (_more(len(seen.failures), REASONS), "dim")))
    if seen.cancelled:
        lines.append(_line("failed  ", f"{seen.cancelled} × cancelled"))
    return lines
