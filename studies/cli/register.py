"""The command register: a final model into MLflow's registry."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from studies.cli.common import Common, allow_option, common_options, home, say
from studies.cli.mirror import checked, tracking_option
from studies.errors import command

if TYPE_CHECKING:
    from studies.mirror.registry import Registered
    from studies.storage.postgres import PostgresStorage


def model_name(_ctx: click.Context, _param: click.Parameter, name: str | None) -> str | None:
    """The callback of what takes the name of a registered model: as MLflow checks it, before hours of training."""
    if name is not None and (name.strip() in ("", ".", "..") or re.search("[/:]", name)):
        raise click.BadParameter(f"{name!r} is no name for a registered model; legal is text without / and :")
    return name


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name", callback=model_name)
@tracking_option
@allow_option
@common_options
def register(common: Common, folder: Path, name: str, tracking_uri: str | None, allow: tuple[str, ...]) -> None:
    """Register a final model in MLflow.

    FOLDER is what finalize wrote, NAME the registered model, which gets a new version. The model takes
    raw rows, and needs nothing but what it carries: mlflow models serve -m models:/NAME/1
    """
    tracking_uri = checked(tracking_uri)
    with common.open() as storage:
        done = register_model(storage, folder.absolute(), name, tracking_uri, allow)
    say_registered(done, tracking_uri)


def register_model(
    storage: PostgresStorage, folder: Path, name: str, tracking_uri: str | None, allow: Sequence[str]
) -> Registered:
    """Register a model in the MLflow of the mirror.

    Raises:
        StudyhallError: it cannot be registered.
    """
    from studies.mirror.server import configure

    # MLflow reads its settings when it is imported.
    configure()
    os.umask(0o077)  # as the mirror's: artifacts may hold secrets of an objective
    from studies.mirror import registry
    from studies.mirror.launcher import artifacts_of
    from studies.mirror.server import connect, prepare_database, probe

    storage.require("worker")
    kept = registry.Kept.read(folder)
    if tracking_uri is None:
        say("opening the MLflow database; creating it takes some seconds the first time")
    uri = tracking_uri or prepare_database(storage.location)
    probe(uri)
    artifacts = None if uri.startswith("http") else artifacts_of(home())
    return registry.register(storage, kept, name, connect(uri), artifacts=artifacts, allow=allow)


def later(folder: Path, name: str, tracking_uri: str | None) -> str:
    """The command that registers a model later."""
    from studies.mirror.server import display

    # A password is never shown: then the person gives the address again, or has it in the environment.
    option = ["--tracking-uri", tracking_uri] if tracking_uri and display(tracking_uri) == tracking_uri else []
    return command("register", str(folder), name, *option)


def say_registered(done: Registered, tracking_uri: str | None) -> None:
    """Print the version, and how to serve it."""
    where = tracking_uri or '"$(studyhall mirror --print-uri)"'
    say(f"registered {done.uri}; serve it with: MLFLOW_TRACKING_URI={where} mlflow models serve -m {done.uri}")
