"""MLflow's artifacts: they lie in one folder of ours, and MLflow's server goes nowhere else.

A client of MLflow may say where an experiment, a model or a trace keeps its artifacts, and the server then reads,
writes and deletes there as whoever started it. Two rules prevent that, each at the one place that everything passes:

- MLflow's registry of artifact stores has a single kind, :class:`OwnArtifacts`, which stays in the folder.
- A location is checked when a row with it is written to MLflow's database.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

import sqlalchemy
from mlflow.entities import FileInfo
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import _PROMPT_SOURCE_PLACEHOLDERS
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlLoggedModel, SqlRun, SqlTraceTag
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.mlflow_tags import MLFLOW_ARTIFACT_LOCATION

#: The columns of MLflow's database that hold artifact locations.
LOCATIONS = {
    SqlExperiment: ("artifact_location",),
    SqlRun: ("artifact_uri",),
    SqlLoggedModel: ("artifact_location",),
    SqlModelVersion: ("source", "storage_location"),
    SqlTraceTag: ("value",),
}
#: Trace tags that are locations.
_TRACE_TAGS = (MLFLOW_ARTIFACT_LOCATION, "mlflow.trace.archiveLocation")


def confine(root: Path) -> None:
    """Confine the artifacts of MLflow in this process to ``root``.

    Args:
        root: absolute; only its owner may write in it, so what is checked here stays as it was.
    """

    class Own(OwnArtifacts):
        roots = (root, root.resolve())

    stores: dict[str, Any] = get_registered_artifact_repositories()
    stores.clear()
    stores |= {"": Own, "file": Own}

    def check(_mapper: object, _connection: object, row: Any) -> None:
        if isinstance(row, SqlTraceTag) and row.key not in _TRACE_TAGS:
            return
        for name in LOCATIONS[type(row)]:
            # An old location may stay, as its row must be renamed or deleted; nothing is served from it.
            location = getattr(row, name)
            if sqlalchemy.inspect(row).attrs[name].history.added and not is_own(location, Own.roots):
                _refuse(
                    f"{location[:200]!r} is no place for artifacts here: "
                    "leave it out, or begin it with mlflow-artifacts:/"
                )

    for model in LOCATIONS:
        sqlalchemy.event.listen(model, "before_insert", check)
        sqlalchemy.event.listen(model, "before_update", check)


def is_own(location: str | None, roots: tuple[Path, ...]) -> bool:
    """Whether a location was chosen by the server, or refers to such a one."""
    if not location or location in _PROMPT_SOURCE_PLACEHOLDERS:
        return True
    parts = urlsplit(location)
    if parts.scheme in ("mlflow-artifacts", "runs", "models"):
        # The last two are names, whose locations MLflow resolves.
        return not parts.netloc and ".." not in _decoded(parts.path).split("/")
    if parts.scheme not in ("", "file") or parts.netloc or not parts.path.startswith("/"):
        return False
    path = Path(os.path.normpath(local_file_uri_to_path(location)))  # type: ignore[no-untyped-call]
    return any(path.is_relative_to(root) for root in roots)


class OwnArtifacts(LocalArtifactRepository):
    """MLflow's local store, confined to a folder: it follows no link and opens nothing but files and directories.

    Each method checks the path that it is about to use. MLflow's own checks allow a link that stays inside of the
    location of the experiment, which itself may be anywhere.
    """

    roots: tuple[Path, ...]
    """The folder's path as configured, and resolved."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._artifact_dir = self._checked("")

    def get_local_path(self, artifact_path: str) -> str:
        path = self._checked(artifact_path)
        if not os.path.lexists(path):
            raise MlflowException(f"No such artifact: {artifact_path!r}", error_code=RESOURCE_DOES_NOT_EXIST)
        return path

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        folder = self._checked(path or "")
        if not Path(folder).is_dir():
            return []
        found = []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                relative = Path(entry.path).relative_to(self._artifact_dir).as_posix()
                if entry.is_dir(follow_symlinks=False):
                    found.append(FileInfo(relative, True, None))
                elif entry.is_file(follow_symlinks=False) and not entry.name.startswith(".artifact.uploading."):
                    found.append(FileInfo(relative, False, entry.stat(follow_symlinks=False).st_size))
        return found

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        path = Path(self._checked(artifact_path or ""))
        if path == Path(self._artifact_dir):
            _refuse("The folder that holds the artifacts cannot be deleted itself")
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        for folder, _, files in os.walk(local_dir):
            below = os.path.normpath(Path(artifact_path or "", Path(folder).relative_to(local_dir)))
            for file in files:
                self.log_artifact(str(Path(folder, file)), below)  # type: ignore[no-untyped-call]

    def download_trace_data(self) -> dict[str, Any]:
        self._checked("traces.json")
        return super().download_trace_data()

    def _get_destination_artifact_path(
        self, artifact_file_name: str, artifact_path: str | None = None
    ) -> tuple[str, str]:
        # Checked before MLflow creates directories.
        self._checked(str(Path(artifact_path or "", Path(artifact_file_name).name)))
        destination: tuple[str, str] = super()._get_destination_artifact_path(artifact_file_name, artifact_path)
        return destination

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        shutil.copyfile(self.get_local_path(remote_file_path), local_path)

    def _checked(self, artifact_path: str) -> str:
        """The path of an artifact, which may not exist.

        Raises:
            MlflowException: it is outside of its folder, or a link.
        """
        place = Path(os.path.normpath(self._artifact_dir))
        path = Path(os.path.normpath(place / artifact_path))
        root = next((root for root in self.roots if place.is_relative_to(root)), None)
        if root is None or not path.is_relative_to(place):
            _refuse("Artifacts are served from this server's own folder alone")
        parts = path.relative_to(root).parts
        step = self.roots[-1]
        for number, part in enumerate(parts, start=1):
            step /= part
            try:
                mode = step.lstat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError):  # too long; a NUL; not UTF-8
                _refuse("No file can have this name")
            if not (stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and number == len(parts))):
                _refuse("Artifacts are files and directories: links are not followed")
        return str(step)


def _decoded(text: str) -> str:
    while (decoded := unquote(text)) != text:
        text = decoded
    return text


def _refuse(why: str) -> NoReturn:
    raise MlflowException(f"{why}.", error_code=INVALID_PARAMETER_VALUE)
