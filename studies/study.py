"""A study in Python: created, run, steered and read as by the command line.

``Study.of("train.py:objective", direction="maximize", trials=100).run(workers=2).best.params``
"""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from studies import lifecycle, warm_start
from studies.errors import ObjectiveError, StorageUnreachable
from studies.progress import Progress
from studies.reproduce import Reproduction, reproduce, require_reproducible
from studies.session import (
    Session,
    build_objective,
    find_scripts,
    permissions,
    require_runnable,
    require_success,
    waiting_out,
)
from studies.space import change_space
from studies.spec.script import Script
from studies.spec.source import put, read_target, take_script
from studies.spec.study import StudySpec
from studies.storage import chosen_home, open_storage
from studies.storage.columns import columns_of
from studies.storage.reader import StudyReader
from studies.values import to_text

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    from optuna.trial import FrozenTrial

    from studies.storage.postgres import PostgresStorage
    from studies.storage.records import Status, StudyRecord


class Study:
    """One study of a storage. Make it by :meth:`create`, :meth:`of` or :meth:`open`.

    A context manager: its end closes the storage if the study opened it. All that the command line refuses raises
    the same error here, of the tree in :mod:`studies.errors`.
    """

    def __init__(
        self, storage: PostgresStorage, record: StudyRecord, *, script: Script | None = None, owns: bool = False
    ) -> None:
        self.storage = storage
        self._record = record
        self._script = script
        self._owns = owns
        # Naming an objective in Python allows it, like typing it after `studyhall run`.
        self._chosen: tuple[str, ...] = ()

    @classmethod
    def open(cls, name: str, storage: PostgresStorage | str | None = None) -> Self:
        """The study ``name``.

        Args:
            name: of the study.
            storage: where it is, as an object or a URL; default: as :func:`studies.open_storage` chooses.

        Raises:
            StudyNotFound: there is none of that name.
            StorageError: the storage cannot be opened.
        """
        opened, owns = _open(storage)
        try:
            return cls(opened, opened.find_study(name), owns=owns)
        except BaseException:
            _close(opened, owns)
            raise

    @classmethod
    def create(
        cls, source: str | Path | Mapping[str, Any], storage: PostgresStorage | str | None = None, **overrides: Any
    ) -> Self:
        """Create the study of a spec, or join an existing one with the same spec.

        Args:
            source: a study file (``my.toml``), a preset, a callable (``train.py:objective``), or what a study file
                holds, as a dict.
            storage: as :meth:`open` takes it.
            overrides: keys of a study file, tables as dicts (``sampler={"name": "random"}``); and ``trials``, which
                is short for ``budget={"trials": …}``.

        Raises:
            SpecError: something in it is not legal.
            SpecMismatch: the study exists with another spec.
            ObjectiveError: a script cannot be read.
            StorageError: the storage cannot be opened.
        """

        # A copy: the overrides change its tables in place.
        data = deepcopy(dict(source)) if isinstance(source, Mapping) else read_target(str(source))
        if "trials" in overrides:
            overrides["budget"] = {**overrides.get("budget", {}), "trials": overrides.pop("trials")}
        for key, value in overrides.items():
            if isinstance(value, Mapping) and isinstance(data.get(key), dict):
                for part in sorted(value, key=lambda part: part != "name"):  # name first: it resets the options
                    put(data[key], (key, part), value[part])
            else:
                put(data, (key,), value)
        script = take_script(data)
        spec = StudySpec.from_dict(data, "spec" if isinstance(source, Mapping) else str(source))
        opened, owns = _open(storage)
        try:
            record, _ = opened.create_study(spec)
        except BaseException:
            _close(opened, owns)
            raise
        study = cls(opened, record, script=script, owns=owns)
        study._chosen = tuple(permissions(spec, script))
        return study

    @classmethod
    def of(
        cls,
        objective: Callable[..., Any] | str,
        *,
        space: Mapping[str, Any] | None = None,
        trials: int = 100,
        storage: PostgresStorage | str | None = None,
        **overrides: Any,
    ) -> Self:
        """A study of an objective: a function or class of a file or module, or its path as a text.

        Args:
            objective: what takes a trial. Workers are other processes and import it, so it must be in a file: one
                that is defined in a notebook's cell is refused with the way out.
            space: parameters as in a study file's ``[space]``; default: the objective suggests them.
            trials: the budget.
            storage: as :meth:`open` takes it.
            overrides: as :meth:`create` takes them, such as ``name`` and ``direction``.

        Raises:
            ObjectiveError: no worker could import it.
            SpecError, SpecMismatch, StorageError: as :meth:`create`.
        """
        if space is not None:
            overrides["space"] = dict(space)
        return cls.create(_path_of(objective), storage, trials=trials, **overrides)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        now = self.status
        return f"<Study {self.name!r}: {now.done} done>"

    def close(self) -> None:
        """Close the storage, if this study opened it."""
        _close(self.storage, self._owns)

    @property
    def name(self) -> str:
        """Of the study."""
        return self._record.name

    @property
    def spec(self) -> StudySpec | None:
        """The spec; ``None`` if stock Optuna made the study."""
        return self._record.spec

    @property
    def status(self) -> Status:
        """The current status."""
        return self.storage.status(self._record)

    @property
    def optuna(self) -> optuna.Study:
        """The study as an Optuna object, for Optuna's visualizations and importances."""
        import optuna

        return optuna.load_study(study_name=self.name, storage=self.storage)

    @property
    def best(self) -> FrozenTrial:
        """The best trial: ``params``, ``value``, ``number``.

        Raises:
            NothingFinished: no trial is complete.
            StorageError: the study has several objectives; see :attr:`pareto`.
        """
        return self.storage.best(self._record)

    @property
    def pareto(self) -> list[FrozenTrial]:
        """The Pareto front, by number: the trials that keep the constraints and that no other one beats in all
        objectives. Empty where no such trial is complete."""
        return self.storage.front(self._record)

    @property
    def trials(self) -> Trials:
        """All current trials, by number."""
        return Trials(self.storage, self._record)

    def curves(self, *, points: int = 1000) -> pd.DataFrame:
        """The reports and metrics of all trials: a row for each step and metric.

        Args:
            points: at most so many of each line; of longer ones some are left out evenly.

        Returns:
            Columns ``trial``, ``step``, ``metric``, ``value``.
        """
        import pandas as pd

        reader = StudyReader(self.storage, self._record)
        outlines = reader.outlines()
        curves = reader.curves(outlines, points)
        rows = [(number, point.step, point.name, point.value) for number, line in curves.items() for point in line]
        # What trials report without a name is the objective, unless they report that by its name as well.
        metric = self.storage.objective_names(self._record)[0]
        named = {number for number, line in curves.items() if any(point.name == metric for point in line)}
        plain = [trial for trial in outlines if trial.intermediate_values and trial.number not in named]
        for trial in reader.whole(plain):
            reports = sorted(trial.intermediate_values.items())
            every = math.ceil(len(reports) / points)
            rows += [(trial.number, step, metric, value) for step, value in reports[::-1][::every]]
        return pd.DataFrame(sorted(rows, key=lambda row: row[:3]), columns=["trial", "step", "metric", "value"])

    def run(self, *, progress: bool = True, **how: Any) -> Self:
        """Run workers on this machine until the budget is spent; Ctrl-C requeues the running trials.

        Args:
            progress: show it on standard error.
            how: as :meth:`start` takes it.

        Raises:
            StudyhallError: as :meth:`start` and :meth:`Running.wait`.
        """
        if not self.status.ended:
            with self.start(progress=progress, **how) as running:
                running.wait()
        return self

    def start(
        self,
        *,
        workers: int | None = None,
        script: str | None = None,
        allow: Sequence[str] = (),
        data_dir: str | Path | None = None,
        lease: float = 30.0,
        progress: bool = False,
    ) -> Running:
        """Start workers on this machine, and return once they run trials.

        Args:
            workers: how many; default: one per GPU, else per core.
            script: this machine's copy of the study's script, ``train.py:objective``, where it was opened by name.
            allow: objectives that the study may run beside ``objectives.*``, as ``work --allow`` says it.
            data_dir: where this machine keeps data sets.
            lease: seconds for which a trial stays with a worker that is silent.
            progress: show it on standard error.

        Raises:
            ObjectiveError: the objective is not allowed here, does not import, or refuses its arguments.
            CheckpointError: checkpoints cannot be kept where the study says.
            WorkerError: the workers die while they start.
            StudyhallError: stock Optuna made the study.
        """

        used = Script.read(script) if script else self._script
        folder = Path(data_dir).absolute() if data_dir else chosen_home() / "data"
        allowed = (*self._chosen, *allow)
        found = find_scripts([self._record], [used] if used else [])
        spec = require_runnable(self._record, allowed, folder, has_script=bool(found))
        # Without progress as well: its lines are what the workers write.
        shown = Progress()
        session = Session(
            self.storage,
            [(spec, 1.0)],
            workers=workers,
            scripts=found,
            allow=allowed,
            data_dir=folder,
            lease_seconds=lease,
            output=shown.relay,
        )
        return Running(self, session, shown if progress else None)

    def pause(self) -> None:
        """Pause: running trials are requeued at their next step, and workers wait."""

        lifecycle.pause(self.storage, self._record)

    def resume(self) -> None:
        """Continue after :meth:`pause` or :meth:`stop`."""

        lifecycle.resume(self.storage, self._record)

    def stop(self) -> None:
        """Stop: running trials are requeued at their next step, and the workers exit on every machine."""

        lifecycle.stop(self.storage, self._record)

    def cancel(self, number: int) -> None:
        """End a waiting or running trial: it becomes FAIL, and counts neither as finished nor as a failure."""

        lifecycle.cancel(self.storage, self._record, number)

    def enqueue(self, **params: Any) -> int:
        """Run a trial with these parameters next; missing ones are sampled.

        Returns:
            Its number.

        Raises:
            SpecError: a parameter is not one of the study's space.
            StorageError: the study has ended.
        """

        texts = [f"{name}={to_text(value)}" for name, value in params.items()]
        return lifecycle.enqueue(self.storage, self._record, texts).number

    def reproduce(
        self,
        number: int,
        *,
        device: str = "cpu",
        script: str | None = None,
        allow: Sequence[str] = (),
        data_dir: str | Path | None = None,
    ) -> Reproduction:
        """Run a COMPLETE or PRUNED trial again in this process, and compare. Writes nothing to the study.

        Args:
            number: of the trial.
            device: the PyTorch name of the device.
            script: as :meth:`start` takes it; likewise ``allow`` and ``data_dir``.

        Raises:
            TrialNotFound: there is no such trial.
            StudyhallError: the trial has no result.
            ObjectiveError: the objective cannot be built here, or raises now.
        """
        trial = self.storage.trial(self._record, number)
        require_reproducible(self._record, trial)
        used = Script.read(script) if script else self._script
        folder = Path(data_dir).absolute() if data_dir else chosen_home() / "data"
        objective = build_objective(
            self._record, [used] if used else [], allow=(*self._chosen, *allow), data_dir=folder
        )
        return reproduce(self.storage, self._record, trial, objective, device=device)

    def change_space(self, *changes: str) -> None:
        """Change what the study samples, as ``studyhall space`` does: ``study.change_space("lr.high=0.3")``.

        Raises:
            SpecError: a change is not legal, or the sampler cannot follow one.
            StudyBusy: a running or waiting trial would be illegal.
            StorageError: stock Optuna made the study.
        """
        change_space(self.storage, self._record, changes)
        self._record = self.storage.find_study(self.name)

    def enqueue_top(self, other: str, top: int = 1) -> list[int]:
        """Run the best trials of another study next, as far as this one's space has their parameters.

        Returns:
            The new numbers.

        Raises:
            StudyNotFound: there is no study ``other``.
            NothingFinished: it has no complete trial that keeps its constraints.
            SpecError: none of its best trials has a parameter of the space.
            StorageError: the study has ended.
        """
        return [copied.enqueued.number for copied in warm_start.enqueue_top(self.storage, self._record, other, top)]

    def warm_start(self, *others: str) -> int:
        """Let the sampler learn from trials of other studies, which count toward no budget.

        Workers follow when they start.

        Warns where the other study has another objective or other data: its values are taken as they are.

        Returns:
            How many trials there are.

        Raises:
            StudyNotFound: one of ``others`` does not exist.
            SpecError: the spaces do not overlap, the objectives differ, or the sampler does not learn from them.
            StorageError: stock Optuna made the study.
        """
        spec = self._record.require_spec("nobody knows its space")
        found = warm_start.collect(self.storage, spec, others)
        self.storage.evidence.add(self._record, found)
        for line in warm_start.doubts(self.storage, self._record, others):
            warnings.warn(line, stacklevel=2)
        return len(found)

    def retry(self, number: int) -> int:
        """Enqueue the parameters of a failed trial again; returns the new number."""

        return lifecycle.retry(self.storage, self._record, number)


class Trials(Sequence["FrozenTrial"]):
    """The trials of a study at one moment, by number."""

    def __init__(self, storage: PostgresStorage, record: StudyRecord) -> None:
        self._storage = storage
        self._record = record
        self._trials = storage.trials(record)

    def __len__(self) -> int:
        return len(self._trials)

    def __getitem__(self, place: Any) -> Any:
        return self._trials[place]

    def __iter__(self) -> Iterator[FrozenTrial]:
        return iter(self._trials)

    def to_pandas(self) -> pd.DataFrame:
        """A row for each trial, with the columns of ``studyhall trials NAME --format csv``."""
        import pandas as pd

        reader = StudyReader(self._storage, self._record)
        columns = columns_of(reader, self._storage.objective_names(self._record))
        rows = [row for page in reader.pages() for row in page]
        return pd.DataFrame({column.name: [column.cell(row) for row in rows] for column in columns})


class Running:
    """Workers that run trials of a study in the background. A context manager: its end stops them in order."""

    def __init__(self, study: Study, session: Session, progress: Progress | None) -> None:
        self._study = study
        self._session = session
        self._progress = progress
        self._stop = threading.Event()
        self._error: BaseException | None = None
        # Where one of these fails, the stack ends the processes that were started.
        with ExitStack() as stack:
            stack.enter_context(session)
            session.prepare()
            session.join()
            session.begin()
            self._stack = stack.pop_all()
        self._thread = threading.Thread(target=self._watch, name=f"studyhall {study.name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_alive(self) -> bool:
        """Whether workers are running."""
        return self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the study is over. Ctrl-C stops the workers in order, and is raised again.

        Args:
            timeout: seconds to wait at most.

        Returns:
            Whether the workers have ended.

        Raises:
            StudyhallError: too many trials failed, or the workers are gone before the study is over.
        """
        try:
            self._thread.join(timeout)
        except KeyboardInterrupt:
            self.stop()
            raise
        if self._thread.is_alive():
            return False
        if self._error:
            raise self._error
        return True

    def stop(self) -> None:
        """Ask the workers to requeue their trials at the next step, and wait for their exit."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:

        try:
            with self._stack, self._progress or nullcontext():
                is_stopping = False
                while self._session.workers:
                    # Here and not in stop(): only this thread calls the session.
                    if self._stop.is_set() and not is_stopping:
                        is_stopping = True
                        self._session.stop()
                    try:
                        studies = self._session.poll()
                        if self._progress:
                            self._progress.update(studies)
                    except StorageUnreachable as error:
                        self._unreachable(error)
                    self._session.wait()
                waiting_out(self._study.storage, self._require_success, self._unreachable)
        except BaseException as error:  # raised again by wait()
            self._error = error

    def _unreachable(self, error: StorageUnreachable) -> None:
        if self._progress:
            self._progress.unreachable(error)

    def _require_success(self) -> None:
        # Asked again during an outage, which stop() does not wait for.
        if not self._stop.is_set():
            require_success(self._study.storage, self._study._record, self._study.status)


def _open(storage: PostgresStorage | str | None) -> tuple[PostgresStorage, bool]:
    """The storage, and whether this call opened it, and the study must close it."""

    return (open_storage(storage), True) if storage is None or isinstance(storage, str) else (storage, False)


def _close(storage: PostgresStorage, owns: bool) -> None:
    if owns:
        storage.close()


def _path_of(objective: Callable[..., Any] | str) -> str:
    """The path by which workers import an objective.

    Raises:
        ObjectiveError: it has none.
    """
    if isinstance(objective, str):
        return objective
    name, module = (getattr(objective, field, "") for field in ("__qualname__", "__module__"))
    if not name or "<" in name:
        raise ObjectiveError(
            f"{objective!r} has no name that a worker could import; give a function or class that stands at the top "
            'of a file, or its path: Study.of("train.py:objective")'
        )
    file = getattr(sys.modules.get(module), "__file__", None)
    if module == "__main__" and not file:
        raise ObjectiveError(
            f"{name} is defined in a notebook or an interactive session, and workers are other processes, which "
            f"cannot import it; put %%writefile train.py on the first line of its cell, run the cell, "
            f'and give: Study.of("train.py:{name}")'
        )
    # A module without a package is the user's own file: as a script its content is stored with the study.
    is_script = file and ("." not in module) and "site-packages" not in file
    return f"{file}:{name}" if is_script else f"{module}:{name}"
