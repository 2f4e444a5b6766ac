"""Which plots a study can have, what is drawn of it, and that nothing in it becomes code."""

from __future__ import annotations

import gzip
import json
import math
import random
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs_version

from studies.errors import StudyhallError
from studies.report.curves import MOST_POINTS, panels
from studies.report.data import StudyData
from studies.report.files import file_name, require_writable, write
from studies.report.matplotlib_images import image
from studies.report.page import report, single
from studies.report.plot_kinds import PLOTS, choose_objective, choose_params, require
from studies.report.plotly_figures import figure
from studies.report.sections import tiles
from studies.report.snapshot import CONTOUR_CELLS, importances
from studies.report.subset import remark
from studies.report.timeline import rows
from studies.spec.sections import BudgetSpec
from studies.spec.space import categorical
from studies.storage.records import Attempt, Point, Status

BEGAN = datetime(2030, 1, 1, 12)
SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "width": IntDistribution(16, 512),
    "act": CategoricalDistribution(["relu", "gelu"]),
}
PARAMS = [{"lr": 10 ** -(1 + n % 7 / 3), "width": 16 + n, "act": ("relu", "gelu")[n % 2]} for n in range(100)]
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & $x"


def trial(
    number: int,
    state: TrialState = TrialState.COMPLETE,
    *,
    values: Sequence[float] | None = None,
    params: Mapping[str, Any] | None = None,
    space: Mapping[str, BaseDistribution] = SPACE,
    steps: int = 0,
    begin: float = 0,
    **user_attrs: object,
) -> FrozenTrial:
    params = PARAMS[number % len(PARAMS)] if params is None else params
    return FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=None,
        values=(values or [math.sin(number)]) if state == TrialState.COMPLETE else None,
        datetime_start=None if state == TrialState.WAITING else BEGAN + timedelta(seconds=begin),
        datetime_complete=BEGAN + timedelta(seconds=begin + 10) if state.is_finished() else None,
        params=dict(params),
        distributions={name: space[name] for name in params},
        user_attrs=user_attrs,
        system_attrs={},
        intermediate_values={step: step + number / 100 for step in range(steps)},
    )


def study(trials: Sequence[FrozenTrial], *, objectives: int = 1, **facts: Any) -> StudyData:
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    best = max(complete, key=lambda t: t.values[0], default=None) if objectives == 1 else None
    status = Status(
        study=facts.get("name", "study"),
        budget=BudgetSpec(trials=100),
        trials={state.name.lower(): sum(t.state == state for t in trials) for state in TrialState},
        paused=False,
        ended=None,
        best=best,
        workers=[],
    )
    known: dict[str, Any] = {
        "name": "study",
        "metric_names": ["accuracy", "seconds", "bytes"][:objectives],
        "now": BEGAN + timedelta(hours=1),
    }
    directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE, StudyDirection.MINIMIZE][:objectives]
    return StudyData(directions=directions, trials=trials, status=status, **{**known, **facts})


def curve(steps: int, *names: str) -> list[Point]:
    return [Point(step=step, name=name, value=step / 10, at=None) for step in range(steps) for name in names]


def full(count: int = 12, objectives: int = 1) -> StudyData:
    """A study that can have nearly every plot."""
    draw = random.Random(0)
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL]
    trials = [
        trial(n, states[n % 4], values=[draw.random() for _ in range(objectives)], steps=3 - n % 2, begin=n)
        for n in range(count)
    ]
    trials += [trial(count, TrialState.RUNNING, steps=1, begin=count), trial(count + 1, TrialState.WAITING, params={})]
    return study(
        trials,
        objectives=objectives,
        curves={t.number: curve(len(t.intermediate_values), "train_loss", "val_loss", "lr") for t in trials},
        attempts={
            n: Attempt(worker=f"w{n % 3}", host="box", device=f"cuda:{n % 3}", times=1) for n in range(count + 1)
        },
    )


def possible(data: StudyData) -> set[str]:
    return {name for name, kind in PLOTS.items() if not kind.obstacle(data)}


# What a study can have

ONE_PARAM = [trial(n, params={"lr": 0.1 / (n + 1)}) for n in range(5)]


@pytest.mark.parametrize(
    ("trials", "impossible"),
    [
        ([], set(PLOTS)),
        ([trial(0, TrialState.WAITING)], set(PLOTS)),
        ([trial(0, TrialState.PRUNED, steps=2)], set(PLOTS) - {"curves", "intermediate", "timeline"}),
        ([trial(0, values=[math.inf])], set(PLOTS) - {"timeline"}),
        (ONE_PARAM, set(PLOTS) - {"history", "slice", "parallel", "edf", "timeline"}),
        ([trial(n, params={}) for n in range(5)], set(PLOTS) - {"history", "edf", "timeline"}),
        ([trial(0)], set(PLOTS) - {"history", "slice", "parallel", "edf", "timeline"}),
    ],
    ids=["no trial", "waiting", "pruned alone", "infinite", "one parameter", "no parameter", "one trial"],
)
def test_what_a_study_cannot_have_is_known_beforehand(trials: list[FrozenTrial], impossible: set[str]) -> None:
    data = study(trials)
    assert possible(data) == set(PLOTS) - impossible
    for kind in possible(data):  # and what is said to be possible is
        assert figure(data, kind).data
        assert image(data, kind, "svg").rstrip().endswith(b"</svg>")
    for kind in impossible:
        with pytest.raises(StudyhallError, match=rf"^study 'study' can't have the plot '{kind}': .*; possible: ") as e:
            figure(data, kind)
        assert "\n" not in str(e.value)
        with pytest.raises(StudyhallError):
            image(data, kind, "png")


def test_an_impossible_plot_names_the_reason_and_what_is_possible() -> None:
    with pytest.raises(StudyhallError) as caught:
        require(study(ONE_PARAM), "contour")
    assert str(caught.value) == (
        "study 'study' can't have the plot 'contour': it has one parameter, and this plot compares two; "
        "possible: history, slice, parallel, edf, timeline"
    )


@pytest.mark.parametrize(
    ("objectives", "kinds", "ending", "magic"),
    [
        (1, set(PLOTS) - {"pareto", "hypervolume"}, "png", b"\x89PNG"),
        (2, set(PLOTS), "svg", b"<svg"),
        (3, {"pareto", "parallel"}, "svg", b"<svg"),
    ],
)
def test_every_kind_is_drawn_without_a_warning(
    objectives: int, kinds: set[str], ending: str, magic: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    data = full(objectives=objectives)
    assert kinds <= possible(data)
    optuna.logging.enable_propagation()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for kind in kinds:
                drawn = figure(data, kind)
                assert sum(np.size(trace.x) for trace in drawn.data if trace.x is not None) > 0, kind
                assert magic in image(data, kind, ending)
    finally:
        optuna.logging.disable_propagation()
    assert not caplog.records


def test_nothing_is_left_in_pyplot() -> None:
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    kept = plt.figure()
    before = dict(mpl.rcParams)
    image(full(), "contour", "png")
    assert plt.get_fignums() == [kept.number]
    assert dict(mpl.rcParams) == before
    plt.close(kept)


# What is drawn


def test_training_stands_beside_validation_and_what_was_pruned_apart() -> None:
    trials = [trial(0, values=[0.5], steps=4), trial(1, TrialState.PRUNED, steps=2), trial(2, values=[0.9], steps=4)]
    names = ("lr", "val_loss", "train_loss", "val_accuracy", "train_accuracy", "zeal")
    data = study(trials, curves={t.number: curve(len(t.intermediate_values), *names) for t in trials})
    found = panels(data)
    assert [[panel.name for panel in row] for row in found.rows] == [
        ["reported value", "lr"],
        ["train_accuracy", "val_accuracy"],
        ["train_loss", "val_loss"],
        ["zeal"],
    ]
    titles = [title.text for title in figure(data, "curves").layout.annotations]
    assert titles == ["reported value", "lr", "train accuracy", "val accuracy", "train loss", "val loss", "zeal"]
    panel = found.rows[1][1]
    assert panel.best is not None
    assert panel.best.number == 2
    assert panel.best_train is not None
    assert {group: [line.number for line in lines] for group, lines in panel.lines.items()} == {
        "complete": [0],
        "pruned": [1],
    }
    assert panel.lines["pruned"][0].values == [0, 0.1]


def test_curves_without_names_are_the_reported_values() -> None:
    (row,) = panels(study([trial(0, steps=3), trial(1, TrialState.RUNNING, steps=1)])).rows
    assert [panel.name for panel in row] == ["reported value"]
    assert row[0].best is not None
    assert row[0].best.values == [0, 1, 2]
    assert [line.number for line in row[0].lines["unfinished"]] == [1]


def test_a_reported_value_that_is_a_named_metric_too_is_drawn_once() -> None:
    trials = [trial(0, steps=3), trial(100, TrialState.RUNNING, steps=2)]
    trials[0].intermediate_values[1] = math.nan
    reported = {
        t.number: [Point(step=step, name="loss", value=value, at=None) for step, value in t.intermediate_values.items()]
        for t in trials
    }
    reported[100].append(Point(step=2, name="loss", value=7.0, at=None))  # reported after the trials were read

    def names() -> list[str]:
        return [panel.name for row in panels(study(trials, curves=reported)).rows for panel in row]

    assert names() == ["loss"]
    trials[0].intermediate_values[2] = 9.0
    assert names() == ["reported value", "loss"]
    # Alone in its row, whose empty place takes no other panel's name.
    pair = {n: curve(2, "train_loss", "val_loss") for n in (0, 100)}
    drawn = figure(study(trials, curves=pair), "curves")
    assert {title.text: title.x > 0.5 for title in drawn.layout.annotations if title.text} == {
        "reported value": False,
        "train loss": False,
        "val loss": True,
    }


def test_complete_curves_are_ordered_from_the_worst_to_the_best() -> None:
    values = [0.3, 0.9, 0.1, 0.5]
    trials = [trial(n, values=[value], steps=2) for n, value in enumerate(values)]
    complete = panels(study(trials)).rows[0][0].lines["complete"]
    assert [line.number for line in complete] == [2, 0, 3]
    minimized = replace(study(trials), directions=[StudyDirection.MINIMIZE])
    assert [line.number for line in panels(minimized).rows[0][0].lines["complete"]] == [3, 0, 2]


def test_many_curves_are_few_traces_with_gaps_and_no_endless_number_of_points() -> None:
    trials = [trial(n, TrialState.PRUNED if n % 2 else TrialState.COMPLETE, steps=300) for n in range(400)]
    drawn = figure(study(trials), "curves")
    assert len(drawn.data) < 10
    points = sum(len(trace.x) for trace in drawn.data)
    assert MOST_POINTS / 2 < points < 1.2 * MOST_POINTS
    pruned = next(trace for trace in drawn.data if trace.name == "pruned")
    assert np.isnan(pruned.y).sum() == 200  # a gap after each
    assert set(pruned.customdata) == set(range(1, 400, 2))
    assert pruned.x.max() == 299  # the last step is never left out


def test_a_value_that_is_not_finite_is_a_gap() -> None:
    one = trial(0, steps=3)
    one.intermediate_values[1] = math.inf
    (panel,) = panels(study([one])).rows[0]
    assert panel.best is not None
    assert [math.isfinite(value) for value in panel.best.values] == [True, False, True]


def test_a_restarted_worker_goes_on_in_its_row_and_two_at_once_have_two() -> None:
    trials = [trial(n, begin=begin) for n, begin in enumerate((0, 5, 20))]
    workers = ("first", "beside", "restarted")
    data = study(
        trials, attempts={n: Attempt(worker=w, host="box", device="cpu", times=n) for n, w in enumerate(workers)}
    )
    assert [(row.label, [bar.number for bar in row.bars]) for row in rows(data)] == [
        ("box cpu", [0, 2]),
        ("box cpu (2)", [1]),
    ]
    assert rows(study(trials[:1]))[0].label == "Optuna"


def test_importances_of_several_objectives_are_of_the_first_and_know_its_direction() -> None:
    draw = random.Random(1)
    space = {"good": FloatDistribution(0, 1), "idle": FloatDistribution(0, 1)}
    given = [{"good": draw.random(), "idle": draw.random()} for _ in range(200)]

    def peaked(x: float) -> float:
        """With a narrow peak and a broad valley: what is important for its height is not for its depth."""
        return 10 * math.exp(-((x - 0.5) ** 2) / 0.001)

    trials = [
        trial(n, values=[peaked(p["good"]) + 0.01 * p["idle"], draw.random()], params=p, space=space)
        for n, p in enumerate(given)
    ]
    one = study([trial(t.number, values=t.values[:1], params=t.params, space=space) for t in trials])
    assert importances(study(trials, objectives=2)) == pytest.approx(importances(one))
    assert next(iter(importances(one))) == "good"


@pytest.mark.parametrize("kind", [name for name, kind in PLOTS.items() if kind.of_objective])
def test_a_plot_shows_the_objective_and_the_parameters_that_were_chosen(kind: str) -> None:
    data = full(objectives=2)
    assert choose_objective(data, kind, "seconds") == choose_objective(data, kind, "1") == 1
    chosen = replace(data, objective=1)
    params = choose_params(data, kind, ["width", "lr", "width"]) if PLOTS[kind].least_params else None
    drawn = figure(chosen, kind, params).to_json()
    assert kind == "contour" or "seconds" in drawn
    assert "accuracy" not in drawn
    if params:
        assert params == ["width", "lr"]
        assert "act" not in re.findall(r'"([^"]*)"', drawn)  # beside points it may stand
    assert b"<svg" in image(chosen, kind, "svg", params)
    assert b"</html>" in single(chosen, kind, params)


def test_a_choice_that_a_plot_cannot_have_is_refused_with_what_is_legal() -> None:
    data = full(objectives=2)
    for choose, words in (
        (
            lambda: choose_objective(data, "pareto", "0"),
            r"'pareto' takes no --objective; these do: history, importances",
        ),
        (lambda: choose_objective(data, "history", "2"), "no objective '2'; known: accuracy, seconds"),
        (lambda: choose_objective(data, "history", "second"), "did you mean 'seconds'"),
        (lambda: choose_params(data, "history", ["lr"]), "'history' takes no --params; these do: importances, slice"),
        (lambda: choose_params(data, "slice", ["widht"]), "has a parameter 'widht'; did you mean 'width'"),
        (
            lambda: choose_params(data, "rank", ["lr", "act"]),
            "parameter 'act' has one value, and the plot 'rank' compares",
        ),
        (lambda: choose_params(data, "contour", ["lr", "lr"]), "compares parameters; name two or more: --params lr,…"),
    ):
        with pytest.raises(StudyhallError, match=words):
            choose()


def test_every_plot_says_on_how_many_trials_it_stands() -> None:
    data = full()
    said = {kind: remark(data, kind) for kind in PLOTS}
    assert said["importances"] == "Estimated on 6 complete trials."
    assert said["history"] == said["contour"] == "Of 6 complete trials."
    assert said["curves"] == "Of 13 reporting trials."
    assert said["timeline"] == "Of 13 started trials."
    assert said["workers"] == "Of 14 trials."
    page = report(data).decode()
    assert page.count("Of 6 complete trials.") >= 4
    assert said["importances"] in page
    assert "Of 6 complete trials." in image(data, "slice", "svg").decode()


def test_contours_of_many_values_have_few_cells() -> None:
    trials = [trial(n, params={"lr": 1e-4 * 1.01**n, "width": 16 + n % 200}) for n in range(400)]
    drawn = figure(study(trials), "contour")
    contour = next(trace for trace in drawn.data if trace.type == "contour")
    assert np.shape(contour.z)[0] <= CONTOUR_CELLS + 2
    assert np.shape(contour.z)[1] <= CONTOUR_CELLS + 2
    assert np.nanmax(contour.z) == max(t.values[0] for t in trials)


def test_parallel_coordinates_of_many_trials_are_few_traces() -> None:
    data = study([trial(n) for n in range(300)])
    drawn = figure(data, "parallel")
    assert len(drawn.data) < 60
    xs = [x for trace in drawn.data if trace.mode == "lines" for x in trace.x]
    assert xs.count(0) == 300


# The page


class Scripts(HTMLParser):
    """What a browser would run or load of a page, and its text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._within = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, _tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within not in ("script", "style"):
            self.text += data


def test_nothing_in_a_study_becomes_markup_or_code() -> None:
    space = {EVIL: FloatDistribution(0, 9), "kind": CategoricalDistribution([EVIL, "b"])}
    trials = [trial(n, params={EVIL: n / 2, "kind": (EVIL, "b")[n % 2]}, space=space, steps=2) for n in range(6)]
    trials.append(trial(6, TrialState.FAIL, params={}, error=EVIL, traceback=EVIL))
    data = study(
        trials,
        name=EVIL,
        metric_names=[EVIL],
        curves={t.number: curve(2, EVIL) for t in trials},
        attempts={0: Attempt(worker=EVIL, host=EVIL, device=EVIL, times=2)},
        spec=EVIL,
    )
    seen = Scripts(report(data))
    kinds = [attrs.get("type") for tag, attrs in seen.tags if tag == "script"]
    assert kinds == ["application/json", "application/gzip;base64", None]
    assert not [tag for tag, _ in seen.tags if tag in ("img", "iframe", "object", "a")]
    assert not [attrs for _, attrs in seen.tags if any(name.startswith("on") or name == "src" for name in attrs)]
    assert seen.text.count(EVIL) >= 8  # name, title, parameter, value, error, worker, spec, …
    for kind in possible(data):
        assert [tag for tag, _ in Scripts(single(data, kind)).tags].count("script") == 3
        assert b"</svg>" in image(data, kind, "svg")


def test_only_our_own_scripts_may_run_and_nothing_may_be_loaded() -> None:
    seen = Scripts(report(full()))
    policy = next(attrs["content"] for tag, attrs in seen.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert re.search(r"script-src 'sha256-\S{44}' 'sha256-\S{44}'$", policy)
    assert not [tag for tag, attrs in seen.tags if attrs.get("href", "data:,") != "data:,"]


def test_a_report_of_a_few_trials_is_smaller_than_a_megabyte() -> None:
    assert len(report(full(count=40))) < 1e6


def test_the_page_s_plotly_is_of_the_version_that_figures_are_written_for() -> None:
    packed = (files("studies.report") / "assets" / "plotly-cartesian.min.js.gz").read_bytes()
    version = re.search(rb"plotly\.js \(cartesian - minified\) v(\d+)", gzip.decompress(packed))
    assert version is not None
    assert version[1].decode() == get_plotlyjs_version().split(".")[0]


def test_a_report_says_why_a_plot_is_missing() -> None:
    text = Scripts(report(study([trial(0, TrialState.RUNNING)]))).text
    assert "No trial is complete yet." in text
    assert "Its trials have reported no steps." in text
    assert "It was made by Optuna, not by studyhall, so there is no study file." in text
    assert "1 trials" not in text


def test_a_report_of_several_objectives_shows_their_best_trials() -> None:
    text = Scripts(report(full(objectives=2))).text
    assert "no other one beats in all objectives" in text
    assert "Pareto front" in text
    assert "studyhall best" not in text  # it would refuse


def test_a_report_groups_failures_and_shows_no_attribute_but_the_error() -> None:
    trials = [
        trial(n, TrialState.FAIL, error=f"ValueError: no {n}", traceback="SECRET", note="SECRET") for n in range(3)
    ]
    page = report(study([*trials, trial(3, note="SECRET")]))
    assert "SECRET" not in page.decode()
    assert "ValueError: no 2" in Scripts(page).text.partition("Failed trials")[2].partition("Filter")[0]


# Files


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "mnist"),
        ("a_b", "a_b"),
        ("ä.1", "ä.1"),
        ("a/b", "a_b-c14cddc0"),  # another file than that of the study a_b
        ("..", "study-5ec1f7e7"),
        ("-x", "x-"),
        ("字" * 128, "字" * 66 + "-"),
    ],
)
def test_a_study_of_any_name_makes_a_file_name(name: str, file: str, tmp_path: Path) -> None:
    assert file_name(name, ".html").startswith(file)
    assert (file_name(name, ".html") == f"{name}.html") == (file == name)
    write(tmp_path / file_name(name, ".html"), b"x")


@pytest.mark.parametrize("target", ["real.html", "nowhere.html", "/dev/null", "folder", "link.html"])
def test_a_link_is_replaced_and_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.html").symlink_to(target)
    (tmp_path / "here").symlink_to(tmp_path)  # a link on the way is its maker's choice
    require_writable(tmp_path / "here" / "link.html")
    write(tmp_path / "here" / "link.html", b"new")
    assert not (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "link.html").read_bytes() == b"new"
    assert (tmp_path / "real.html").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "here", "link.html", "real.html"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("no/where.html", "there is no folder"), (".", "is a folder"), ("x" * 300, "too long"), ("file/x.html", "folder")],
)
def test_what_cannot_be_written_is_known_beforehand(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyhallError, match=words):
        require_writable(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# Choices of odd types

ODD: dict[str, list[Any]] = {
    "lists": [[50], [100], [50, 50]],
    "dicts": [{"depth": 1}, {"depth": [2, math.inf]}],
    "numbers": [1, 0.5, math.inf, -math.inf, math.nan],
    "mixed": [None, True, 2, "<b>", [None]],
}


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [("lists", "dicts"), ("mixed", "numbers")])
def test_choices_of_any_type_are_drawn_in_every_plot(first: str, second: str) -> None:
    odd, more = ODD[first], ODD[second]
    space = {"lr": SPACE["lr"], "odd": categorical(odd), "more": categorical(more)}
    trials = [
        trial(
            n, params={"lr": 0.1 / (n + 1), "odd": odd[n % len(odd)], "more": more[-1 - n % 4 % len(more)]}, space=space
        )
        for n in range(12)
    ]
    trials[3].intermediate_values = {0: math.nan, 1: math.inf, 2: 0.5}
    data = study(trials)
    for kind in possible(data):
        assert figure(data, kind).data
        assert image(data, kind, "png")
    json.loads(figure(data, "slice").to_json(), parse_constant=pytest.fail)
    assert b"odd" in report(data)


def test_of_paused_trials_nobody_knows_how_long_they_trained() -> None:
    data = full()

    assert "compute time" in tiles(data)
    assert "compute time" not in tiles(replace(data, has_scheduler=True))
