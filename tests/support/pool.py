"""Objectives that train several trials at once, made from one that is a generator. Without PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

Step = tuple[float, int, bytes] | tuple[float, int, bytes, dict[str, float]]
Steps = Generator[Step, None, float]
"""Yields the value, the step, the state and perhaps metrics of each step; returns the trial's value."""


@dataclass(frozen=True, kw_only=True)
class Report:
    trial: Any
    step: int
    value: float
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Result:
    trial: Any
    state: str
    value: float | None = None
    error: BaseException | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


class Pool:
    """Trains trials in step, a step of each in turns."""

    def __init__(self, steps: Callable[[Any], Steps], slots: int = 4) -> None:
        self.steps = steps
        self._slots = slots

    def __call__(self, trial: Any) -> float:
        """One trial alone, as an objective without slots trains it."""
        steps = self.steps(trial)
        while True:
            try:
                value, step, state, *metrics = next(steps)
            except StopIteration as end:
                return float(end.value)
            trial.report(value, step, **(metrics[0] if metrics else {}))
            trial.checkpoint(step, state)
            if trial.should_prune():
                raise trial.Pruned

    def slots(self, _device: str, wanted: int | None = None) -> int:
        return wanted or self._slots

    def train(self, trials: Any, slots: int, *, device: str) -> None:  # noqa: ARG002
        running: list[tuple[Any, Steps]] = []
        while not trials.is_over or running:
            taken = trials.take(slots - len(running))
            running += [(trial, self.steps(trial)) for trial in taken]
            reports: list[Report] = []
            states: list[tuple[Any, int, bytes]] = []
            results: list[Result] = []
            for trial, steps in running:
                try:
                    value, step, state, *metrics = next(steps)
                except StopIteration as end:
                    results.append(Result(trial=trial, state="complete", value=end.value))
                except trial.Interrupted:
                    results.append(Result(trial=trial, state="left"))
                except Exception as error:
                    results.append(Result(trial=trial, state="fail", error=error))
                else:
                    reports.append(Report(trial=trial, step=step, value=value, metrics=metrics[0] if metrics else {}))
                    states.append((trial, step, state))
            trials.report(reports)
            for trial, step, state in states:
                try:
                    trial.checkpoint(step, state)
                    if trial.should_prune():
                        results.append(Result(trial=trial, state="pruned"))
                except trial.Interrupted:
                    results.append(Result(trial=trial, state="left"))
                except Exception as error:
                    results.append(Result(trial=trial, state="fail", error=error))
            trials.end(results)
            over = {id(result.trial) for result in results}
            running = [each for each in running if id(each[0]) not in over]
            if not running and not taken:
                trials.wait()
