"""The training of a final model to its end, from where an attempt that was killed has left it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from objectives.pool import Training
from objectives.states import StateError, from_bytes, to_bytes

log = logging.getLogger(__name__)

#: Seconds between two checkpoints.
EVERY = 30.0
Curves = list[dict[str, float]]


def retrain(
    begin: Callable[[], Training],
    run_epoch: Callable[[Training], None],
    progress: Callable[[int], None],
    checkpoint: Path | None,
) -> tuple[Training, Curves]:
    """Train to the end.

    Args:
        begin: makes the training.
        run_epoch: trains it for an epoch.
        progress: is called with how many epochs are done.
        checkpoint: holds what an earlier attempt saved, if it is there; ``None`` to save nothing.

    Returns:
        The training, and the metrics of each epoch.
    """
    training, curves = _restored(begin, checkpoint)
    saved = time.monotonic()
    while not training.is_over:
        run_epoch(training)
        curves.append(training.end_epoch())
        progress(training.epoch)
        # None after the last epoch, as of every training: a checkpoint leaves an epoch to run.
        if checkpoint and not training.is_over and time.monotonic() - saved >= EVERY:
            _save(checkpoint, training, curves)
            saved = time.monotonic()
    return training, curves


def _restored(begin: Callable[[], Training], checkpoint: Path | None) -> tuple[Training, Curves]:
    training = begin()
    if checkpoint is None or not checkpoint.is_file():
        return training, []
    try:
        state = from_bytes(checkpoint.read_bytes())
        # Refuses the checkpoint of another model in the same place, as one with other hyperparameters.
        training.load_state_dict(state.get("training", {}))
        return training, list(state["curves"])
    except (StateError, OSError, KeyError, TypeError) as error:
        log.warning("the training begins anew: %s", " ".join(str(error).split()))
        return begin(), []  # the first one may have changed


def _save(checkpoint: Path, training: Training, curves: Curves) -> None:
    beside = checkpoint.with_name(f"{checkpoint.name}.part")
    try:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(to_bytes({"training": training.state_dict(), "curves": curves}))
        beside.replace(checkpoint)  # whole or the one before
    except OSError as error:  # the training is worth more than its checkpoint
        log.warning("no checkpoint is kept: %s", error)
