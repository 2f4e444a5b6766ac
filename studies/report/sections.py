"""The text and tables of a report. Everything from the database is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from studies.errors import command
from studies.report.ablation import ablation as path_to_best
from studies.report.formats import count, moment, param
from studies.report.snapshot import quiet, snapshot
from studies.storage.trials import paused_at
from studies.text import counted, duration, in_one_line, number, printable

if TYPE_CHECKING:
    from studies.report.data import StudyData

#: The most trials of a Pareto front that are listed.
_MOST_OF_FRONT = 20


def text(value: object) -> str:
    """``value`` as HTML: escaped, with its lines kept and invisible characters shown."""
    return html.escape("\n".join(map(printable, str(value).split("\n"))))


def header(data: StudyData) -> str:
    """Name, state and time."""
    zone = data.now.astimezone().tzname() or ""
    begins = [trial.datetime_start for trial in data.outlines if trial.datetime_start]
    began = f"Began {moment(min(begins))}. " if begins else ""
    warm_start = f"<p>{text(data.warm_start[0].upper() + data.warm_start[1:])}.</p>" if data.warm_start else ""
    return (
        f"<header><h1>{text(data.name)}</h1><p>{text(data.state.capitalize())}. {began}"
        f"As of {moment(data.now)} {text(zone)}.</p>{warm_start}</header>"
    )


def tiles(data: StudyData) -> str:
    """The key figures."""
    now = data.status
    of = f" of {count(now.budget.trial_limit)}" if now.budget and now.budget.trial_limit else ""
    names = ("complete", "pruned", "fail", "running", "waiting", "paused")
    states = " · ".join(
        f"{count(now.trials[key])} {'failed' if key == 'fail' else key}" for key in names if now.trials.get(key)
    )
    shown = [("trials done", f"{count(now.finished)}{of}", states or "none has begun")]
    if now.budget and now.budget.epochs is not None:
        shown.append(("epochs", f"{count(now.epochs)} of {count(now.budget.epochs)}", "reported by all trials"))
    if now.budget and now.budget.gpu_hours is not None:
        shown.append(("GPU hours", f"{number(now.gpu_hours)} of {number(now.budget.gpu_hours)}", "of all workers"))
    if len(data.directions) == 1:
        goal = f"{data.directions[0].name.lower()} {data.metric_names[0]}"
        best = data.best
        shown.append(
            ("best value", number(best.value if best else None), f"trial {best.number}, {goal}" if best else goal)
        )
    spans = [span for trial in data.outlines if (span := data.span(trial))]
    if spans:
        begin, end = min(span[0] for span in spans), max(span[1] for span in spans)
        shown.append(("wall time", duration((end - begin).total_seconds()), f"till {moment(end)}"))
        if not data.has_scheduler:
            # Of repeated trials it includes the pauses between attempts, of which the database has no times: at most.
            compute = sum((end - begin).total_seconds() for begin, end in spans)
            workers = len({attempt.worker for attempt in data.attempts.values()})
            by = f"of {counted(workers, 'worker')}" if workers else "of all workers"
            at_most = "≤ " if any(attempt.times > 1 for attempt in data.attempts.values()) else ""
            shown.append(("compute time", f"{at_most}{duration(compute)}", by))
    pruning = data.overview.pruning
    if pruning.saved is not None and pruning.share is not None:
        shown.append(
            ("steps saved by pruning", count(pruning.saved), f"{pruning.share:.0%} of all that would have run")
        )
    return '<section class="tiles">' + "".join(_tile(*tile) for tile in shown) + "</section>"


def _tile(label: str, value: str, remark: str) -> str:
    return f"<div><span>{text(label)}</span><strong>{text(value)}</strong><small>{text(remark)}</small></div>"


def best(data: StudyData) -> str:
    """The best parameters; of several objectives, the Pareto front."""
    if len(data.directions) > 1:
        return _front(data)
    trial = data.best
    if trial is None:
        return reason(_nothing_best(data))
    last = {point.name: point for point in data.curves.get(trial.number, ())}
    facts = [(name, param(value)) for name, value in trial.params.items()]
    metrics = [(name, number(point.value)) for name, point in last.items()]
    tables = _pairs("parameter", facts) + (_pairs("metric of its last step", metrics) if metrics else "")
    line = text(command("best", data.name, "--format", "json"))
    return (
        f'<div class="side">{tables}</div>{_constraints(data, trial)}<p>As data: <code id="command">{line}</code> '
        '<button type="button" id="copy" hidden>Copy</button></p>'
    )


def _nothing_best(data: StudyData) -> str:
    return "no complete trial keeps the constraints" if data.status.trials["complete"] else "no trial is complete yet"


def _constraints(data: StudyData, trial: FrozenTrial) -> str:
    """How far a trial keeps each constraint of the spec."""
    kept = [
        f"{name} = {number(bound.value_of(trial.constraints[name]))} ({bound})"
        for name, bound in data.constraints.items()
        if name in trial.constraints
    ]
    return f"<p>Within the constraints: {text('; '.join(kept))}.</p>" if kept else ""


def _pairs(what: str, pairs: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><th scope=row>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in pairs)
    return f"<table><thead><tr><th>{text(what)}</th><th>value</th></tr></thead><tbody>{rows}</tbody></table>"


def _front(data: StudyData) -> str:
    # Optuna finds the front, of trials that keep the constraints, as its plots do.
    with quiet():
        numbers = {trial.number for trial in snapshot(data, "pareto", str).best_trials}
    trials = [trial for trial in data.trials if trial.number in numbers]
    if not trials:
        return reason(_nothing_best(data))
    names = [
        f"{name} ({'min' if direction == StudyDirection.MINIMIZE else 'max'})"
        for name, direction in zip(data.metric_names, data.directions, strict=True)
    ]
    params = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows = [
        [str(trial.number), *map(number, trial.values), *(_param(trial, name) for name in params)]
        for trial in trials[:_MOST_OF_FRONT]
    ]
    more = f" The first {_MOST_OF_FRONT} are shown." if len(trials) > _MOST_OF_FRONT else ""
    return (
        f"<p>{counted(len(trials), 'trial')} that no other one beats in all objectives.{more}</p>"
        f'<div class="scroll"><table>{_head(["trial", *names, *params])}{_body(rows)}</table></div>'
    )


def ablation(data: StudyData) -> str:
    """The path from the middle of the space to the best trial."""
    steps = path_to_best(data)
    rows = [
        [
            " ".join(
                [
                    *(f"{key}={param(value)}" for key, value in step.changed.items()),
                    *(f"without {key}" for key in step.dropped),
                ]
            ),
            number(step.predicted),
        ]
        for step in steps
    ]
    table = f"<table>{_head(['change', f'predicted {data.metric_names[data.target]}'])}{_body(rows)}</table>"
    words = (
        "From the middle of the space to the best trial, as a random forest of the complete trials predicts: each step "
        "changes the parameter that improves the value most. From your defaults: "
        f"{command('importance', data.name, 'NAME=VALUE')}"
    )
    return f'<p>{text(words)}</p><div class="scroll">{table}</div>'


def failures(data: StudyData) -> str:
    """The errors of failed trials, the most frequent first; empty without any."""
    seen = data.overview
    rows = [[count(failed.count), failed.reason] for failed in seen.failures]
    if seen.cancelled:
        rows.append([count(seen.cancelled), "cancelled"])
    if not rows:
        return ""
    table = f"<table>{_head(['trials', 'the newest of their errors'])}{_body(rows)}</table>"
    return f'<section id="failures"><h2>Failed trials</h2><div class="scroll">{table}</div></section>'


def trials(data: StudyData) -> str:
    """The table of the trials. A cell whose text does not sort as its value has the value as an attribute."""
    params = list(dict.fromkeys(name for trial in data.trials for name in trial.params))
    columns = ["trial", "state", *data.metric_names, *params, "steps", "duration", "worker", "attempts", "error"]
    head = "".join(f'<th scope="col"><button type="button">{text(name)}</button></th>' for name in columns)
    rows = "".join(_trial(data, trial, params) for trial in data.trials)
    part = ""
    if data.subset:
        csv = text(command("trials", data.name, "--format", "csv"))
        part = (
            f"<p>{count(len(data.trials))} of {counted(len(data.outlines), 'trial')} are listed: the best, the newest, "
            f"each one that was the best so far, and a sample of each state. All of them: <code>{csv}</code></p>"
        )
    return (
        f'{part}<p class="filter"><label>Filter <input type="search" id="filter" placeholder="pruned, adamw, cuda:0 …">'
        f'</label> <span id="matching" role="status">{counted(len(data.trials), "trial")}</span></p>'
        f'<div class="scroll tall"><table id="trials"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _trial(data: StudyData, trial: FrozenTrial, params: Iterable[str]) -> str:
    attempt = data.attempts.get(trial.number)
    span = data.span(trial)
    seconds = (span[1] - span[0]).total_seconds() if span else None
    is_repeated = attempt is not None and attempt.times > 1
    step = paused_at(trial.state, trial.system_attrs)
    state = trial.state.name.lower()
    shown = "failed" if state == "fail" else state if step is None else f"paused at step {step}"
    error = in_one_line(str(trial.user_attrs.get("error", ""))) if trial.state == TrialState.FAIL else ""
    values = trial.values or [None] * len(data.directions)
    worker = (f"{attempt.host} {attempt.device}" if attempt.host else attempt.worker) if attempt else "–"
    cells = [
        f"<td>{trial.number}</td><td class={state}>{shown}</td>",
        *(_cell(number(value), value) for value in values),
        *(_cell(_param(trial, name), trial.params.get(name)) for name in params),
        f"<td>{len(trial.intermediate_values)}</td>",
        # The database has no times of single attempts: the time includes the pauses between them.
        _cell("–" if seconds is None else f"{'≤ ' if is_repeated else ''}{duration(seconds)}", seconds),
        f'<td title="{text(attempt.worker if attempt else "")}">{text(worker)}</td>',
        f"<td>{attempt.times if attempt else '–'}</td>",
        f'<td class="error" title="{text(error)}">{text(error)}</td>' if error else "<td></td>",
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _cell(shown: str, value: Any) -> str:
    # The page's script sorts by it: "9" comes after "10" as text, and six digits may make two values equal.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    exact = f' data-v="{value!r}"' if is_number and repr(value) != shown else ""
    return f"<td{exact}>{text(shown)}</td>"


def _param(trial: FrozenTrial, name: str) -> str:
    return param(trial.params[name]) if name in trial.params else "–"


def spec(data: StudyData) -> str:
    """The study file, and how its space came about."""
    if data.spec is None:
        return reason("it was made by Optuna, not by studyhall, so there is no study file")
    changes = "".join(f"<li>{text(change)}</li>" for change in data.space_changes)
    return f"<pre>{text(data.spec)}</pre>" + (f"<p>Its space changed:</p><ul>{changes}</ul>" if changes else "")


def reason(words: str) -> str:
    return f'<p class="reason">{text(words[0].upper() + words[1:])}.</p>'


def _head(names: Iterable[str]) -> str:
    return "<thead><tr>" + "".join(f"<th>{text(name)}</th>" for name in names) + "</tr></thead>"


def _body(rows: Iterable[Sequence[str]]) -> str:
    cells = ("".join(f"<td>{text(cell)}</td>" for cell in row) for row in rows)
    return "<tbody>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</tbody>"
