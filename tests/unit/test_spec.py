"""The study file: what is legal, what is refused and how, and what it becomes in Optuna."""

from __future__ import annotations

import json
import tomllib

import pytest
import tomli_w

from studies.errors import SpecError, SpecMismatch
from studies.spec.sections import BudgetSpec, parse_seconds
from studies.spec.study import StudySpec
from tests.support.spec import BASE, sampled, spec_with


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
        (
            "space.momentum={type='float',low=-1e308,high=1e308}",
            "space.momentum: low = -1e+308 and high = 1e+308 are too far apart for a computer's numbers; narrow",
        ),
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
            "sampler.name: 'tep' is unknown; did you mean 'tpe'?; all: bruteforce, cmaes, curves, enqueued",
        ),
        ("scheduler.name=soon", "scheduler.name: 'soon' is unknown; known: freezethaw, halving"),
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
        ("space.optimizer.prior=['a']", "space.optimizer.prior = ['a']: should be text, a number, true or false"),
        (
            "space.momentum.when={optimizer=[['a']]}",
            "space.momentum.when.optimizer.0 = ['a']: should be text, a number, true or false",
        ),
        ("metric=3", "metric = 3: should be text or a list of texts"),
        ("metric=['a', 3]", "metric = ['a', 3]: should be text or a list of texts"),
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
        ("scheduler.name=halfing", "scheduler.name: 'halfing' is unknown; did you mean 'halving'?"),
        ("scheduler={name='halving',options={eta=3}}", "scheduler.options.eta: 'halving' has no such option"),
        ("scheduler={name='halving',options={min_steps=0}}", "scheduler.options.min_steps = 0: should be at least 1"),
        ("scheduler={name='halving',options={rungs=[3,1]}}", "refuses rungs = [3, 1]: rungs should be whole numbers"),
        ("scheduler={name='halving'}", "pruner.name: 'median' and scheduler.name: 'halving' are both given"),
        ("budget.epochs=0", "budget.epochs = 0: should be greater than 0"),
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


def test_a_condition_on_a_value_between_two_steps_is_refused() -> None:
    parent, child = (
        "space.depth={type='int',low=1,high=5,step=2}",
        "space.skip={type='int',low=0,high=1,when={depth=[%d]}}",
    )
    assert spec_with(parent, child % 3).space["skip"].when == {"depth": [3]}
    with pytest.raises(SpecError, match=r"space\.skip\.when\.depth lists 2, which 'depth' never takes"):
        spec_with(parent, child % 2)


def test_several_mistakes_are_counted() -> None:
    with pytest.raises(SpecError, match=r"\(and 1 more\)"):
        spec_with("budget.trials=0", "seed=-1")
    with pytest.raises(SpecError, match=r"false \(and 1 more\)$"):
        spec_with("space.optimizer.choices=[['a'], {}, 'b']")


def test_one_value_of_several_legal_types_is_one_mistake() -> None:
    for setting in ("metric=3", "space.optimizer.prior=[1]", "space.optimizer.choices=[['a'], 'b']"):
        with pytest.raises(SpecError) as caught:
            spec_with(setting)
        assert "more)" not in str(caught.value)


def test_a_value_that_equals_another_of_its_type_is_named_with_both() -> None:
    stored, given = spec_with("objective.args.flag=true"), spec_with("objective.args.flag=1")
    with pytest.raises(SpecMismatch, match=r"objective\.args\.flag is true, not 1"):
        stored.require_same(given, stored.budget)
    stored, given = (
        spec_with("space.new={type='categorical',choices=[true,2]}"),
        spec_with("space.new={type='categorical',choices=[1,2]}"),
    )
    with pytest.raises(SpecMismatch, match=r"space\.new\.choices is \[true, 2\], not \[1, 2\]"):
        stored.require_same(given, stored.budget)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("45s", 45), ("30m", 1800), ("1h30m", 5400), ("2h", 7200), ("1d", 86400)]
)
def test_times_are_written_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


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


def test_the_order_of_the_space_makes_no_other_study() -> None:
    turned = dict(reversed(BASE["space"].items()))
    spec_with().require_same(StudySpec.from_dict({**BASE, "space": turned}), spec_with().budget)


def test_seeds_are_of_the_trial_and_all_different() -> None:
    spec = spec_with()
    seeds = [spec.seed_of(number) for number in range(1000)]
    assert len(set(seeds)) == 1000
    assert seeds[7] == spec_with().seed_of(7)
    assert seeds[7] != spec_with("seed=1").seed_of(7)


def test_two_trials_never_draw_the_same_and_one_trial_draws_alike_on_any_worker() -> None:
    spec = spec_with()
    assert sampled(spec, 0) == sampled(spec, 0)
    assert sampled(spec, 0)["lr"] != sampled(spec, 1)["lr"]


def test_several_directions_name_a_metric_each() -> None:
    data = {key: value for key, value in BASE.items() if key != "direction"}
    spec = StudySpec.from_dict({**data, "directions": ["minimize", "maximize"], "metric": ["loss", "accuracy"]})
    assert spec.metric_names == ["loss", "accuracy"]
    assert json.loads(spec.to_json())["directions"] == ["minimize", "maximize"]
    with pytest.raises(SpecError, match=r"budget\.target needs a single objective"):
        StudySpec.from_dict({**data, "directions": ["minimize", "maximize"], "budget": {"target": 1.0}})


def test_a_scheduler_named_none_is_none_so_that_one_of_a_preset_can_be_left_out() -> None:
    data = {"name": "s", "objective": {"path": "tests:objective"}}

    assert StudySpec.from_dict({**data, "scheduler": {"name": "none"}}) == StudySpec.from_dict(data)
