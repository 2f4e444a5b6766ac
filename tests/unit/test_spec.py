"""The study file: what is legal, what is refused and how, and what it becomes in Optuna."""

from __future__ import annotations

import copy
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import optuna
import pytest
import tomli_w
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from studies.errors import ObjectiveError, SpecError, SpecMismatch
from studies.spec.params import read_params
from studies.spec.script import Script
from studies.spec.source import override, preset_names, read_target, take_script
from studies.spec.space import corners, observed_space, read_space
from studies.spec.study import BudgetSpec, StudySpec, parse_seconds

BASE: dict[str, Any] = {
    "name": "study",
    "direction": "maximize",
    "objective": {"path": "package.module:callable", "args": {"epochs": 5}},
    "budget": {"trials": 10},
    "sampler": {"name": "tpe"},
    "pruner": {"name": "median"},
    "space": {
        "momentum": {"type": "float", "low": 0.0, "high": 0.9, "when": {"optimizer": ["sgd"]}},
        "lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
        "width": {"type": "int", "low": 32, "high": 512, "log": True},
        "optimizer": {"type": "categorical", "choices": ["adamw", "sgd"]},
    },
}


def spec_with(*settings: str) -> StudySpec:
    data = copy.deepcopy(BASE)
    for setting in settings:
        override(data, setting)
    return StudySpec.from_dict(data, "my.toml")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("budget.trails=3", "budget.trails: unknown key; did you mean 'trials'?"),
        ("bugdet.trials=3", "bugdet: unknown key; did you mean 'budget'?"),
        ("objective.arg={}", "objective.arg: unknown key; did you mean 'args'?"),
        ("space.lr.lo=1", "space.lr.lo: unknown key; did you mean 'low'?"),
        ("space.optimizer.choice=[1]", "space.optimizer.choice: unknown key; did you mean 'choices'?"),
        ("budget.trials=0", "budget.trials = 0: should be greater than 0"),
        ("budget.trials=-3", "budget.trials = -3: should be greater than 0"),
        ("budget.trials=2.5", "budget.trials = 2.5: should be a valid integer"),
        ("budget.max_failures=0", "budget.max_failures = 0: should be greater than 0"),
        ("budget.timeout=2x", "budget.timeout: '2x' is not a time; write seconds or 45s, 30m, 2h, 1d, 1h30m"),
        ("budget.timeout=0", "budget.timeout = 0: should be greater than 0"),
        ("budget.target=nan", "budget.target = nan: should be a finite number"),
        ("space.lr.low=1", "space.lr: low = 1.0 is above high = 0.1; low must not exceed high"),
        ("space.width.low=1000", "space.width: low = 1000 is above high = 512; low must not exceed high"),
        ("space.lr.low=0", "space.lr: low = 0.0 with log = true; a logarithmic range begins above 0"),
        ("space.lr.low=-1", "space.lr: low = -1.0 with log = true; a logarithmic range begins above 0"),
        ("space.lr.low=nan", "space.lr: low = nan is not a finite number"),
        ("space.lr.high=inf", "space.lr: high = inf is not a finite number"),
        ("space.lr.step=0.1", "space.lr: step = 0.1 with log = true; give one of the two"),
        ("space.momentum.step=0.4", "space.momentum: high = 0.9 is no whole number of steps of 0.4; 0.8 is"),
        ("space.momentum.step=-1", "space.momentum: step = -1.0; a step is above 0"),
        ("space.optimizer.choices=[]", "space.optimizer: choices is empty; give at least one"),
        ("space.optimizer.choices=['a', 'a']", "space.optimizer: choices holds 'a' twice; each must differ"),
        ("space.optimizer.choices=[1, 1.0]", "space.optimizer: choices holds 1.0 twice; each must differ"),
        ("space.lr.type=flot", "space.lr.type: 'flot' is unknown; did you mean 'float'?"),
        ("space.new={low=1}", 'space.new: no type; write type = "int", "float" or "categorical"'),
        ("space.momentum.when={opt=['sgd']}", "space.momentum.when names the unknown parameter 'opt'; known: lr,"),
        ("space.momentum.when={optimizer=['sg']}", "space.momentum.when.optimizer lists 'sg', which 'optimizer' never"),
        ("space.momentum.when={optimizer=[]}", "space.momentum.when.optimizer is empty; list the values"),
        ("space.optimizer.when={momentum=[0.5]}", "space: the conditions go round: "),
        (
            "sampler.name=tep",
            "sampler.name: 'tep' is unknown; did you mean 'tpe'?; all: bruteforce, cmaes, enqueued",
        ),
        ("sampler.options={n_startup=3}", "sampler.options.n_startup: 'tpe' has no such option; did you mean"),
        ("sampler.options={n_startup_trials='x'}", "sampler.options.n_startup_trials = 'x': should be a whole number"),
        ("sampler.options={seed=3}", "sampler.options.seed: 'tpe' has no such option"),
        ("sampler.name=grid", "sampler.name: 'grid' needs a step for the real number space.momentum; add step"),
        ("pruner.name=medain", "pruner.name: 'medain' is unknown; did you mean 'median'?"),
        ("pruner={name='hyperband',options={max_resource='x'}}", "pruner.options: 'hyperband' refuses max_resource"),
        ("pruner={name='median',options={n_min_trials='x'}}", "pruner.options.n_min_trials = 'x': should be a whole"),
        (
            "pruner={name='percentile'}",
            "pruner.options.percentile is missing: 'percentile' needs it; legal is a number from 0 to 100",
        ),
        ("pruner={name='patient'}", "pruner.options.patience is missing: 'patient' needs it; legal is a whole number"),
        ("pruner={name='threshold'}", "pruner.options.lower or pruner.options.upper is missing: 'threshold' needs"),
        (
            "pruner={name='patient',options={patience=1,wrapped_pruner={name='percentile'}}}",
            "pruner.options.wrapped_pruner.options.percentile is missing",
        ),
        ("sampler={name='partialfixed'}", "sampler.options.fixed_params is missing: 'partialfixed' needs it; legal is"),
        ("sampler={name='partialfixed',options={fixed_params={}}}", "sampler.options.base_sampler is missing"),
        ("sampler={name='partialfixed',options={fixed_params=[1]}}", "base_sampler is missing"),
        ("pruner={name='percentile',options={percentile=200}}", "Percentile must be between 0 and 100"),
        ("pruner={name='patient',options={patience=1,wrapped_pruner='median'}}", "is not { name = …, options = {…} }"),
        (f"space.optimizer.choices=[1, {10**400}]", "space.optimizer.choices[1] is a whole number of 1329 bits; legal"),
        (f"space.momentum={{type='int',low=0,high={10**400}}}", "space.momentum.high is a whole number of 1329 bits"),
        (f"objective.args.x={-(2**63) - 1}", "objective.args.x is a whole number of 64 bits; legal are at most 63"),
        (f"seed=1{'0' * 5000}", "seed = '1000"),
        ("name=''", "name is empty; a study needs one of 1 to 128 characters"),
        ("name='   '", "name is empty; a study needs one of 1 to 128 characters"),
        ('name="a\\u0007b"', "name 'a\\x07b' holds a control character; only printable ones are legal"),
        ('name="a\\nb"', "name 'a\\nb' holds a control character"),
        (f"name={'x' * 129}", "has 129 characters; at most 128 are legal"),
        ("name=-x", "begins or ends with a space, or begins with '-'; remove that"),
        ("direction=max", "direction = 'max': should be 'minimize' or 'maximize'"),
        ("metric=['a', 'b']", "metric holds 2 names, and the study has 1 direction; give one name for each"),
        ("objective.path=nowhere", "objective: path 'nowhere' is not package.module:callable or path/to/file.py"),
        ("seed=-1", "seed = -1: should be greater than or equal to 0"),
        ("space=3", "space = 3: should be a table of keys"),
        ("sampler=tpe", "sampler = 'tpe': should be a table of keys"),
        ("space.lr=0.1", "space.lr = 0.1: should be a table of keys"),
        (
            "space.optimizer.choices=[['a']]",
            "space.optimizer.choices.0 = ['a']: should be text, a number, true or false",
        ),
        ("directions=[]", "directions = []: should have at least one item"),
        ("metric=''", "metric is empty; name what the objective returns"),
        ("budget.trials=99999999999", "budget.trials = 99999999999: should be less than or equal to 2147483647"),
        ("budget.timeout=1e300", "budget.timeout = 1e+300: should be less than or equal to 315360000"),
        (
            "objective.args.day=2024-01-01",
            "objective.args: day = 2024-01-01: a date or time is written as text, in quotes",
        ),
        ("objective.args.x.y=[1, nan]", "objective.args: x.y[1] = nan is not a finite number"),
        ("sampler.options.n_startup_trials=-5", "sampler.options.n_startup_trials = -5: should be at least 0"),
        ("pruner={name='hyperband',options={min_resource=0}}", "pruner.options.min_resource = 0: should be at least 1"),
        ("sampler={name='partialfixed',options={base_sampler={name=3}}}", "is not { name = …, options = {…} }"),
    ],
)
def test_what_is_wrong_is_named_with_its_value_and_what_is_legal(setting: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_with(setting)
    assert message in str(caught.value)
    assert str(caught.value).startswith("my.toml: ")
    assert "\n" not in str(caught.value)


def test_several_mistakes_are_counted() -> None:
    with pytest.raises(SpecError, match=r"\(and 1 more\)"):
        spec_with("budget.trials=0", "seed=-1")


@pytest.mark.parametrize("setting", ["budget.trials", "=3", "budget..trials=3", ".=3"])
def test_a_setting_that_is_not_key_and_value_is_refused(setting: str) -> None:
    with pytest.raises(SpecError, match="is not KEY=VALUE"):
        override({}, setting)


def test_a_setting_below_a_value_is_refused() -> None:
    with pytest.raises(SpecError, match=r"objective\.path is a value, not a table"):
        override(copy.deepcopy(BASE), "objective.path.x=3")


def test_another_sampler_or_pruner_drops_the_options_of_the_one_before() -> None:
    assert spec_with("pruner.name=none").pruner.options == {}
    data = {**BASE, "pruner": {"name": "hyperband", "options": {"min_resource": 3}}}
    override(data, "pruner.name=hyperband")
    assert data["pruner"]["options"] == {"min_resource": 3}
    override(data, "pruner.name=none")
    assert data["pruner"] == {"name": "none"}


def test_a_direction_is_set_in_one_spelling_alone() -> None:
    data = {**BASE, "direction": "maximize"}
    override(data, "directions=['minimize', 'maximize']")
    assert "direction" not in data
    with pytest.raises(SpecError, match="direction and directions are both given; keep one"):
        StudySpec.from_dict({**data, "direction": "maximize"})


def test_a_script_is_sought_beside_the_study_file_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(tomli_w.dumps({**BASE, "objective": {"path": "script.py:f"}}))
    assert read_target(str(file))["objective"]["path"] == f"{tmp_path}/script.py:f"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (None, "objective"),
        ("def helper(x): ...\ndef objective(trial): ...\ndef main(): ...\n", "objective"),
        ("def helper(x, y): ...\ndef tune(trial, fast=True): ...\ndef main(): ...\n", "tune"),
        ("import sys; sys.exit(1)\n", "objective"),
        ("def broken(\n", "objective"),
    ],
)
def test_a_script_without_a_callable_is_asked_for_one(tmp_path: Path, text: str | None, meant: str) -> None:
    file = tmp_path / "script.py"
    if text:
        file.write_text(text)
    with pytest.raises(SpecError) as caught:
        read_target(str(file))
    named = f"name the callable in it too: did you mean {f'{file}:{meant}'!r}?"
    assert str(caught.value) == f"{str(file)!r} is a file; {named}"


def test_settings_are_read_as_toml_and_else_as_text() -> None:
    data: dict[str, Any] = {}
    for setting in ("a.b=3", "a.c=1e-3", "a.d=[1, 2]", "a.e=true", "a.f=plain text", "a.g='3'", "a.h=x=y"):
        override(data, setting)
    assert data["a"] == {"b": 3, "c": 1e-3, "d": [1, 2], "e": True, "f": "plain text", "g": "3", "h": "x=y"}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("45s", 45), ("30m", 1800), ("1h30m", 5400), ("2h", 7200), ("1d", 86400)]
)
def test_times_are_written_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_legal_and_named_like_its_file(name: str) -> None:
    assert StudySpec.from_dict(read_target(name), name).name == name


def test_a_study_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(tomli_w.dumps(BASE))
    assert StudySpec.from_dict(read_target(str(file)), str(file)) == spec_with()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"name = ", "not TOML: Invalid value"), (b"\xff\xfe", "not UTF-8 text"), (b"[a]\n[a]", "not TOML")],
)
def test_a_malformed_study_file_is_refused_with_its_name(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(SpecError, match=message) as caught:
        read_target(str(file))
    assert "bad.toml" in str(caught.value)


def test_a_missing_study_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot read the study file '.*none\.toml': No such file"):
        read_target(str(tmp_path / "none.toml"))


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(SpecError, match="did you mean 'digits'"):
        read_target("digit")


def test_a_callable_is_a_study_named_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_target("script.py:objective") == {
        "name": "script-objective",
        "objective": {"path": f"{tmp_path}/script.py:objective"},
    }
    assert read_target("package.module:f")["name"] == "module-f"


def test_the_stored_spec_reads_back_equal_and_keeps_the_order_of_the_space() -> None:
    spec = spec_with("budget.timeout=2h", "sampler.options={n_startup_trials=3}")
    again = StudySpec.from_json(spec.to_json())
    assert again == spec
    assert list(again.space) == list(spec.space)
    assert again.sha256 == spec.sha256


def test_a_spec_written_as_a_file_reads_back_equal() -> None:
    spec = spec_with("budget.timeout=2h")
    assert StudySpec.from_dict(tomllib.loads(tomli_w.dumps(spec.to_file()))) == spec


def test_the_hash_is_that_of_the_study_not_of_its_budget() -> None:
    assert spec_with().sha256 == spec_with("budget.trials=99").sha256
    assert spec_with().sha256 != spec_with("seed=1").sha256


def test_another_spec_is_refused_with_the_difference() -> None:
    stored, given = spec_with(), spec_with("objective.args.epochs=7", "space.lr.high=0.5")
    with pytest.raises(SpecMismatch) as caught:
        stored.require_same(given, stored.budget)
    assert "objective.args.epochs is 5, not 7" in str(caught.value)
    assert "space.lr.high is 0.1, not 0.5" in str(caught.value)
    assert "--name" in str(caught.value)


def test_a_budget_may_be_given_as_it_was_or_as_it_is_now() -> None:
    stored, now = spec_with(), BudgetSpec(trials=60)
    stored.require_same(spec_with(), now)
    stored.require_same(spec_with("budget.trials=60"), now)
    with pytest.raises(
        SpecMismatch, match=r"budget\.trials is 60, not 61; change it with: studyhall extend study --trials 61"
    ):
        stored.require_same(spec_with("budget.trials=61"), now)
    with pytest.raises(SpecMismatch, match=r"budget\.trials is 60, not 6; 7 trials finished already: give no fewer"):
        stored.require_same(spec_with("budget.trials=6"), now, finished=7)


def test_a_spec_without_a_direction_takes_the_studys() -> None:
    stored = spec_with()
    silent = StudySpec.from_dict({key: value for key, value in BASE.items() if key != "direction"})
    stored.require_same(silent, stored.budget)
    silent.require_same(spec_with("direction=minimize"), stored.budget)
    assert (silent.goal, silent.says_direction) == ("minimizes value", False)
    for finished, way_out in (
        (0, "change it with: studyhall extend .*ize$"),
        (1, "work on it .* another --name$"),
    ):
        message = rf'direction is "minimize" \(the default\), not "maximize"; .*{way_out}'
        with pytest.raises(SpecMismatch, match=message):
            silent.require_same(stored, stored.budget, finished=finished)


def scripted(path: str, sha256: str | None = None) -> StudySpec:
    return StudySpec.from_dict({**BASE, "objective": {"path": path, **({"sha256": sha256} if sha256 else {})}})


def test_a_script_is_the_same_by_its_name_and_content() -> None:
    stored, changed = scripted("train.py:f", "a" * 64), scripted("train.py:f", "b" * 64)
    stored.require_same(stored, stored.budget)
    for given, message in (
        (
            changed,
            "its script has changed: SHA-256 aaaaaaaaaaaa… then, bbbbbbbbbbbb… now; run this .* --allow-changed; or",
        ),
        (
            scripted("other.py:f", "a" * 64),
            'objective.path is "train.py:f", not "other.py:f"; work on it as it is with: ',
        ),
        (
            scripted("train.py:g", "a" * 64),
            'objective.path is "train.py:f", not "train.py:g"; work on it as it is with: ',
        ),
    ):
        with pytest.raises(SpecMismatch, match=message):
            stored.require_same(given, stored.budget)
    stored.require_same(changed.with_script_of(stored), stored.budget)
    # An older studyhall stored the whole path, and no hash.
    scripted("/home/someone/train.py:f").require_same(changed, stored.budget)
    with pytest.raises(SpecMismatch):
        scripted("/home/someone/train.py:g").require_same(changed, stored.budget)
    with pytest.raises(SpecError, match="sha256 is of a script's content, and path 'lab:f' is a module's; remove it"):
        scripted("lab:f", "a" * 64)


def test_a_scripts_path_becomes_its_name_and_hash(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("f = None\n")
    data: dict[str, Any] = {"objective": {"path": f"{tmp_path}/train.py:f"}}
    script = take_script(data)
    assert script
    assert script.path == f"{tmp_path}/train.py:f"
    assert data["objective"] == {"path": "train.py:f", "sha256": script.sha256}
    assert script.sha256 == hashlib.sha256(b"f = None\n").hexdigest()
    for ours in ({"path": "lab.nets:f"}, {"path": 3}, {}):
        assert take_script({"objective": ours}) is None
    with pytest.raises(SpecError, match=r"objective.sha256 = 'aa': \S+train\.py has "):
        take_script({"objective": {"path": f"{tmp_path}/train.py:f", "sha256": "aa"}})
    for nowhere in ("nowhere.py:f", "nul\0.py:f", f"{tmp_path}.py:f"):
        with pytest.raises(ObjectiveError, match="no file"):
            take_script({"objective": {"path": nowhere}})


def test_the_order_of_the_space_makes_no_other_study() -> None:
    turned = dict(reversed(BASE["space"].items()))
    spec_with().require_same(StudySpec.from_dict({**BASE, "space": turned}), spec_with().budget)


def test_seeds_are_of_the_trial_and_all_different() -> None:
    spec = spec_with()
    seeds = [spec.seed_of(number) for number in range(1000)]
    assert len(set(seeds)) == 1000
    assert seeds[7] == spec_with().seed_of(7)
    assert seeds[7] != spec_with("seed=1").seed_of(7)


def sampled(spec: StudySpec, number: int) -> dict[str, Any]:
    """The parameters of trial ``number`` of an empty study."""
    study = optuna.create_study(direction="maximize", sampler=spec.to_sampler(number), pruner=spec.to_pruner())
    trial = study.ask()
    spec.suggest(trial)
    return trial.params


def test_two_trials_never_draw_the_same_and_one_trial_draws_alike_on_any_worker() -> None:
    spec = spec_with()
    assert sampled(spec, 0) == sampled(spec, 0)
    assert sampled(spec, 0)["lr"] != sampled(spec, 1)["lr"]


def test_a_parameter_is_sampled_only_when_its_condition_holds() -> None:
    spec = spec_with()
    drawn = [sampled(spec, number) for number in range(20)]
    assert {params["optimizer"] for params in drawn} == {"adamw", "sgd"}
    for params in drawn:
        assert ("momentum" in params) == (params["optimizer"] == "sgd")


def test_the_corners_of_a_space_are_its_extremes_alone_and_in_pairs_where_the_conditions_allow() -> None:
    data = {
        "lr": {"type": "float", "low": 0.1, "high": 1.0},
        "optimizer": {"type": "categorical", "choices": ["adamw", "sgd"]},
        "momentum": {"type": "float", "low": 0.5, "high": 0.5, "when": {"optimizer": ["sgd"]}},
    }
    found = list(corners(read_space(data)))
    sgd = {"optimizer": "sgd", "momentum": 0.5}
    assert found[:5] == [{"lr": 0.1}, {"lr": 1.0}, {"optimizer": "adamw"}, {"optimizer": "sgd"}, sgd]
    pairs = [{"lr": lr, "optimizer": name} for lr in (0.1, 1.0) for name in ("adamw", "sgd")]
    assert found[5:] == [*pairs, {"lr": 0.1, **sgd}, {"lr": 1.0, **sgd}, sgd]


@pytest.mark.parametrize("name", ["tpe", "random", "cmaes", "qmc", "nsgaii", "nsgaiii", "bruteforce", "gp"])
def test_every_sampler_is_built_by_its_short_name(name: str) -> None:
    if name == "gp":
        pytest.importorskip("torch")
    spec = StudySpec.from_dict(
        {**BASE, "space": {"x": {"type": "int", "low": 0, "high": 9}}, "sampler": {"name": name}}
    )
    assert 0 <= sampled(spec, 0)["x"] <= 9


def test_a_grid_is_made_of_the_space() -> None:
    space = {"x": {"type": "float", "low": 0, "high": 1, "step": 0.5}, "y": {"type": "categorical", "choices": "ab"}}
    space["y"]["choices"] = ["a", "b"]
    spec = StudySpec.from_dict({**BASE, "space": space, "sampler": {"name": "grid"}})
    assert spec.combinations == 6


def test_a_sampler_may_hold_another() -> None:
    options = "{fixed_params={width=64},base_sampler={name='random'}}"
    spec = spec_with(f"sampler={{name='partialfixed',options={options}}}")
    assert sampled(spec, 3)["width"] == 64


@pytest.mark.parametrize("name", ["none", "median", "hyperband", "successivehalving", "wilcoxon"])
def test_every_pruner_is_built_by_its_short_name(name: str) -> None:
    assert isinstance(spec_with(f"pruner.name={name}").to_pruner(), optuna.pruners.BasePruner)


def test_a_pruner_may_hold_another() -> None:
    spec = spec_with("pruner={name='patient',options={patience=2,wrapped_pruner={name='median'}}}")
    assert isinstance(spec.to_pruner(), optuna.pruners.PatientPruner)


def test_several_directions_name_a_metric_each() -> None:
    data = {key: value for key, value in BASE.items() if key != "direction"}
    spec = StudySpec.from_dict({**data, "directions": ["minimize", "maximize"], "metric": ["loss", "accuracy"]})
    assert spec.metric_names == ["loss", "accuracy"]
    assert json.loads(spec.to_json())["directions"] == ["minimize", "maximize"]
    with pytest.raises(SpecError, match=r"budget\.target needs a single objective"):
        StudySpec.from_dict({**data, "directions": ["minimize", "maximize"], "budget": {"target": 1.0}})


def test_parameters_are_read_against_what_trials_had() -> None:
    space = observed_space(
        [
            ("c", CategoricalDistribution((None, True, "true", 0.5))),
            ("n", IntDistribution(1, 3, step=2)),
            ("n", IntDistribution(0, 6, step=3)),
            ("x", FloatDistribution(0, 1, step=0.25)),
        ]
    )
    given = {"c=null": None, "c=true": True, "c=0.50": 0.5, "n=5": 5, "x=0.75": 0.75, "x=1": 1.0}
    for text, value in given.items():
        (read,) = read_params([text], space).values()
        assert (read, type(read)) == (value, type(value))
    for text in ("c=1", "n=7", "n=1.5", "x=0.3", "y=1"):
        with pytest.raises(SpecError, match=r"should be|no parameter 'y' is known; known: c, n, x"):
            read_params([text], space)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def objective(trial): 1 / 0", None),
        ("class Net:\n    def __call__(self, trial): ...\nobjective = Net()", None),
        ("import sys\nif sys.argv:\n    from lab import objective", None),
        ("from lab import *", None),
        ("def __getattr__(name): ...", None),
        ("globals()['objec' + 'tive'] = print", None),
        ("def make():\n    global objective\n    def objective(trial): ...", None),
        ("import os\ndef objetive(trial): ...", "train.py has no 'objective'; did you mean 'objetive'?"),
        ("import objectives\ndef f(objective): objective = 1", "train.py has no 'objective'; known: f"),
        ("x = '\\d'\n", "train.py has no 'objective'; known: x"),
        ("def f():\n    return (", "train.py, line 2: '(' was never closed; correct the file, then try again"),
        ("x = '\0'", "train.py: source code string cannot contain null bytes; correct"),
    ],
)
def test_a_script_is_looked_at_before_it_is_run(tmp_path: Path, source: str, message: str | None) -> None:
    (tmp_path / "train.py").write_text(source)
    data = read_target(f"{tmp_path}/train.py:objective")
    if message is None:
        script = take_script(data)
        assert isinstance(script, Script)
        return
    with pytest.raises(ObjectiveError) as caught:
        take_script(data)
    assert str(caught.value).startswith(message)


def test_a_target_without_its_file_or_callable_says_what_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("def fit(trial): ...")
    for given, meant in (("train", "train.py:fit"), ("train.py", "train.py:fit"), ("train.other", "train.py:other")):
        with pytest.raises(SpecError, match=f"did you mean '{meant}'"):
            read_target(given)
