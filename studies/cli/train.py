"""The command train: one configuration, without a study; its curves in the terminal and in a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studies.cli.common import (
    data_dir_option,
    data_dir_or_default,
    debug_option,
    live_console,
    say,
    until_interrupted,
)
from studies.cli.formats import echo, readable, to_csv, to_json
from studies.cli.plot import IMAGES
from studies.cli.report import OutputFile, write_output
from studies.cli.target import Target, set_option, target_argument
from studies.report.files import file_name, require_writable
from studies.text import number
from studies.values import finite, to_text

if TYPE_CHECKING:
    from studies.spec.study import StudySpec

Curves = Sequence[Mapping[str, float]]
#: Of ``--profile`` without a folder.
DEFAULT = "NAME-profile"


@click.command()
@target_argument
@click.option("--param", "texts", multiple=True, metavar="NAME=VALUE", help="A parameter; default: the objective's.")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, metavar="N", help="The seed of the training; default: 0."
)
@click.option("--device", "label", metavar="DEVICE", help="cpu, cuda:0, …; default: the first GPU, else the CPU.")
@set_option
@click.option(
    "-o",
    "--output",
    type=OutputFile(".csv", ".json", *IMAGES, ".html"),
    metavar="FILE",
    help="The curves as .csv, .json, .png, .svg or .html.",
)
@click.option(
    "--profile",
    "folder",
    type=click.Path(path_type=Path),
    is_flag=False,
    flag_value=DEFAULT,
    metavar="[DIR]",
    help=f"Where the time goes: a table, and a trace for Chrome in a new folder; default: {DEFAULT}.",
)
@data_dir_option
@debug_option
def train(
    target: str,
    texts: tuple[str, ...],
    seed: int,
    label: str | None,
    settings: tuple[str, ...],
    output: Path | None,
    folder: Path | None,
    data_dir: Path | None,
) -> None:
    """Train one configuration without a study.

    TARGET is as for run; its objective must be a class with a method curves(), as objectives.mlp:MLP
    is. The curves are drawn while it trains. After Ctrl-C the file has the steps so far.
    """
    from studies.finalize.folder import new_directory, require_new
    from studies.objective import build
    from studies.session import permissions
    from studies.spec.params import read_params
    from studies.train import TABLE, require_trainable
    from studies.train import train as trained
    from studies.worker import devices

    spec, script = Target(target=target, settings=settings).read()
    # Against no space: the objective itself says what is legal, in require_trainable().
    params = read_params(texts, {})
    if output:
        require_writable(output)
    if folder:
        folder = Path(file_name(spec.name, "-profile")) if str(folder) == DEFAULT else folder
        folder = folder.absolute()
        require_new(folder, "--profile")
    device = devices.find(label, os.environ.get("CUDA_VISIBLE_DEVICES"))
    # What an objective says of its data, a worker shows as well.
    logging.getLogger().setLevel(min(logging.getLogger().level, logging.INFO))
    os.environ.update(device.environment)  # before the objective imports PyTorch
    objective = build(
        script.path if script else spec.objective.path,
        spec.objective.args,
        # Typing TARGET allows its objective.
        allow=[script.path] if script else permissions(spec, script),
        data_dir=data_dir_or_default(data_dir),
        sha256=script.sha256 if script else None,
    )
    path = spec.objective.path
    require_trainable(path, objective, params, profile=folder is not None)
    say(f"training {spec.name} ({device.label}, seed {seed}): {_described(params, spec)}")
    curves: list[Mapping[str, float]] = []
    with ExitStack() as stack:
        stack.enter_context(until_interrupted())
        # A callback, so that an interrupt or an error keeps the steps so far as well.
        if output:
            stack.callback(_write, output, spec.name, params, seed, curves)
        beside = stack.enter_context(new_directory(folder, "--profile") if folder else nullcontext())
        with _view() as show:
            for metrics in trained(path, objective, params, seed=seed, device=device.torch, profile=beside):
                curves.append(metrics)
                show(curves)
        if beside:
            echo(*(beside / TABLE).read_text(encoding="utf-8").splitlines())
    if folder:
        say(f"wrote {folder}: open its trace.json at https://ui.perfetto.dev or chrome://tracing")


def _described(params: Mapping[str, Any], spec: StudySpec) -> str:
    # Numbers exactly, as they were typed: 0.9999999 in four digits is 1.
    given = " ".join(
        f"{name}={readable(value) if isinstance(value, str) else to_text(value)}" for name, value in params.items()
    )
    left = [name for name in spec.space if name not in params]
    defaults = f"the objective's defaults for {', '.join(left) or 'all else'}"
    return f"{given}; {defaults}" if given else defaults


@contextmanager
def _view() -> Iterator[Callable[[Curves], None]]:
    """A function that shows the curves so far: charts in a terminal, else a line for each step."""
    console = live_console()
    if console is None:
        yield lambda curves: echo(_line(len(curves), curves[-1]))
        return
    from rich.live import Live

    from studies.cli.train_picture import picture

    with Live(console=console, refresh_per_second=4) as live:
        yield lambda curves: live.update(picture(curves, console))


def _line(step: int, metrics: Mapping[str, float]) -> str:
    return f"step {step}: " + ", ".join(f"{name} {number(value)}" for name, value in metrics.items())


def _write(output: Path, name: str, params: Mapping[str, Any], seed: int, curves: Curves) -> None:
    """Write the curves, if there are any, as the file's ending says."""
    if not curves:
        return
    ending = output.suffix.lower()
    if ending == ".csv":
        names = list(curves[0])
        rows = ([step, *(finite(metrics.get(name)) for name in names)] for step, metrics in enumerate(curves, 1))
        content = to_csv([["step", *names], *rows]).encode() + b"\n"
    elif ending == ".json":
        steps = [
            {"step": step, **{name: finite(value) for name, value in metrics.items()}}
            for step, metrics in enumerate(curves, 1)
        ]
        content = to_json({"name": name, "params": params, "seed": seed, "steps": steps}).encode() + b"\n"
    else:
        content = _drawn(ending, name, params, curves)
    write_output(output, content)


def _drawn(ending: str, name: str, params: Mapping[str, Any], curves: Curves) -> bytes:
    from studies.cli.report import import_importances

    import_importances()
    from studies.report.data import of_curves

    data = of_curves(name, params, curves)
    if ending in IMAGES:
        from studies.report.matplotlib_images import image

        return image(data, "curves", ending.removeprefix("."))
    from studies.report import page

    return page.single(data, "curves")
