"""MLflow's registry: a final model as a version of a registered model, linked with its study.

The model needs nothing but its folder and the objective's package, both of which it carries.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from studies.errors import StudyhallError
from studies.finalize.final import CONFIG, ENVIRONMENT, METRICS, note, stored
from studies.mirror.server import trouble
from studies.mirror.study_mirror import StudyMirror
from studies.objective import LOADER, require_loader

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from studies.storage.postgres import PostgresStorage

#: Of those in environment.json, what may be needed to predict.
_SERVED: Final = ("torch", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A folder that :mod:`studies.finalize` wrote."""

    folder: Path
    study: str
    trial: int
    objective: str
    """Its path."""
    metrics: dict[str, float]
    at: str
    requirements: list[str]
    """Of pip."""

    @classmethod
    def read(cls, folder: Path) -> Kept:
        """Read what the folder says of itself.

        Raises:
            StudyhallError: it is none.
        """
        try:
            config, metrics, environment = (
                json.loads((folder / name).read_text(encoding="utf-8")) for name in (CONFIG, METRICS, ENVIRONMENT)
            )
            return cls(
                folder=folder,
                study=config["study"],
                trial=config["trial"],
                objective=config["spec"]["objective"]["path"],
                metrics=metrics["metrics"],
                at=metrics["at"],
                # A local label as that of torch 2.10+cu130 is not on PyPI.
                requirements=[
                    "safetensors",
                    *(f"{name}=={environment[name].partition('+')[0]}" for name in _SERVED if name in environment),
                ],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise StudyhallError(
                f"{str(folder)!r} holds no final model; name a folder that studyhall finalize wrote"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version of a registered model."""

    name: str
    version: str
    run_id: str

    @property
    def uri(self) -> str:
        """By which MLflow loads it."""
        return f"models:/{self.name}/{self.version}"


def register(
    storage: PostgresStorage,
    kept: Kept,
    name: str,
    client: MlflowClient,
    *,
    artifacts: str | None,
    allow: Sequence[str],
) -> Registered:
    """Log a final model to a run of its own below the study's, and register it.

    Args:
        storage: where the study is.
        kept: as ``finalize`` wrote it.
        name: of the registered model.
        client: of MLflow, which has answered.
        artifacts: where they go if the study's experiment is to be made; ``None``: where the server says.
        allow: whose objectives' code may run here, as ``work --allow`` says it.

    Raises:
        ObjectiveError: as :func:`studies.objective.require_loader`.
        StudyNotFound: the study is not in this storage.
        TrackingError: MLflow refuses something, or is unreachable.
    """
    record = storage.find_study(kept.study)
    module = require_loader(kept.objective, allow)
    model = getattr(module, LOADER)(str(kept.folder))
    predictions = model.predict(model.example)
    try:
        mirror = StudyMirror(storage, record, client, artifacts=artifacts)
        mirror.catch_up()
        registered = _log(kept, name, client, mirror, module, model.example, predictions)
        if (final := stored(storage, record)) and final["at"] == kept.at:
            note(storage, record, {"model": registered.uri, "run": registered.run_id})
            mirror.catch_up()
    except StudyhallError:
        raise
    except Exception as error:  # of MLflow or any library below it
        raise trouble(client, error) from error
    return registered


def _log(
    kept: Kept,
    name: str,
    client: MlflowClient,
    mirror: StudyMirror,
    module: ModuleType,
    example: Any,
    predictions: Any,
) -> Registered:
    import mlflow
    from mlflow.models import infer_signature

    package = sys.modules[module.__name__.partition(".")[0]]
    assert package.__file__ is not None  # it was imported by its path
    code = Path(package.__file__)
    mlflow.set_tracking_uri(client.tracking_uri)
    mlflow.set_registry_uri(client.tracking_uri)
    tags = {"study": kept.study, "trial_number": str(kept.trial)}
    with mlflow.start_run(
        experiment_id=mirror.experiment_id,
        run_name="final model",
        parent_run_id=mirror.run_id,
        tags={**tags, "mlflow.source.name": "studyhall", "mlflow.user": "studyhall"},
    ) as run:
        mlflow.log_metrics(kept.metrics)
        info = mlflow.pyfunc.log_model(
            name="model",
            loader_module=module.__name__,
            data_path=str(kept.folder),
            code_paths=[str(code.parent if code.name == "__init__.py" else code)],
            signature=infer_signature(example, predictions),
            input_example=example,
            pip_requirements=kept.requirements,
            registered_model_name=name,
        )
    version = str(info.registered_model_version)
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    return Registered(name=name, version=version, run_id=run.info.run_id)
