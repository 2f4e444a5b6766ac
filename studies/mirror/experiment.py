"""A study's experiment in MLflow, and its runs.

A run is known by its tags: MLflow gives it an id, but keeps no two from being made for the same trial. Where
there are several, one stays, by a rule that all mirrors follow, and the others are deleted. A run gets its final
status last: one that has it holds everything, and is never written to again.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from studies.errors import TrackingError, one_line
from studies.mirror.names import as_bytes, digest_in, experiment_name, folder, text_file
from studies.mirror.pages import PAGE_TAG
from studies.mirror.runs import KNOWN_BY, OVER, STUDY_TAG, TRIAL_TAG, Contents, Known, batches

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: Runs per page of a search.
PAGE: Final = 1000
#: Makes MLflow show its pages for training, not those for language models.
KIND: Final = "custom_model_development"
log = logging.getLogger(__name__)


class Experiment:
    """The experiment of one study, created if missing. Thread-safe if each thread writes its own runs.

    Every method may raise MLflow's own errors.

    Args:
        client: of MLflow.
        name: the study's name.
        tag: by which its runs are known.
        page: how MLflow's pages are to show it, as :func:`studies.mirror.pages.query` says.
        artifacts: where artifacts go if the experiment is to be made; ``None``: where the server says.
        beat: called after each of MLflow's answers.

    Raises:
        TrackingError: it was deleted in MLflow.
    """

    def __init__(
        self, client: MlflowClient, name: str, tag: str, page: str, artifacts: str | None, beat: Callable[[], None]
    ) -> None:
        self._client = client
        self._tag = tag
        self._beat = beat
        self.id = self._find(name, page, artifacts)

    def _find(self, study: str, page: str, artifacts: str | None) -> str:
        name = experiment_name(study)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                location = artifacts and f"{artifacts}/{folder(study)}"
                return self._client.create_experiment(name, location, {"mlflow.experimentKind": KIND, PAGE_TAG: page})
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self._client.get_experiment_by_name(name)  # another mirror created it meanwhile
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"the experiment {name!r} was deleted in MLflow: restore it with: "
                f"mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        if found.tags.get(PAGE_TAG) != page:
            self._client.set_experiment_tag(found.experiment_id, PAGE_TAG, page)
        return str(found.experiment_id)

    def runs(self, where: str = "") -> dict[str, Known]:
        """The runs by trial, and the one of the study itself. Duplicates are deleted.

        Args:
            where: a further condition, in MLflow's language.
        """
        found: dict[str, list[Run]] = {}
        for run in self._search(where):
            if run.data.tags.get(STUDY_TAG) != self._tag:
                continue  # of another study: checked here, as MLflow's filter cannot quote every name
            found.setdefault(run.data.tags.get(TRIAL_TAG, ""), []).append(run)
        kept: dict[str, Known] = {}
        for trial, runs in found.items():
            # A finished run wins, as it holds everything; else the lowest id. All mirrors choose alike.
            first, *twins = sorted(runs, key=lambda run: (run.info.status not in OVER, run.info.run_id))
            for twin in twins:
                self.delete(twin.info.run_id)
            kept[trial] = self._known(first)
        return kept

    def _search(self, where: str) -> Iterator[Run]:
        token = None
        while True:
            page = self._client.search_runs([self.id], where, ViewType.ACTIVE_ONLY, PAGE, page_token=token)
            self._beat()
            yield from page
            token = page.token
            if not token:
                return

    def _known(self, run: Run) -> Known:
        metrics: set[tuple[str, int]] = set()
        # A finished run is never written to: its history, a request per metric, is not needed.
        if run.info.status not in OVER:
            for key in run.data.metrics:
                metrics |= {(key, m.step) for m in self._client.get_metric_history(run.info.run_id, key)}
                self._beat()
        return Known(
            run_id=run.info.run_id,
            status=run.info.status,
            start_time=run.info.start_time,
            end_time=run.info.end_time,
            tags=dict(run.data.tags),
            params=dict(run.data.params),
            metrics=metrics,
        )

    def create(self, contents: Contents) -> Known:
        """Create a RUNNING run without contents; see :meth:`write`."""
        tags = {key: contents.tags[key] for key in KNOWN_BY if key in contents.tags}
        run = self._client.create_run(self.id, contents.start_time, tags, contents.name)
        self._beat()
        return self._known(run)

    def without_twins(self, created: Sequence[Known]) -> dict[str, Known]:
        """The runs of the trials of ``created``, without duplicates: another mirror may have created some as well."""
        times = [known.start_time for known in created]
        return self.runs(f"attributes.start_time >= {min(times)} and attributes.start_time <= {max(times)}")

    def is_there(self, known: Known | None) -> bool:
        """Whether a run, or for ``None`` the experiment, still exists: another mirror may have deleted it."""
        try:
            if known:
                stage = self._client.get_run(known.run_id).info.lifecycle_stage
            else:
                stage = self._client.get_experiment(self.id).lifecycle_stage
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        self._beat()
        return bool(stage == "active")

    def write(self, known: Known, contents: Contents) -> None:
        """Write the missing contents of a run. The status comes last: a run that is finished is complete."""
        # A text is written before the value that refers to it, and only where no value does: once.
        there = {digest_in(value) for value in (*known.tags.values(), *known.params.values())}
        for sha256, text in contents.texts.items():
            if sha256 not in there:
                self.attach(known, text_file(sha256), text)
        for batch in batches(contents, known):
            self._client.log_batch(known.run_id, batch.metrics, batch.params, batch.tags)
            self._beat()
            # After each batch: where a later one fails, the next attempt sends only the rest.
            known.metrics |= {(metric.key, metric.step) for metric in batch.metrics}
            known.params |= {param.key: param.value for param in batch.params}
            known.tags |= {tag.key: tag.value for tag in batch.tags}
        if (known.status, known.end_time) != (contents.status, contents.end_time):
            if contents.status in OVER:
                self._client.set_terminated(known.run_id, contents.status, contents.end_time)
            elif known.status != contents.status:
                self._client.update_run(known.run_id, contents.status)
            self._beat()
            known.status, known.end_time = contents.status, contents.end_time

    def tag(self, known: Known, key: str, value: str) -> None:
        """Set a tag, also of a finished run."""
        self._client.set_tag(known.run_id, key, value)
        self._beat()
        known.tags[key] = value

    def untag(self, known: Known, key: str) -> None:
        """Remove a tag."""
        self._client.delete_tag(known.run_id, key)
        self._beat()
        del known.tags[key]

    def attach(self, known: Known, name: str, text: str) -> None:
        """Store ``text`` as the artifact ``name`` of a run. A failing artifact store is logged: the curves go on."""
        inside, _, filename = name.rpartition("/")
        with tempfile.TemporaryDirectory() as outside:
            file = Path(outside, filename)
            file.write_bytes(as_bytes(text))
            try:
                self._client.log_artifact(known.run_id, str(file), inside or None)
            except Exception as error:  # of any library that stores artifacts
                log.warning("MLflow does not take %s as an artifact: %s", name, one_line(error)[:200])
        self._beat()

    def delete(self, run_id: str) -> None:
        """Delete a run. Idempotent: another mirror may have deleted it."""
        try:
            self._client.delete_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"):
                raise
        self._beat()
