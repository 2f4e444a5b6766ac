"""The command finalize: compare the best trials, retrain the winner, test it once, and keep it."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from studies.cli.common import (
    Common,
    allow_option,
    choose_trial,
    common_options,
    data_dir_or_default,
    home,
    objective_options,
    say,
    study_argument,
    trial_option,
)
from studies.cli.formats import echo, print_columns
from studies.cli.mirror import checked
from studies.cli.register import later, model_name, register_model, say_registered
from studies.cli.workers import run_to_end, worker_options
from studies.errors import StudyhallError
from studies.report.files import file_name
from studies.text import counted, number

if TYPE_CHECKING:
    from studies.finalize.choice import Rule
    from studies.finalize.final import Choice
    from studies.spec.script import Script
    from studies.spec.study import StudySpec
    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord
    from studies.worker.devices import Device

TOP, SEEDS = 10, 5


@click.command()
@study_argument
@trial_option
@click.option(
    "--top",
    type=click.IntRange(1, 1000),
    metavar="N",
    help=f"How many of the best trials to compare; default: {TOP}, or as many as are COMPLETE.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    metavar="N",
    default=SEEDS,
    show_default=True,
    help="How many fresh seeds each of them is trained with; also the size of an ensemble.",
)
@click.option(
    "--rule",
    type=click.Choice(["one-se", "best"]),
    default="one-se",
    show_default=True,
    help="What wins: the simplest model within one standard error of the best mean, or the best mean.",
)
@click.option("--ensemble", is_flag=True, help="Keep a model for each seed, and average what they predict.")
@click.option(
    "--register", "model", metavar="MODEL", callback=model_name, help="Register it in MLflow under this name."
)
@click.option("--out", type=click.Path(path_type=Path), help="The folder to make; default: NAME-final.")
@click.option("--again", is_flag=True, help="Test once more on the same data; the number of tests is stored.")
@worker_options
@allow_option
@objective_options
@common_options
def finalize(
    common: Common,
    name: str,
    trial_number: int | None,
    top: int | None,
    seeds: int,
    rule: Rule,
    ensemble: bool,
    model: str | None,
    out: Path | None,
    again: bool,
    data_dir: Path | None,
    allow: tuple[str, ...],
    scripts: tuple[Script, ...],
    allow_changed: bool,
    mlflow: bool,
    tracking_uri: str | None,
    **how: Any,
) -> None:
    """Choose the best model, retrain it, and test it once.

    The best trials run again with fresh seeds, in a study NAME.finalize: studyhall work NAME.finalize
    helps from any machine, and after an interruption the same command continues. The winner is
    retrained on training and validation data and tested; its folder holds all that it needs.
    Reusing test data biases the result: a second test is refused without --again.
    """
    from studies.finalize import final, folder
    from studies.finalize.lease import leased
    from studies.objective import build, require_loader
    from studies.session import find_scripts, require_runnable
    from studies.worker import devices

    _require_one_way(trial_number)
    named = out or Path(file_name(name, "-final"))
    directory = named.absolute()
    tracking_uri = checked(tracking_uri)
    mirrors = [tracking_uri] if mlflow else []
    with common.open() as storage:
        record = storage.find_study(name)
        # Without --trial the best one, for the checks alone: the comparison chooses.
        chosen = choose_trial(storage, record, trial_number)
        spec = record.require_spec("its objective is not known")
        # All checks come before the training, which may take hours.
        final.require_complete(record, chosen)
        _earlier_test(storage, record, named, again=again)
        storage.require("worker")  # before hours of training, whose result a viewer could not store
        script = find_scripts([record], scripts, allow_changed=allow_changed).get(name)
        data_folder = data_dir_or_default(data_dir)
        require_runnable(record, allow, data_folder, has_script=script is not None)
        folder.require_new(directory, "--out")
        device = devices.choose(1, os.environ.get("CUDA_VISIBLE_DEVICES"))[0]
        with _environment(device):  # before the objective imports PyTorch
            objective = build(
                script.path if script else spec.objective.path,
                spec.objective.args,
                allow=[*allow, *([script.path] if script else [])],
                space=tuple(spec.space),
                data_dir=data_folder,
                sha256=script.sha256 if script else None,
            )
        members = seeds if ensemble else 1
        final.require_finalizable(spec, objective, ensemble=members)
        if model:
            require_loader(spec.objective.path, allow)
        choice = None
        if trial_number is None:
            choice = _compare(
                storage, record, spec, objective, top=top, seeds=seeds, rule=rule,
                scripts={} if script is None else {f"{name}.finalize": script},
                allow=allow, data_dir=data_dir, mirrors=mirrors, **how,
            )  # fmt: skip
            chosen = storage.trial(record, choice.winner.trial)
        models = f"{members} models of trial" if ensemble else "trial"
        with (
            leased(storage, record, waits=lambda other: say(f"{other} is retraining {name}; waiting for it to end")),
            _environment(device),
        ):
            # Another process may have been the first meanwhile: it wrote what this one has helped with and waited for.
            made = None if again else final.stored(storage, record)
            if made and (made["trial"], made.get("ensemble", 1)) == (chosen.number, members):
                _tell_made(name, made, model, tracking_uri)
                return
            before = _earlier_test(storage, record, named, again=again)
            say(f"retraining {models} {chosen.number} of {name} on training and validation data ({device.label})")
            metrics = final.finalize(
                storage, record, spec, chosen, objective, device=device, directory=directory, progress=_show,
                state=home() / "final", choice=choice, ensemble=members,
            )  # fmt: skip
        echo(*(f"{key} {number(value)}" for key, value in metrics.items()))
        say(f"wrote {directory}" + (f"; this was test {before['looks'] + 1} on the same test data" if before else ""))
        if model:
            try:
                say_registered(register_model(storage, directory, model, tracking_uri, allow), tracking_uri)
            # The model is written, and only registering it is left: the message has the command for that.
            except StudyhallError as error:
                way = later(directory, model, tracking_uri)
                raise StudyhallError(f"the model is not registered: {error}; do it later with: {way}") from error


def _require_one_way(trial_number: int | None) -> None:
    """Refuse options of a comparison beside a trial that a person has chosen."""
    context = click.get_current_context()
    for option in ("top", "rule"):
        if trial_number is not None and context.get_parameter_source(option) == ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--trial {trial_number} is retrained without a comparison; leave --{option} out")


def _tell_made(name: str, made: Mapping[str, Any], model: str | None, tracking_uri: str | None) -> None:
    """Print the model that another process has made meanwhile, and where it is."""
    echo(*(f"{key} {number(value)}" for key, value in made["metrics"].items()))
    say(f"another command has retrained and tested trial {made['trial']} of {name} meanwhile: see {made['directory']}")
    if model:
        _, _, folder = made["directory"].partition(":")
        way = later(Path(folder), model, tracking_uri)
        say(f"this command registers nothing; unless the other one did, do it there with: {way}")


def _earlier_test(storage: PostgresStorage, record: StudyRecord, folder: Path, *, again: bool) -> dict[str, Any] | None:
    """What an earlier test of the study has stored; refuses a second test, into ``folder``, unless ``again``."""
    from studies.finalize.final import stored

    before = stored(storage, record)
    if before and not again:
        shown = ", ".join(f"{key} {number(value)}" for key, value in before["metrics"].items())
        raise StudyhallError(
            f"study {record.name!r} was finalized with trial {before['trial']} ({shown}), in {before['directory']}; "
            f"reusing test data biases the result; pass {_again(folder, before['looks'])} to do it anyway"
        )
    return before


def _again(folder: Path, looks: int) -> str:
    """The options of another test after so many, whose folder is not there yet."""
    if not os.path.lexists(folder):  # it is on another machine, say
        return "--again"
    others = (folder.with_name(f"{folder.name}-{count}") for count in itertools.count(looks + 1))
    return f"--again --out {shlex.quote(str(next(other for other in others if not os.path.lexists(other))))}"


def _compare(
    storage: PostgresStorage,
    record: StudyRecord,
    spec: StudySpec,
    objective: Any,
    *,
    top: int | None,
    seeds: int,
    rule: Rule,
    scripts: Mapping[str, Script],
    **how: Any,
) -> Choice:
    """Run the best trials again with fresh seeds, and print how they did."""
    from studies.finalize import comparison
    from studies.finalize.choice import applicable, choose
    from studies.finalize.final import Choice
    from studies.session import require_success

    trials = comparison.top_trials(storage, record, top or TOP, is_at_most=top is None)
    given = comparison.fresh_seeds(spec, seeds)
    compared = comparison.enqueue(storage, record, spec, trials, given)
    # It has ended where an earlier command has run all of it.
    if storage.status(compared).ended is None:
        say(f"comparing {counted(len(trials), 'trial')} of {record.name} with {counted(seeds, 'fresh seed')} each")
        run_to_end(storage, [(compared.require_spec(""), 1.0)], scripts=scripts, **how)
        require_success(storage, compared, storage.status(compared))
    candidates = comparison.results(storage, compared, trials, given, getattr(objective, "n_parameters", None))
    is_minimized = spec.all_directions[0] == "minimize"
    # Python evaluates the left side first: the rule as it was given.
    if rule != (rule := applicable(rule, candidates)):
        say("one-se needs several seeds, and an objective with n_parameters(): the best mean wins")
    winner = choose(candidates, compared.name, rule, is_minimized=is_minimized)
    choice = Choice(comparison=compared.name, rule=rule, winner=winner, candidates=candidates)
    _print(choice, spec.metric_names[0], is_minimized=is_minimized)
    return choice


def _print(choice: Choice, metric: str, *, is_minimized: bool) -> None:
    """The candidates, and why the winner is the winner."""
    from studies.finalize.choice import RULES, best_of, paired

    best, winner = best_of(choice.candidates, choice.comparison, is_minimized=is_minimized), choice.winner
    rows = []
    for each in choice.candidates:
        shown = ["failed", "", ""]
        if each.is_complete:
            compared = paired(best, each, is_minimized=is_minimized)
            shown = [number(each.mean), f"{each.std:.2g}", "" if each is best else f"{compared.p:.3f}"]
        size = "" if each.n_parameters is None else f"{each.n_parameters:,}"
        rows.append([str(each.trial), number(each.tuned), *shown, size, "chosen" if each is winner else ""])
    header = ["trial", f"tuned {metric}", "mean", "std", "p", "parameters", ""]
    print_columns(header, rows, numeric=header[:-1])
    echo("")
    say(
        f"trial {winner.trial} wins ({RULES[choice.rule]}): tuned {metric} {number(winner.tuned)}, with fresh seeds "
        f"{number(winner.mean)} ± {winner.std:.2g}"
    )


@contextmanager
def _environment(device: Device) -> Iterator[None]:
    """The variables of a device, inside the block alone: the workers of the comparison have devices of their own."""
    before = dict(os.environ)
    os.environ.update(device.environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _show(done: int, total: int) -> None:
    """Show a counter in a terminal, and nothing in a file."""
    if sys.stderr.isatty():
        click.echo(f"\r{done} of {total}" + ("\n" if done == total else ""), err=True, nl=False)
