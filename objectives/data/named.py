"""The named data sets: those that come with scikit-learn, and torchvision's, downloaded once per machine."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from objectives.data.labels import Labels
from objectives.data.raw import Column, Raw, blocks_of, one_line

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Named:
    """A data set with a name."""

    read: Callable[[Path], Raw]
    """From the data directory, downloaded first where it is not there."""
    folder: str | None = None
    """Its folder there."""

    def files(self, data_dir: Path) -> list[Path]:
        """What is there of it."""
        if self.folder is None:
            return []
        walked = os.walk(data_dir / self.folder, followlinks=True)
        return sorted(Path(folder, name) for folder, _, names in walked for name in names)


def _digits(_data_dir: Path) -> Raw:
    from sklearn.datasets import load_digits

    bunch = load_digits()  # whole numbers from 0 to 16, as float64
    return Raw(blocks=blocks_of(bunch.data.astype(np.uint8)), labels=Labels.of(bunch.target), is_image=True)


def _packaged(function: str, *, target: str, **options: Any) -> Named:
    """A reader of a table that comes with scikit-learn, in its own units."""

    def read(_data_dir: Path) -> Raw:
        import sklearn.datasets

        bunch = getattr(sklearn.datasets, function)(**options)
        names = getattr(bunch, "target_names", None)
        labels = Labels(names=(), y_N=bunch.target) if names is None else Labels.of(names[bunch.target])
        features = (Column(name=str(name), role="feature", kind="number") for name in bunch.feature_names)
        return Raw(
            blocks=blocks_of(bunch.data),
            labels=labels,
            columns=(*features, Column(name=target, role="target", kind="number" if names is None else "text")),
        )

    return Named(read=read)


def _torchvision(name: str, folder: str, read: Callable[[Path, bool, bool], Any]) -> Named:
    """torchvision's data set ``name``, which lies in ``folder`` of the data directory.

    ``read`` is called with (data directory, whether the training part, whether to download).
    """

    def load_both(data_dir: Path) -> Raw:
        def attempt(download: bool) -> Raw:
            train, test = (read(data_dir, is_train, download) for is_train in (True, False))
            labels = Labels.of(np.asarray(train.targets))
            return Raw(
                blocks=blocks_of(np.asarray(train.data)),
                labels=labels,
                test_blocks=blocks_of(np.asarray(test.data)),
                test_labels=Labels.of(np.asarray(test.targets)).like(labels),
                is_image=True,
            )

        place = data_dir / folder
        try:
            return attempt(download=False)
        except RuntimeError as error:
            # torchvision raises RuntimeError for "Dataset not found" and for damaged files alike.
            if place.is_dir() and "not found" not in str(error).lower():
                raise _corrupted(place, error) from None
        # torchvision checks the head of a file by assert.
        except (AssertionError, ValueError, OSError, EOFError) as error:
            raise _corrupted(place, error) from None
        try:
            with _lock(data_dir):  # whoever comes second finds what the first has downloaded
                log.info("%s is not in %s; downloading it unless another worker has just done so", name, place)
                return attempt(download=True)
        except (RuntimeError, AssertionError, ValueError, OSError, EOFError) as error:
            raise ValueError(
                f"is not in {place} and cannot be downloaded: {one_line(error)}; "
                f"put torchvision's files of {name} there, or name their folder with --data-dir"
            ) from None

    return Named(read=load_both, folder=folder)


def _corrupted(place: Path, error: Exception) -> ValueError:
    return ValueError(f"its files in {place} are incomplete or corrupted ({one_line(error)}); delete that folder")


@contextmanager
def _lock(data_dir: Path) -> Iterator[None]:
    """One process at a time downloads to ``data_dir``."""
    # The kernel frees it when a process dies; a file that marks the lock by being there would stay.
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / ".download.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _idx(class_name: str, **options: Any) -> Callable[[Path, bool, bool], Any]:
    def read(data_dir: Path, is_train: bool, download: bool) -> Any:
        import torchvision

        return getattr(torchvision.datasets, class_name)(data_dir, train=is_train, download=download, **options)

    return read


NAMES: dict[str, Named] = {
    "digits": Named(read=_digits),
    "diabetes": _packaged("load_diabetes", target="progression", scaled=False),
    "breast-cancer": _packaged("load_breast_cancer", target="diagnosis"),
    "wine": _packaged("load_wine", target="cultivar"),
    "mnist": _torchvision("MNIST", "MNIST", _idx("MNIST")),
    "fashion-mnist": _torchvision("Fashion-MNIST", "FashionMNIST", _idx("FashionMNIST")),
    "kmnist": _torchvision("Kuzushiji-MNIST", "KMNIST", _idx("KMNIST")),
    "emnist-letters": _torchvision("EMNIST", "EMNIST", _idx("EMNIST", split="letters")),
    "cifar10": _torchvision("CIFAR-10", "cifar-10-batches-py", _idx("CIFAR10")),
}

#: What somebody might ask for, and why not.
REFUSED = {
    "linnerud": "has three targets (Weight, Waist, Pulse), and a model here predicts one; write the features and one "
    "target into a CSV, and name that",
}
