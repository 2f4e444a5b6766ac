"""The command exec: a program of the user's own, given a trial's parameters."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping

import click

from studies.cli.common import Common, choose_trial, common_options, study_argument, trial_option
from studies.cli.parameters import arguments, booleans_option, fill_in, prefix_option, variables
from studies.errors import StudyhallError, command


@click.command(name="exec")
@study_argument
@click.argument("program", metavar="-- PROGRAM [ARGS]...", nargs=-1, type=click.UNPROCESSED)
@trial_option
@click.option("--env", "as_variables", is_flag=True, help="Give environment variables instead: LR=0.001.")
@prefix_option
@booleans_option
@common_options
def exec_(
    common: Common,
    name: str,
    program: tuple[str, ...],
    trial_number: int | None,
    as_variables: bool,
    prefix: str,
    booleans: str | None,
) -> None:
    """Run a program with the best parameters.

    They are appended as --lr 0.001 --width 66; or, where the command holds names in braces such as
    lr={lr}, filled in there and nowhere else. The exit status is the program's.

    \b
    studyhall exec digits -- python train.py
    studyhall exec digits -- python train.py lr={lr} model.width={width}
    studyhall exec digits --env --prefix HP_ -- ./train.sh
    """
    if not program:
        raise click.UsageError(f"no program to run; for example: {command('exec', name)} -- python train.py")
    if prefix and not as_variables:
        raise click.UsageError("--prefix is for environment variables; add --env")
    if booleans and as_variables:
        raise click.UsageError("--booleans is for arguments; leave --env or this out")
    with common.open() as storage:
        params = choose_trial(storage, storage.find_study(name), trial_number).params
    environment = dict(os.environ)
    words = list(program)
    if as_variables:
        environment |= variables(params, prefix)
    else:
        words, is_filled_in = fill_in(words, params)
        if not is_filled_in:
            words += arguments(params, booleans)
    _become(words, environment)


def _become(words: list[str], environment: Mapping[str, str]) -> None:
    """Run a program in the place of this process: its terminal, its signals and its exit status are the program's."""
    sys.stdout.flush()  # exec would discard the buffer
    # Python ignores these signals, and a program would inherit that: `program | head` would not end.
    ignored = [getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ignored}
    try:
        os.execvpe(words[0], words, environment)
    except OSError as error:
        raise StudyhallError(f"cannot run {words[0]!r}: {error.strerror}") from error
    except ValueError as error:
        raise StudyhallError(f"a parameter cannot be handed to a program: {error}; see: best --format json") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
