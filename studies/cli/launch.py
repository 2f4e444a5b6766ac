"""The commands that start workers by the schedulers of other machines: launch."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import click

from studies.cli.common import (
    Common,
    allow_changed_option,
    allow_option,
    common_options,
    require_runnable,
    say,
    study_argument,
)
from studies.cli.formats import echo_data
from studies.control import END_WORDS, way_on
from studies.errors import StudyhallError


@click.group()
def launch() -> None:
    """Start workers by a scheduler: on Kubernetes, on Slurm."""


def _namespace(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    from studies.launch.kubernetes import is_dns_label

    if not is_dns_label(text):
        raise click.BadParameter(f"{text!r}: legal are up to 63 of a-z, 0-9 and -, which begin and end with no -")
    return text


def _image(_ctx: click.Context, _param: click.Parameter, text: str | None) -> str:
    if text is None:
        return f"studyhall:{version('studyhall')}"
    tag = text.rpartition("/")[2].partition(":")[2]
    if not text or text != "".join(text.split()) or tag in ("", "latest"):
        raise click.BadParameter(
            f"{text!r} does not say which version it is, and workers of several may not share a study: "
            "write NAME:TAG or NAME@sha256:DIGEST"
        )
    return text


@launch.command()
@study_argument
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Pods.")
@click.option(
    "--gpus",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="Of each pod, with a worker on each; 0: a CPU core.",
)
@click.option("--spot", is_flag=True, help="On machines that may be taken away.")
@click.option("--image", callback=_image, help="Default: studyhall, of the version of this command.")
@click.option("--namespace", callback=_namespace, default="studyhall", show_default=True, help="Of the Job.")
@allow_option
@click.option("--objective", metavar="FILE.py:NAME", help="Where the image has the study's script.")
@allow_changed_option
@common_options
def kubernetes(common: Common, name: str, workers: int, gpus: int, spot: bool, **options: Any) -> None:
    """Print the Job that runs a study's workers.

    Pipe it into kubectl apply -f -; once more, with another number of workers, to scale. It needs what
    deploy/kubernetes sets up: the ConfigMap and the Secret studyhall-database.
    """
    import yaml

    from studies.launch.kubernetes import DATA_DIR, WorkerJob

    with common.open() as storage:
        record = storage.find_study(name)
        ended = storage.status(record).ended
    require_runnable(record, options["allow"], DATA_DIR, has_script=options["objective"] is not None)
    if ended:
        raise StudyhallError(
            f"study {name!r} has ended ({END_WORDS.get(ended, ended)}), and so would its workers; "
            f"go on with: {way_on(name, ended)}"
        )
    job = WorkerJob(study=name, workers=workers, gpus=gpus, is_spot=spot, **options)
    echo_data(yaml.safe_dump(job.manifest(), sort_keys=False).rstrip())
    say(f"start or scale: the same | kubectl apply -f -; end: kubectl -n {job.namespace} delete job {job.name}")
