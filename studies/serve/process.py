"""A site's process: ``python -m studies.serve.process``, started by :mod:`studies.serve.sites`.

It reads a line of JSON from its standard input, a :class:`Setup`, and serves on a socket that it inherits, until
the end of its input or a signal. ``{"event": "error", "message": …}`` on its standard output, before it exits
with 1, says why it cannot.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from studies.errors import StudyNotFound
from studies.processes import Events, wait_for_end_of_input
from studies.serve.guard import MLFLOW_CLOSED, MLFLOW_READS, MLFLOW_STREAMS, Access, Guard

DASHBOARD: Final = "optuna-dashboard"
MLFLOW: Final = "MLflow"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The settings of a site, sent to its standard input: they hold passwords and the token."""

    site: str
    descriptor: int
    """The inherited descriptor of the listening socket."""
    storage: str
    tracking: str | None
    """MLflow's database; ``None`` for the one beside the studies, created if missing."""
    home: str
    """Of Studyhall, for MLflow's artifacts."""
    access: dict[str, Any]


def main() -> int:
    """Run a site. Returns the exit status."""
    events = Events()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    warnings.filterwarnings("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends this process in order
    try:
        from studies.serve.server import serve

        setup = Setup(**json.loads(sys.stdin.readline()))
        threading.Thread(target=_end_with_parent, daemon=True).start()
        access = Access(**{**setup.access, "hosts": tuple(setup.access["hosts"])})
        serve(dashboard(setup, access) if setup.site == DASHBOARD else mlflow(setup, access), setup.descriptor)
    except Exception as error:
        events.send_error(error)
        return 1
    return 0


def dashboard(setup: Setup, access: Access) -> Guard:
    """optuna-dashboard on our storage, which reads only what has changed."""
    from a2wsgi import WSGIMiddleware
    from optuna_dashboard import wsgi

    from studies.serve.pages import Pages
    from studies.storage.postgres import PostgresStorage

    storage = PostgresStorage(setup.storage, create=False, patience=1.0)
    # An unbounded queue: a thread never waits for a slow reader of its answer.
    application: Any = WSGIMiddleware(wsgi(storage), workers=8, send_queue_size=0)
    return Guard(Pages(application, lambda name: f"/dashboard/studies/{storage.find_study(name).study_id}"), access)


def mlflow(setup: Setup, access: Access) -> Guard:
    """MLflow's server: the application of its own command."""
    from studies.mirror.server import configure, connect, folder_of, prepare_database
    from studies.storage.url import StorageURL

    root = folder_of(Path(setup.home))
    os.umask(0o077)  # uploaded artifacts must not be readable by other users
    configure()
    uri = setup.tracking or prepare_database(StorageURL.parse(setup.storage))
    client = connect(uri)  # an error must end the start, not the first request
    # The guard checks these, for both sites.
    os.environ["MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE"] = "true"
    # MLflow would otherwise fetch a list of language models from the network.
    os.environ.setdefault("MLFLOW_MODEL_CATALOG_URI", "")
    from mlflow import set_tracking_uri
    from mlflow.server import constants

    from studies.mirror.names import experiment_name
    from studies.mirror.pages import PAGE_TAG, page_of
    from studies.serve.artifacts import confine
    from studies.serve.pages import Pages, opening

    set_tracking_uri(uri)  # its model registry resolves names there
    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: uri,
        constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: str(root / "received"),
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
    }
    from mlflow.server import app as flask_app
    from mlflow.server.fastapi_app import app

    def find(study: str) -> str:
        experiment = client.get_experiment_by_name(experiment_name(study))
        if experiment is None:
            raise StudyNotFound(f"no study {study!r} in MLflow, or not yet: the mirror is seconds behind")
        return f"/{page_of(experiment.experiment_id, experiment.tags.get(PAGE_TAG, ''))}"

    confine(root)
    index = Path(flask_app.static_folder or "", "index.html")
    first = opening(index.read_text(encoding="utf-8")) if index.exists() else None
    return Guard(Pages(app, find, first), access, reads=MLFLOW_READS, closed=MLFLOW_CLOSED, streams=MLFLOW_STREAMS)


def _end_with_parent() -> None:
    wait_for_end_of_input()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
