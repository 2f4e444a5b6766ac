"""The multilayer perceptron: an objective to tune, one trial at a time or many in one program."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from objectives import memory
from objectives.costs import COSTS, costs
from objectives.data import ROLES, TASKS, VALIDATION_SHARE, Dataset, Part, Role, load
from objectives.hyperparameters import METRICS, MINIMIZED, Hyperparameters
from objectives.member import Examples, Member, Task
from objectives.model import load_model, save_model
from objectives.pool import OneTrial, Pool, Report, Result, Tick, Training, Trial, Trials
from objectives.profiling import STEPS, profiled
from objectives.randomness import MEMBER, seed_of
from objectives.states import StateError

#: By which MLflow loads a registered model.
_load_pyfunc = load_model

__all__ = ["MLP", "Hyperparameters", "Report", "Result", "StateError", "Trial", "Trials", "load_model"]

#: On a CPU the slots of a worker take turns, an epoch each. More of them only make reports fewer and larger, which is
#: worth something where an epoch takes less than a few milliseconds; with fewer each trial learns from more finished
#: ones, and is pruned by them. So many examples of all slots are enough for a report:
CPU_TICK_EXAMPLES = 2_000
MAX_CPU_SLOTS = 4
#: On a GPU, as long as its memory lasts.
GPU_SLOTS = 32


class MLP:
    """The objective: a metric of the validation data after ``epochs`` epochs of training a perceptron.

    The last epoch's, not the best one's: the maximum over epochs is an optimistic estimate, the more so
    the longer and noisier a trial, and is not what retraining would give. (With the hyperparameter ``patience`` it is
    the best one's, whose weights are kept.) One epoch is one step, counted from 1. The test data are not looked at.

    A trial goes on from its checkpoint, on a CPU with the same bits as if it had never been left. An
    instance keeps nothing of a trial: its tensors go when its call ends, be it for want of memory.

    Args:
        dataset: a name or file, see :func:`objectives.data.load`.
        epochs: of each trial.
        target: the column of a table with the labels or numbers.
        columns: roles of its other columns, ``feature`` or ``ignore``; those without are told by what is
            in them.
        split_seed: of the split into training, validation and test data, and of the folds.
        validation: the share of the data, without the test data, that is for validation.
        task: ``classification`` or ``regression``; by default classification, unless the target looks like numbers,
            which is refused.
        metric: the trial's value; by default accuracy, or the RMSE in the target's unit. A list makes a value of each,
            of several objectives; the first is a metric of the validation data, the others may be costs, see
            :mod:`objectives.costs`.
        folds: above 1, each trial is trained once per fold of training and validation data; its value is the mean.
        seeds: likewise, with so many seeds.
        fixed: hyperparameters of all trials, which the study does not sample.
        split: of a table or ``.npz``: ``{ by = "COLUMN" }`` keeps groups whole, ``{ on = "COLUMN" }`` the order of
            time.
        scaling: of numbers, ``standard`` or, for heavy tails, ``quantile``.
        data_dir: where this machine keeps data sets; a worker gives it.

    Raises:
        DataError: the data cannot be had or used.
        ValueError: an argument is not legal.
    """

    #: The names that a study's space may use.
    parameters = frozenset(field.name for field in dataclasses.fields(Hyperparameters))

    def __init__(
        self,
        dataset: str,
        epochs: int = 20,
        target: str | None = None,
        split_seed: int = 0,
        validation: float = VALIDATION_SHARE,
        columns: Mapping[str, Role] | None = None,
        task: str | None = None,
        metric: str | list[str] | None = None,
        folds: int = 1,
        seeds: int = 1,
        fixed: Mapping[str, Any] | None = None,
        split: Mapping[str, Any] | None = None,
        scaling: str = "standard",
        *,
        data_dir: str | Path,
    ) -> None:
        if not isinstance(dataset, str):
            raise ValueError(f"dataset = {dataset!r}; it must be a name or a path")
        for name, count in (("epochs", epochs), ("folds", folds), ("seeds", seeds)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError(f"{name} = {count!r}; it must be a whole number above 0")
        if not isinstance(split_seed, int) or not 0 <= split_seed < 2**32:
            raise ValueError(f"split_seed = {split_seed!r}; it must be a whole number from 0 to 2**32 - 1")
        if not isinstance(validation, float) or not 0 < validation < 1:
            raise ValueError(f"validation = {validation!r}; it must be a number between 0 and 1, such as 0.2")
        if target is not None and not isinstance(target, str):
            raise ValueError(f"target = {target!r}; it must be the name of a column")
        if task not in (None, *TASKS):
            raise ValueError(f"task = {task!r}; it must be one of {', '.join(TASKS)}")
        _check_roles(columns)
        self.epochs, self._split_seed, self._folds, self._seeds = epochs, split_seed, folds, seeds
        self._fixed = _checked_fixed(fixed)
        self._dataset = dataset
        self._data = load(
            dataset,
            data_dir=Path(data_dir),
            target=target,
            columns=columns,
            split_seed=split_seed,
            validation=validation,
            task=task,
            split=split,
            scaling=scaling,
        )
        self._metric, *self._others = _checked_metrics(metric, self._data.task)
        self._task = Task(n_features=self._data.n_features, classes=self._data.classes, unit=self._data.target_std)
        self._check_folds()
        self.check_params({})
        self._slots: dict[int, int] = {}
        self._on_device: dict[str, Dataset] = {}
        self._both: dict[str, Part] = {}

    @property
    def direction(self) -> str | list[str]:
        """``minimize`` or ``maximize``, as the metric is better; of several metrics one for each."""
        minimized = MINIMIZED.union(COSTS)
        found = ["minimize" if name in minimized else "maximize" for name in (self._metric, *self._others)]
        return found if self._others else found[0]

    @property
    def metrics(self) -> frozenset[str]:
        """The names that a trial reports; a study's constraints may be on them."""
        trained = ("loss", "accuracy" if self._data.classes else "rmse")
        validated = [f"val_{name}" for name in METRICS[self._data.task]]
        return frozenset([*(f"train_{name}" for name in trained), *validated, "scheduled_lr", *COSTS])

    @property
    def fingerprint(self) -> dict[str, str]:
        """The SHA-256 of the data set's content by its name, in hexadecimal; see :class:`objectives.data.Dataset`."""
        return {Path(self._dataset).name: self._data.fingerprint}

    def check_params(self, params: Mapping[str, Any]) -> None:
        """Raise :exc:`ValueError` where no trial can have these hyperparameters, be they some or all."""
        hyperparameters = self.hyperparameters(params)
        if not torch.cuda.is_available():  # a GPU's memory is not this machine's
            try:
                memory.check(hyperparameters, self._shape, self._folds * self._seeds, memory.total())
            except torch.OutOfMemoryError as error:
                raise ValueError(str(error)) from None

    def _check_folds(self) -> None:
        most, why = self._data.most_folds()
        if self._folds > most:
            raise ValueError(f"folds = {self._folds}; at most {most} are possible: {why}")

    def __call__(self, trial: Any) -> float | list[float]:
        """Train with the trial's parameters; returns its value, or one for each of several metrics.

        Raises:
            StateError: the trial's checkpoint is damaged, or not of these parameters.
            Diverged: its loss is no longer finite.
        """
        source = OneTrial(trial)
        self._pool(source, 1).run()
        result, source.result = source.result, None
        assert result is not None
        for name, value in result.attributes.items():
            trial.set_user_attr(name, value)
        try:
            if result.error is not None:
                raise result.error
        finally:
            # What is raised leads to this frame; if this frame led to it, both would stay until a collection.
            value, state = result.value, result.state
            del result, source
        if state == "pruned":
            raise trial.Pruned
        if state == "left" or value is None:
            raise trial.Interrupted
        return value

    def slots(self, device: str, wanted: int | None = None) -> int:
        """How many trials to train side by side on a device: as many as are ``wanted``, or as serve best.

        On a CPU no more than fit into the memory; on a GPU the pool halves them where it turns out too small.
        """
        if device != "cpu":
            return wanted or GPU_SLOTS
        members = self._folds * self._seeds
        best = max(1, min(MAX_CPU_SLOTS, CPU_TICK_EXAMPLES // (len(self._data.train) * members)))
        wanted = wanted or best
        if wanted not in self._slots:  # asked often; what fits is said once
            self._slots[wanted] = memory.most_slots(self.hyperparameters({}), self._shape, members, wanted)
        return self._slots[wanted]

    def train(self, trials: Trials, slots: int | None = None, *, device: str = "cpu") -> None:
        """Train trials until there are no more; see :mod:`objectives.pool`.

        Args:
            trials: where they come from.
            slots: how many side by side; by default as :meth:`slots` says.
            device: of all of them.
        """
        members = self._folds * self._seeds
        self._pool(trials, (slots or self.slots(device)) * members, stacked=_is_stacked(device)).run()

    def curves(
        self, params: Mapping[str, Any], *, seed: int = 0, device: str = "cpu", profile: Path | None = None
    ) -> Iterator[dict[str, float]]:
        """Train one configuration without a study: the metrics of each epoch, as they would be reported.

        Args:
            params: hyperparameters; the others are the fixed ones, or have their defaults.
            seed: of weights, dropout and order.
            device: the PyTorch name of the device.
            profile: a folder that gets ``table.txt`` and ``trace.json`` of the first steps of the second epoch, in
                which everything is warm; of the first epoch where it is the only one.

        Raises:
            ValueError: a parameter is not legal.
            Diverged: the loss is no longer finite.
        """
        training = self.training(self.hyperparameters(params), seed, device)
        tick = Tick(stacked=_is_stacked(device))
        profiled_epoch = None if profile is None else min(1, self.epochs - 1)
        while not training.is_over:
            if profile is not None and training.epoch == profiled_epoch:
                with profiled(profile, device):
                    _run_epoch(tick, training, most=STEPS)
            _run_epoch(tick, training)
            yield training.end_epoch()

    def n_parameters(self, params: Mapping[str, Any]) -> int:
        """How many weights and biases a model with these hyperparameters has."""
        hyperparameters, task = self.hyperparameters(params), self._task
        return int(costs(hyperparameters, task.n_features, task.n_outputs, "cpu", timed=False)["parameters"])

    def finalize(
        self,
        params: Mapping[str, Any],
        *,
        seed: int,
        device: str,
        directory: Path,
        progress: Callable[[int, int], None],
        ensemble: int = 1,
        checkpoint: Path | None = None,
    ) -> dict[str, float]:
        """Retrain on training and validation data, look at the test data once, and keep the model.

        With ``patience`` the validation data are left out, to stop on them as the trial did.

        Args:
            params: the hyperparameters.
            seed: of weights, dropout and order.
            device: the PyTorch name of the device.
            directory: gets what :func:`objectives.model.load_model` reads, ``test.json``, ``curves.csv`` and
                ``README.md``.
            progress: is called with (epochs done, epochs in all).
            ensemble: how many models to train, with seeds that come from ``seed``; what they predict is averaged.
            checkpoint: a file to keep the state in, and to go on from if it is there.

        Returns:
            Of the test data every metric (``test_accuracy``, …), the ends of the confidence interval of the trials'
            one, and of classes the calibration error; of the training data the means over the models.
        """
        # Of a final model alone: a worker does not wait for these imports.
        from objectives import card, evaluation
        from objectives.retraining import retrain

        hyperparameters = self.hyperparameters(params)
        data = self._data_on(device)
        stops = hyperparameters.patience is not None
        train = Examples(part=data.train if stops else self._both_on(device))
        validation = Examples(part=data.validation) if stops else None

        def begin() -> Training:
            members = [
                self._member(hyperparameters, train, validation, member_seed, _pad(device))
                for member_seed in self._member_seeds(seed, ensemble)
            ]
            return Training(members, hyperparameters, metric=self._metric, epochs=self.epochs)

        training, curves = retrain(
            begin,
            partial(_run_epoch, Tick(stacked=_is_stacked(device))),
            lambda done: progress(done, self.epochs),
            checkpoint,
        )
        members = training.members
        trained = [member.best.metrics if member.best else member.metrics for member in members]
        for member in members:
            member.take_best()
        tensors = [{name: tensor.cpu() for name, tensor in member.tensors().items()} for member in members]
        model = save_model(tensors, hyperparameters, self._data, directory)
        test = self._data.test
        outputs_NC = model.outputs(test)
        metrics, details = evaluation.evaluate(outputs_NC, test.y_N, self._task, self._metric)
        card.describe(directory, model, hyperparameters, details, curves, examples=len(train))
        return {f"test_{name}": value for name, value in metrics.items()} | {
            name: statistics.fmean(of[name] for of in trained) for name in trained[0] if name.startswith("train_")
        }

    def _pool(self, trials: Trials, slots: int, *, stacked: bool = False) -> Pool:
        return Pool(trials, slots, self._begin, stacked=stacked)

    @property
    def _shape(self) -> memory.Shape:
        train, validation = len(self._data.train), len(self._data.validation)
        if self._folds > 1:
            both = train + validation
            validation = both // self._folds
            train = both - validation
        are_bytes = self._data.train.stored_NF.dtype == torch.uint8
        return memory.Shape(task=self._task, n_train=train, n_validation=validation, are_bytes=are_bytes)

    def _begin(self, trial: Any, promised: int) -> Training:
        if not trial.params and not self._fixed:
            self._suggest(trial)
        hyperparameters = self.hyperparameters(trial.params)
        training = self.training(hyperparameters, trial.seed, trial.device, trial=trial, promised=promised)
        saved = trial.restore()
        if saved is not None:
            training.restore(saved.state)
        return training

    def _suggest(self, trial: Trial) -> None:
        """The space of a study that has none."""
        trial.suggest_int("width", 32, 512, log=True)
        trial.suggest_float("dropout", 0.0, 0.6)
        trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True)
        trial.suggest_float("lr", 1e-4, 1e-1, log=True)

    def hyperparameters(self, params: Mapping[str, Any]) -> Hyperparameters:
        """The fixed ones and these; raises :exc:`ValueError` where one is not legal, or not for these data."""
        twice = [name for name in params if name in self._fixed]
        if twice:
            raise ValueError(f"{twice[0]} is both sampled and in objective.args.fixed; leave it out in one of them")
        hyperparameters = Hyperparameters(**{**self._fixed, **params})
        hyperparameters.check_for(self._data)
        return hyperparameters

    def training(
        self,
        hyperparameters: Hyperparameters,
        seed: int,
        device: str,
        *,
        trial: Any = None,
        pad: Callable[[int], int] | None = None,
        promised: int = 0,
    ) -> Training:
        """The training of one trial: a member for each seed and fold.

        Args:
            hyperparameters: its.
            seed: its.
            device: to train on.
            trial: ``None`` to train without one.
            pad: what a width becomes; by default a bucket's on a GPU, and itself on a CPU.
            promised: bytes of the free memory that other trainings are about to take.

        Raises:
            torch.OutOfMemoryError: it does not fit into the memory of a CPU; on a GPU that is raised in training.
        """
        needed = 0
        if device == "cpu":
            needed = memory.check(
                hyperparameters, self._shape, self._folds * self._seeds, memory.available() - promised
            )
        members = [
            self._member(hyperparameters, train, validation, member_seed, pad or _pad(device))
            for member_seed in self._member_seeds(seed, self._seeds)
            for train, validation in self._folded(device)
        ]
        named = [name if name in COSTS else f"val_{name}" for name in (self._metric, *self._others)]
        return Training(
            members,
            hyperparameters,
            metric=self._metric,
            epochs=self.epochs,
            trial=trial,
            needed=needed,
            values=named if self._others else (),
            costs=dict if trial is None else partial(self._costs, hyperparameters, device, trial),
        )

    def _costs(self, hyperparameters: Hyperparameters, device: str, trial: Any) -> dict[str, float]:
        # The one number of a trial that is not a function of its seed: measured only where the study goes by it.
        timed = "latency_ms" in {*self._others, *getattr(trial, "constrained", ())}
        outputs = len(self._data.classes) or 1
        return costs(hyperparameters, self._data.n_features, outputs, device, timed=timed)

    @staticmethod
    def _member_seeds(seed: int, count: int) -> list[int]:
        """The seed itself, and further ones that come from it."""
        return [seed, *(seed_of(seed, i, MEMBER) for i in range(1, count))]

    def _member(
        self,
        hyperparameters: Hyperparameters,
        train: Examples,
        validation: Examples | None,
        seed: int,
        pad: Callable[[int], int],
    ) -> Member:
        return Member(
            hyperparameters,
            self._task,
            train,
            validation,
            epochs=self.epochs,
            seed=seed,
            metrics=self._reported(hyperparameters),
            pad=pad,
        )

    def _reported(self, hyperparameters: Hyperparameters) -> frozenset[str]:
        """Metrics of the validation data that are told of each epoch."""
        if not self._data.classes:
            return frozenset(METRICS["regression"])
        others = set(self._others).difference(COSTS)
        return frozenset({"loss", "accuracy", self._metric, hyperparameters.monitor, *others})

    def _folded(self, device: str) -> list[tuple[Examples, Examples]]:
        """(training, validation) examples of each fold."""
        if self._folds == 1:
            data = self._data_on(device)
            return [(Examples(part=data.train), Examples(part=data.validation))]
        part = self._both_on(device)
        return [
            (
                Examples(part=part, rows_N=torch.from_numpy(train_N).to(device)),
                Examples(part=part, rows_N=torch.from_numpy(validation_N).to(device)),
            )
            for train_N, validation_N in self._fold_rows
        ]

    @cached_property
    def _fold_rows(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return self._data.folds(self._folds, self._split_seed)

    def _both_on(self, device: str) -> Part:
        """Training and validation data in one part."""
        if device not in self._both:
            data = self._data_on(device)
            self._both[device] = data.train.joined(data.validation)
        return self._both[device]

    def _data_on(self, device: str) -> Dataset:
        """The data on ``device``, moved there once."""
        if device not in self._on_device:
            self._on_device[device] = self._data.to(torch.device(device))
        return self._on_device[device]


def _run_epoch(tick: Tick, training: Training, *, most: int | None = None) -> None:
    """Train to the end of the epoch; or ``most`` more steps of it, and the next call goes on from there."""
    steps = itertools.count()
    if groups := tick.groups([training]):
        for group in groups:
            tick.run(group, stop=lambda: most is not None and next(steps) >= most)
        tick.end()


def _is_stacked(device: str) -> bool:
    """Whether members train in step there: what fills a GPU costs a CPU its cache, and padding."""
    return device != "cpu"


def _pad(device: str) -> Callable[[int], int]:
    return _bucket if _is_stacked(device) else lambda width: width


def _bucket(width: int) -> int:
    """What a width is padded to on a GPU, so that trials of many widths share stacks: 32, 48, 64, 96, 128, …"""
    power: int = 2 ** max(5, (width - 1).bit_length())
    return 3 * power // 4 if 32 < width <= 3 * power // 4 else power


def _check_roles(columns: object) -> None:
    legal = 'it must name columns and their roles, such as { id = "ignore", year = "feature" }'
    if columns is not None and not isinstance(columns, Mapping):
        raise ValueError(f"columns = {columns!r}; {legal}")
    for name, role in (columns or {}).items():
        if role not in ROLES:
            raise ValueError(f"columns.{name} = {role!r}; it must be one of {', '.join(ROLES)}")


def _checked_metrics(metric: object, task: str) -> list[str]:
    """The metrics whose values a trial has: the first of the validation data, costs perhaps after it."""
    legal = METRICS[task]
    if metric == []:
        raise ValueError(f"metric = []; name one or more of {', '.join(legal)}, or leave it out for {legal[0]}")
    given: list[Any] = metric if isinstance(metric, list) else [legal[0] if metric is None else metric]
    for i, name in enumerate(given):
        # Costs are measured at the end, and the first metric is the one that is reported of each epoch.
        allowed = (*legal, *COSTS) if i else legal
        if name not in allowed:
            raise ValueError(f"metric = {name!r}; for {task} it must be one of {', '.join(allowed)}")
        if name in given[:i]:
            raise ValueError(f"metric lists {name!r} twice; name each once")
    return given


def _checked_fixed(fixed: object) -> dict[str, Any]:
    if fixed is not None and not isinstance(fixed, Mapping):
        raise ValueError(f'fixed = {fixed!r}; it must be hyperparameters, such as {{ depth = 3, activation = "gelu" }}')
    given = dict(fixed or {})
    unknown = [name for name in given if name not in MLP.parameters]
    if unknown:
        raise ValueError(f"fixed names the hyperparameter {unknown[0]!r}; known: {', '.join(sorted(MLP.parameters))}")
    return given
