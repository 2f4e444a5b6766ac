"""The runs of deleted studies. They are deleted as well: a new study of the same name must start with none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mlflow.entities import Run, ViewType

from studies.mirror.experiment import PAGE
from studies.mirror.names import Legal
from studies.mirror.runs import DATABASE_TAG, STUDY_TAG, TRIAL_TAG, WHOLE_STUDY, study_tag

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from studies.storage.postgres import PostgresStorage


def sweep(storage: PostgresStorage, client: MlflowClient, beat: Callable[[], None] = lambda: None) -> int:
    """Delete the runs of this database's studies that were deleted, as MLflow deletes: it can restore them.

    May raise MLflow's own errors; the next call goes on then.

    Returns:
        Of how many studies.
    """
    condition = f"tags.`{TRIAL_TAG}` = '{WHOLE_STUDY}' and tags.`{DATABASE_TAG}` = '{storage.identity}'"
    parents = list(_search(client, _experiments(client), condition, beat))
    # The database after MLflow: a study is in the database first, so a new one is never taken for deleted.
    there = {Legal().value(study_tag(name, uid)) for name, uid in storage.study_uids().items()}
    gone = [run for run in parents if run.data.tags[STUDY_TAG] not in there]
    for parent in gone:
        runs = [
            run
            for run in _search(client, [parent.info.experiment_id], "", beat)
            if run.data.tags.get(STUDY_TAG) == parent.data.tags[STUDY_TAG]
        ]
        # The parent last: an interrupted deletion finds the others by it.
        for run in sorted(runs, key=lambda run: run.info.run_id == parent.info.run_id):
            client.delete_run(run.info.run_id)
            beat()
    return len(gone)


def _experiments(client: MlflowClient) -> list[str]:
    found: list[str] = []
    token = None
    while True:
        page = client.search_experiments(max_results=PAGE, page_token=token)
        found += [experiment.experiment_id for experiment in page]
        token = page.token
        if not token:
            return found


def _search(client: MlflowClient, experiments: list[str], condition: str, beat: Callable[[], None]) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs(experiments, condition, ViewType.ACTIVE_ONLY, PAGE, page_token=token)
        beat()
        yield from page
        token = page.token
        if not token:
            return
