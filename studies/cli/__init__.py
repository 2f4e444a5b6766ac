"""The command line, ``studyhall``: the one place that reads the environment, prints and exits.

Only light modules are imported here and at the top of its siblings, so that ``studyhall --help`` is
quick; Optuna is imported by the commands that need it, PyTorch by the workers alone.
"""

from __future__ import annotations

import io
import sys

import click

from studies.cli import (
    best,
    cancel,
    create,
    db,
    delete,
    doctor,
    enqueue,
    exec,
    extend,
    finalize,
    importance,
    launch,
    launch_slurm,
    ls,
    mirror,
    pause,
    plot,
    register,
    report,
    reproduce,
    resume,
    retry,
    run,
    serve,
    show,
    space,
    status,
    stop,
    train,
    trials,
    watch,
    work,
)
from studies.cli.common import drop_output, report_error, report_usage_error
from studies.errors import StudyhallError


class _InOrder(click.Group):
    """Lists its commands in the order in which a newcomer needs them."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="Begin with: studyhall run digits",
)
@click.version_option(package_name="studyhall")
def studyhall() -> None:
    """Tune models with many workers on one PostgreSQL study.

    Studies live in a PostgreSQL that comes with Studyhall and is started when needed, or in the
    one that --storage (or STUDYHALL_STORAGE) names.
    """


for _command in (
    run.run,
    create.create,
    work.work,
    ls.list_studies,
    status.status,
    watch.watch,
    best.best,
    exec.exec_,
    trials.trials,
    show.show,
    report.report,
    plot.plot,
    importance.importance,
    serve.serve,
    mirror.mirror,
    launch.launch,
    train.train,
    finalize.finalize,
    reproduce.reproduce,
    register.register,
    extend.extend,
    space.space,
    pause.pause,
    resume.resume,
    stop.stop,
    cancel.cancel,
    enqueue.enqueue,
    retry.retry,
    delete.delete,
    doctor.doctor,
    db.db,
):
    studyhall.add_command(_command)


launch.launch.add_command(launch_slurm.slurm)
launch.launch.add_command(launch_slurm.cancel_jobs)


def main() -> None:
    """The command ``studyhall``: runs it and exits with its status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A locale without blocks and dashes, or a lone surrogate in the database, ends no command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # Alone, click would print usage errors in several lines, and interrupts as "Aborted!".
        sys.exit(studyhall(standalone_mode=False, prog_name="studyhall") or 0)
    except click.ClickException as error:
        sys.exit(report_usage_error(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has seen enough, which is no failure
        drop_output()
        sys.exit(0)
    except StudyhallError as error:
        sys.exit(report_error(error))
