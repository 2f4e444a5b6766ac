"""Follow studies, and write what changes to MLflow.

MLflow itself is asked for what it has: at the start, and after every error, which leaves open what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

import tomli_w
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from studies.errors import StudyNotFound, TrackingError, TrackingUnreachable
from studies.finalize.final import stored
from studies.mirror.experiment import Experiment
from studies.mirror.names import Legal
from studies.mirror.pages import page_of, query
from studies.mirror.runs import (
    OVER,
    PARENT_TAG,
    REFUSED_TAG,
    TRIAL_TAG,
    WHOLE_STUDY,
    Contents,
    Known,
    milliseconds,
    of_study,
    of_trial,
    public_spec,
    study_tag,
)
from studies.mirror.server import trouble

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import StudyRecord

#: Trials that are created at a time, and then checked for duplicates.
CHUNK: Final = 100
#: Parallel requests: MLflow mostly waits for its database.
THREADS: Final = 4
#: A step before all legal ones.
BEFORE_ALL: Final = -(2**31)
SPEC_FILE: Final = "study.toml"
T = TypeVar("T")


class StudyMirror:
    """One study and its runs in MLflow.

    Args:
        storage: only read.
        record: the study.
        client: of MLflow.
        artifacts: where artifacts go if the experiment is to be made; ``None``: where the server says.
        beat: called after each of MLflow's answers.
        progress: called while trials are written, with how many of how many there are.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        record: StudyRecord,
        client: MlflowClient,
        *,
        artifacts: str | None = None,
        beat: Callable[[], None] = lambda: None,
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self.record = record
        self.refused: dict[str, TrackingError] = {}
        """What MLflow refuses, by trial, or under :data:`WHOLE_STUDY`; everything else is written."""
        self._storage = storage
        self._client = client
        self._progress = progress
        self._tag = study_tag(record.name, record.uid)
        self._names = storage.objective_names(record)
        self._is_minimized = storage.get_study_directions(record.study_id)[0] == StudyDirection.MINIMIZE
        self._query = query(Legal().key(f"final_{self._names[0]}"), ascending=self._is_minimized)
        self._open: Callable[[], Experiment] = lambda: Experiment(
            client, record.name, Legal().value(self._tag), self._query, artifacts, beat
        )
        self.page: str | None = None
        """The study's page, below MLflow's address; ``None`` before it has one."""
        self._experiment: Experiment | None = None
        self._runs: dict[str, Known] = {}  # by trial
        self._seen: dict[int, FrozenTrial] = {}

    @property
    def is_active(self) -> bool:
        """Whether a trial was unfinished at the last read."""
        return any(not trial.state.is_finished() for trial in self._seen.values())

    @property
    def count(self) -> int:
        """How many trials MLflow has."""
        return len(self._seen.keys() - self.refused_trials)

    @property
    def refused_trials(self) -> list[int]:
        """The numbers of the trials of which MLflow refuses something."""
        return sorted(int(trial) for trial in self.refused if trial != WHOLE_STUDY)

    @property
    def run_id(self) -> str:
        """The study's run. After :meth:`catch_up`."""
        return self._runs[WHOLE_STUDY].run_id

    @property
    def experiment_id(self) -> str:
        """The study's experiment. After :meth:`catch_up`."""
        assert self._experiment is not None
        return self._experiment.id

    def retry(self) -> None:
        """Let the next :meth:`catch_up` retry what MLflow refused, even if it has not changed."""
        for number in self.refused_trials:
            self._seen.pop(number, None)

    def catch_up(self) -> int:
        """Write what MLflow lacks. After any error it may be called again. What MLflow refuses of single runs is no
        error; see :attr:`refused`.

        Returns:
            How many trials had changed.

        Raises:
            StudyNotFound: the study was deleted.
            StorageUnreachable: the database is unreachable.
            TrackingError: the experiment was deleted in MLflow.
            TrackingUnreachable: MLflow is unreachable.
            MlflowException: MLflow is unreachable, or refuses the study as a whole, or another mirror deleted a run.
        """
        experiment, self._experiment = self._experiment or self._look(), None
        try:
            trials = self._storage.trials(self.record)
        except KeyError:
            raise StudyNotFound(f"study {self.record.name!r} was deleted") from None
        self._write_study(experiment, trials)
        self._adopt(experiment)
        changed = [t for t in trials if t.datetime_start and self._seen.get(t.number) is not t]
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(changed), CHUNK):
                self._write_trials(experiment, pool, changed[start : start + CHUNK])
                self._progress(min(start + CHUNK, len(changed)), len(changed))
        self._tag_refused(experiment)
        self._experiment = (
            experiment  # not reached after an error: the next call then reads everything from MLflow again
        )
        return len(changed)

    def is_settled(self) -> bool:
        """Whether MLflow has exactly the runs that were written: another mirror may have deleted or added some."""
        written = {trial: known.run_id for trial, known in self._runs.items()}
        self._experiment = self._look()
        return written == {trial: known.run_id for trial, known in self._runs.items()}

    def _look(self) -> Experiment:
        experiment = self._open()
        self.page = page_of(experiment.id, self._query)
        self._runs = experiment.runs()
        self._seen = {}
        for trial in self._storage.trials(self.record):
            known = self._runs.get(str(trial.number))
            if known is None or trial.datetime_start is None:
                continue
            if known.start_time != milliseconds(trial.datetime_start):
                # Of another trial with this number: the database was restored from a backup.
                experiment.delete(known.run_id)
                del self._runs[str(trial.number)]
            elif known.status in OVER and trial.state.is_finished():
                self._seen[trial.number] = trial
        return experiment

    def _write_study(self, experiment: Experiment, trials: Sequence[FrozenTrial]) -> None:
        now = self._storage.status(self.record)
        contents = of_study(
            self._tag,
            self.record,
            self._names,
            now,
            trials,
            database=self._storage.identity,
            is_minimized=self._is_minimized,
            final=stored(self._storage, self.record),
        )
        if WHOLE_STUDY not in self._runs:
            experiment.create(contents)
            self._runs |= experiment.runs(f"tags.`{TRIAL_TAG}` = '{WHOLE_STUDY}'")
            is_new = True
        else:
            is_new = self._runs[WHOLE_STUDY].tags.get("spec") != contents.tags.get("spec")
        if is_new and (spec := public_spec(self.record, now)):
            experiment.attach(self._runs[WHOLE_STUDY], SPEC_FILE, tomli_w.dumps(spec))
        self._unless_refused(experiment, WHOLE_STUDY, lambda: experiment.write(self._runs[WHOLE_STUDY], contents))

    def _adopt(self, experiment: Experiment) -> None:
        """Of the study's run, too, another one may be left than the one under which a trial's was made."""
        parent = self._runs[WHOLE_STUDY].run_id
        for trial, known in self._runs.items():
            if trial != WHOLE_STUDY and known.tags.get(PARENT_TAG) != parent:
                experiment.tag(known, PARENT_TAG, parent)

    def _write_trials(self, experiment: Experiment, pool: ThreadPoolExecutor, trials: Sequence[FrozenTrial]) -> None:
        attempts = self._storage.leases.attempts(self.record)
        points = self._storage.metrics.curves(trials, {t.number: self._last_step(t) for t in trials})
        parent = self._runs[WHOLE_STUDY].run_id
        contents = {
            str(t.number): of_trial(self._tag, self._names, t, attempts.get(t.number), points[t.number], parent)
            for t in trials
        }
        missing = [trial for trial in contents if trial not in self._runs]
        if missing:
            made = pool.map(lambda trial: self._create(experiment, trial, contents[trial]), missing)
            if created := [known for known in made if known]:
                found = experiment.without_twins(created)
                self._runs |= {trial: found[trial] for trial in missing if trial in found}
        there = [trial for trial in contents if trial in self._runs]
        for _ in pool.map(lambda trial: self._write(experiment, trial, contents[trial]), there):
            pass  # raises the first error
        self._seen |= {trial.number: trial for trial in trials}

    def _create(self, experiment: Experiment, trial: str, contents: Contents) -> Known | None:
        return self._unless_refused(experiment, trial, lambda: experiment.create(contents))

    def _write(self, experiment: Experiment, trial: str, contents: Contents) -> None:
        self._unless_refused(experiment, trial, lambda: experiment.write(self._runs[trial], contents))

    def _unless_refused(self, experiment: Experiment, run: str, action: Callable[[], T]) -> T | None:
        """The result of ``action`` for one run; ``None`` where MLflow refuses it twice, which is kept for others to
        tell. It is no refusal where MLflow is unreachable, or where the run was deleted meanwhile."""
        for is_last in (False, True):
            try:
                result = action()
            except Exception as error:  # of MLflow or any library below it
                told = trouble(self._client, error)
                if isinstance(told, TrackingUnreachable):
                    raise told from error
                if not experiment.is_there(self._runs.get(run)):
                    raise
                if is_last:
                    self.refused[run] = told
            else:
                self.refused.pop(run, None)
                return result
        return None

    def _tag_refused(self, experiment: Experiment) -> None:
        """List in the study's run the trials of which MLflow refuses something."""
        study, numbers = self._runs[WHOLE_STUDY], self.refused_trials
        text = ", ".join(map(str, numbers[:100])) + (f" and {len(numbers) - 100} more" if len(numbers) > 100 else "")
        if numbers and study.tags.get(REFUSED_TAG) != text:
            experiment.tag(study, REFUSED_TAG, text)
        elif not numbers and REFUSED_TAG in study.tags:
            experiment.untag(study, REFUSED_TAG)

    def _last_step(self, trial: FrozenTrial) -> int:
        """The steps of running trials that need not be read again. A finished trial is read once more as a whole."""
        before = self._seen.get(trial.number)
        if before is None or trial.state.is_finished() or str(trial.number) in self.refused:
            return BEFORE_ALL
        return max(before.intermediate_values, default=BEFORE_ALL + 1) - 1
