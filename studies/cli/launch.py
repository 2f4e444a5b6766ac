"""The commands that start workers by the schedulers of other machines: launch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from studies.checkpoint_stores import PERMISSION
from studies.cli.common import (
    Common,
    allow_changed_option,
    allow_option,
    common_options,
    has_embedded_database,
    say,
    study_argument,
)
from studies.cli.formats import echo_data
from studies.errors import EmbeddedServerError, NoTables, StorageUnreachable, StudyhallError, StudyNotFound
from studies.launch import cpus_per_worker
from studies.stop_reasons import STOP_REASONS, way_on

if TYPE_CHECKING:
    from studies.launch.kubernetes import Volume
    from studies.spec.study import StudySpec
    from studies.storage.records import StudyRecord
    from studies.storage.url import StorageURL


@click.group()
def launch() -> None:
    """Start workers by a scheduler: on Kubernetes, on Slurm."""


@dataclass(frozen=True, kw_only=True)
class RunnableStudy:
    """What a launcher knows of a study; of its name alone, where its database was not asked."""

    location: StorageURL | None
    """The server that the workers reach, if one was given."""
    uid: str | None = None
    """In that server."""
    spec: StudySpec | None = None


def runnable_study(common: Common, name: str, check: Callable[[StudyRecord], StudySpec]) -> RunnableStudy:
    """Find a study whose workers could begin, to print what starts them. Where no database answers, say that nothing
    was checked.

    Without ``--storage`` the study is looked up where all commands look, in the embedded database, though the workers
    need another one.

    Args:
        common: names the database.
        name: of the study.
        check: gives its spec, or raises if this launcher may not run it.

    Raises:
        StudyhallError: there is no such study, it has ended, or what ``check`` raises.
    """
    from studies.storage.url import StorageURL

    location = StorageURL.parse(common.storage_url) if common.storage_url else None
    try:
        if location is None and not has_embedded_database():
            raise StorageUnreachable("no --storage is given, and this machine has no embedded database")
        with common.open() as storage:
            record = storage.find_study(name)
            spec = check(record)
            ended = storage.status(record).ended
    except (StorageUnreachable, EmbeddedServerError) as error:
        say(f"note: {error}; study {name!r} was not checked: its workers find out whether it exists and may run")
        return RunnableStudy(location=location)
    except (StudyNotFound, NoTables) as error:
        if location is not None:
            raise
        raise StudyNotFound(f"{error}; if the workers have another database, name it with --storage") from None
    if ended:
        raise StudyhallError(
            f"study {name!r} has ended ({STOP_REASONS.get(ended, ended)}) and its workers would exit at once; "
            f"go on with: {way_on(name, ended)}"
        )
    if location is None:
        say(f"note: study {name!r} was checked in the embedded database, which no other machine reaches")
    # Without a location the workers' study is another one, of the same name.
    return RunnableStudy(location=location, uid=record.uid if location else None, spec=spec)


def _namespace(_ctx: click.Context, _param: click.Parameter, text: str) -> str:
    from studies.launch.kubernetes import is_dns_label

    if not is_dns_label(text):
        raise click.BadParameter(f"{text!r}: legal are up to 63 characters of a-z, 0-9 and -, with no - at either end")
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


def _volumes(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> list[Volume]:
    from studies.launch.kubernetes import Volume, is_dns_label

    volumes: list[Volume] = []
    for text in texts:
        found = re.fullmatch(r"(?P<claim>[^:]+):(?P<path>/[^:]*[^:/])(?P<ro>:ro)?", text)
        if not found or not all(map(is_dns_label, found["claim"].split("."))):
            raise click.BadParameter(f"{text!r} is not CLAIM:/PATH or CLAIM:/PATH:ro of a PersistentVolumeClaim")
        # Those that the Job mounts by itself.
        if found["path"] in {"/data", "/tmp", "/dev/shm", *(volume.path for volume in volumes)}:
            raise click.BadParameter(f"{found['path']} is taken in the pod; data sets go to /data/sets")
        volumes.append(Volume(claim=found["claim"], path=found["path"], is_read_only=bool(found["ro"])))
    return volumes


@launch.command()
@study_argument
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Number of pods."
)
@click.option(
    "--gpus",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    metavar="N",
    help="GPUs of each pod, with a worker on each; 0: one worker on a CPU core.",
)
@click.option("--spot", is_flag=True, help="Use spot machines, which may be taken away.")
@click.option("--image", callback=_image, help="Default: studyhall, of the version of this command.")
@click.option("--pull-secret", "pull_secrets", multiple=True, metavar="NAME", help="A Secret for the image's registry.")
@click.option(
    "--volume",
    "volumes",
    multiple=True,
    callback=_volumes,
    metavar="CLAIM:/PATH[:ro]",
    help="A PersistentVolumeClaim: data sets at /data/sets, checkpoints where the study says.",
)
@click.option("--namespace", callback=_namespace, default="studyhall", show_default=True, help="Namespace of the Job.")
@allow_option
@click.option("--objective", metavar="FILE.py:NAME", help="Where the image has the study's script.")
@allow_changed_option
@common_options
def kubernetes(common: Common, name: str, workers: int, gpus: int, spot: bool, **options: Any) -> None:
    """Print the Job that runs a study's workers.

    Pipe it into kubectl apply -f -; do so again with another number of workers to scale. The Job uses the
    server of --storage, or the cluster's own (deploy/kubernetes) if there is none or it is on this machine.
    The password is in the Secret studyhall-database, under `worker`.
    """
    import yaml

    from studies.launch.kubernetes import DATA_DIR, WorkerJob

    # Whoever mounts a volume lets checkpoints go there.
    stores = tuple(f"{PERMISSION}{volume.path}" for volume in options["volumes"] if not volume.is_read_only)
    allow = options["allow"] + stores
    from studies.session import require_runnable

    has_script = options["objective"] is not None
    study = runnable_study(
        common, name, lambda record: require_runnable(record, allow, DATA_DIR, has_script=has_script)
    )
    storage = None
    # An address such as localhost is the pod itself there.
    if study.location and not study.location.is_of_this_machine:
        storage = _storage_of_pods(study.location)
    else:
        say("note: the Job's storage is the cluster's own, as its ConfigMap studyhall-database says")
    if (
        study.spec
        and (where := study.spec.checkpoints.store).startswith("/")
        and not any(Path(where).is_relative_to(volume.path) for volume in options["volumes"])
    ):
        say(f"warning: checkpoints in {where} are gone with their pod; keep them: --volume CLAIM:{where}")
    job = WorkerJob(
        study=name,
        workers=workers,
        gpus=gpus,
        cpus_per_worker=cpus_per_worker(study.spec, has_gpu=gpus > 0),
        storage=storage,
        is_spot=spot,
        **options | {"allow": allow},
    )
    echo_data(yaml.safe_dump(job.manifest(), sort_keys=False).rstrip())
    say(f"start or scale: the same | kubectl apply -f -; end: kubectl -n {job.namespace} delete job {job.name}")


def _storage_of_pods(location: StorageURL) -> str:
    """The storage's URL as a pod can use it."""
    from studies.launch.kubernetes import CA_DIR

    # The password stays here: a manifest is stored in the cluster, and often in git.
    options = dict(location.options)
    files = options.keys() & {"service", "servicefile", "passfile", "sslcert", "sslkey", "sslcrl", "sslcrldir"}
    if files:
        raise StudyhallError(
            f"the storage's option {min(files)} names a file of this machine, which no pod has: "
            "write the host, and leave the password to the Secret studyhall-database"
        )
    # "system" is libpq's word for the certificates that the image itself trusts.
    authority = options.get("sslrootcert")
    if authority and authority != "system":
        options["sslrootcert"] = f"{CA_DIR}/{Path(authority).name}"
        location = replace(location, options=tuple(sorted(options.items())))
        say(
            "note: the pods have no such file yet: kubectl create configmap studyhall-database-ca "
            f"--from-file={shlex.quote(authority)}"
        )
    return location.without_secrets
