"""A data set in three parts, split by a seed and standardised, as tensors.

- 10 % of the training data is the validation part. The test part is the data set's own, or 20 % held
  out beforehand; nothing here or in training looks at it but :meth:`objectives.mlp.MLP.finalize`.
- Every part is one tensor on the device, indexed by a permutation: on one CPU core an epoch of MNIST
  takes 0.7 s so, and 30 s through a ``DataLoader``.

Axes: N examples, F features, C classes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from objectives.data.preprocessing import Preprocessing
from objectives.data.raw import Column, Raw, few
from objectives.data.splits import folds_of, most_folds, rows_of

log = logging.getLogger(__name__)

VALIDATION_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Part:
    """Examples and their classes or numbers."""

    stored_NF: Tensor
    """float32, standardised; or bytes as they were read, a quarter of that to keep and to gather from."""
    y_N: Tensor
    """int64, 0 … C−1; or float32, standardised."""
    mean_F: Tensor | None = None
    """Of bytes: what is to be subtracted; shape F or 1."""
    std_F: Tensor | None = None
    """Likewise: what it is to be divided by."""

    @property
    def x_NF(self) -> Tensor:
        """float32, standardised; a copy where bytes are stored."""
        return self.features(0, len(self))

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.stored_NF.device

    def features(self, start: int, stop: int, out_BF: Tensor | None = None) -> Tensor:
        """Consecutive rows, standardised: B × F; where bytes are stored in ``out_BF``, or a new tensor."""
        stored_BF = self.stored_NF[start:stop]
        if self.mean_F is None:
            return stored_BF
        if out_BF is None:
            out_BF = torch.empty(stored_BF.shape, device=self.device)
        return self._standardise(stored_BF, out_BF)

    def gather(self, row_B: Tensor, out_BF: Tensor, stored_BF: Tensor) -> None:
        """Rows in any order, standardised.

        Args:
            row_B: int64.
            out_BF: gets them.
            stored_BF: of the type of ``stored_NF``; may be ``out_BF`` where that is float.
        """
        # Bytes are gathered as bytes: a quarter of the memory traffic, which is what gathering costs.
        torch.index_select(self.stored_NF, 0, row_B, out=stored_BF)
        if self.mean_F is not None:
            self._standardise(stored_BF, out_BF)

    def _standardise(self, stored_BF: Tensor, out_BF: Tensor) -> Tensor:
        assert self.mean_F is not None
        assert self.std_F is not None
        # As Scaling.apply, to the last bit: x · scale + shift takes two thirds of the time, and rounds otherwise than a
        # kept model does.
        return out_BF.copy_(stored_BF).sub_(self.mean_F).div_(self.std_F)

    def to(self, device: torch.device) -> Part:
        """The same part on ``device``."""
        moved = {name: tensor.to(device) for name, tensor in vars(self).items() if tensor is not None}
        return Part(**moved)

    def joined(self, other: Part) -> Part:
        """The examples of both, of one data set."""
        return replace(
            self,
            stored_NF=torch.cat([self.stored_NF, other.stored_NF]),
            y_N=torch.cat([self.y_N, other.y_N]),
        )

    def __len__(self) -> int:
        return len(self.y_N)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set in its three parts."""

    train: Part
    validation: Part
    test: Part
    classes: tuple[str, ...]
    """The labels as they were given, in the order of their numbers 0 … C−1; empty in regression."""
    preprocessing: Preprocessing
    """From rows as they were read to the features of the parts."""
    target_mean: float = 0.0
    """Of a regression's target in the training rows, in its unit: what was subtracted."""
    target_std: float = 1.0
    """Likewise: what it was divided by."""
    rank_N: Tensor | None = None
    """int64, of the training rows and then the validation rows: the group of each, or the place of its time."""
    is_ordered: bool = False
    """Whether they are times."""
    fingerprint: str = ""
    """SHA-256 of the content, in hexadecimal: of the user's own file, else of what was read, but for test data."""

    def most_folds(self) -> tuple[int, str]:
        """(how many folds the training and validation rows allow, why no more)."""
        return most_folds(*self._joined, is_class=bool(self.classes), is_ordered=self.is_ordered)

    def folds(self, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(training, validation) rows of each fold, of the training rows and then the validation rows."""
        return folds_of(*self._joined, count, is_class=bool(self.classes), is_ordered=self.is_ordered, seed=seed)

    @property
    def _joined(self) -> tuple[np.ndarray, np.ndarray | None]:
        y_N = torch.cat([self.train.y_N, self.validation.y_N]).numpy()
        return y_N, None if self.rank_N is None else self.rank_N.numpy()

    @property
    def task(self) -> str:
        """``classification`` or ``regression``."""
        return "classification" if self.classes else "regression"

    @property
    def columns(self) -> tuple[Column, ...]:
        """Of a table: those with the role ``feature`` are read, in this order. Else empty."""
        return self.preprocessing.columns

    @property
    def mean_F(self) -> Tensor:
        """What was subtracted: of each number, or for images one for all; shape M or 1."""
        return torch.from_numpy(self.preprocessing.scaling.mean_F)

    @property
    def std_F(self) -> Tensor:
        """What it was divided by; shape M or 1, infinite for a constant one."""
        return torch.from_numpy(self.preprocessing.scaling.std_F)

    @property
    def n_features(self) -> int:
        """F."""
        return self.train.stored_NF.shape[1]

    def to(self, device: torch.device) -> Dataset:
        """The same data set on ``device``."""
        return replace(
            self, train=self.train.to(device), validation=self.validation.to(device), test=self.test.to(device)
        )


def divided(raw: Raw, seed: int, validation: float, scaling: str) -> Dataset:
    """Split and standardise; takes the rows out of ``raw``.

    The training rows alone decide what is subtracted and divided by.
    """
    y_N = raw.labels.y_N
    rows = rows_of(
        y_N,
        raw.keys,
        is_class=bool(raw.labels.names),
        has_test=raw.test_blocks is not None,
        seed=seed,
        validation=validation,
    )
    if raw.columns:  # parts that are filled from front to back take memory only as the blocks give theirs up
        rows = {name: np.sort(row_N) for name, row_N in rows.items()}
    mean, std = (0.0, 1.0) if raw.labels.names else _mean_and_std(y_N[rows["train"]])
    # Means, medians and levels are those of the training rows: others would shape what they are to measure.
    is_train_N = np.zeros(len(y_N), dtype=bool)
    is_train_N[rows["train"]] = True
    preprocessing = Preprocessing.fit(raw, is_train_N, scaling)
    if not preprocessing.feature_names:
        raise ValueError("has no feature that differs between the training rows; it needs one")
    _say_constant(preprocessing)
    parts = _fill(raw.blocks, _scaled(y_N, mean, std), rows, preprocessing, raw.levels)
    if raw.test_blocks is not None and raw.test_labels is not None:
        y_test_N = _scaled(raw.test_labels.y_N, mean, std)
        parts |= _fill(raw.test_blocks, y_test_N, {"test": np.arange(len(y_test_N))}, preprocessing, raw.levels)
    joined_N = np.concatenate([rows["train"], rows["validation"]])
    return Dataset(
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        classes=raw.labels.names,
        preprocessing=preprocessing,
        target_mean=mean,
        target_std=std,
        rank_N=None if raw.keys is None else torch.from_numpy(raw.keys.rank_N[joined_N]),
        is_ordered=raw.keys is not None and raw.keys.split.on is not None,
    )


def _mean_and_std(y_N: np.ndarray) -> tuple[float, float]:
    """Of a regression's target in the training rows.

    Raises:
        ValueError: it does not differ, or by so little that every RMSE would be 0.
    """
    low, high, std = float(y_N.min()), float(y_N.max()), float(y_N.std())
    if low == high:
        raise ValueError(f"the target is {low:g} in all {len(y_N)} training rows; regression needs numbers that differ")
    if std < np.finfo(np.float32).tiny:
        raise ValueError(
            f"the target differs by {high - low:g}, which float32 hardly tells from 0: multiply all by a constant"
        )
    return float(y_N.mean()), std


def _scaled(y_N: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Classes as they are; numbers standardised."""
    return y_N if y_N.dtype.kind == "i" else ((y_N - mean) / std).astype(np.float32)


def _fill(
    blocks: deque[np.ndarray],
    y_N: np.ndarray,
    rows: Mapping[str, np.ndarray],
    preprocessing: Preprocessing,
    levels: Mapping[str, Sequence[str]],
) -> dict[str, Part]:
    """Each part's rows, bytes as they are and all else standardised, in the order given; empties ``blocks``."""
    n_features = len(preprocessing.feature_names)
    are_bytes = blocks[0].dtype == np.uint8
    dtype = np.uint8 if are_bytes else np.float32
    x = {name: np.empty((len(row_N), n_features), dtype=dtype) for name, row_N in rows.items()}
    place = {name: np.full(len(y_N), -1, dtype=np.int32) for name in rows}
    for name, row_N in rows.items():
        place[name][row_N] = np.arange(len(row_N))
    start = 0
    # Each block is given up before the next one is copied: memory never holds the data twice.
    while blocks:
        block = blocks.popleft()
        for name, place_N in place.items():
            to = place_N[start : start + len(block)]
            x[name][to[to >= 0]] = block[to >= 0] if are_bytes else preprocessing.apply(block[to >= 0], levels)
        start += len(block)
    scaling = preprocessing.scaling
    mean_F, std_F = (torch.from_numpy(x_F) if are_bytes else None for x_F in (scaling.mean_F, scaling.std_F))
    return {
        name: Part(stored_NF=torch.from_numpy(x[name]), y_N=torch.from_numpy(y_N[row_N]), mean_F=mean_F, std_F=std_F)
        for name, row_N in rows.items()
    }


def _say_constant(preprocessing: Preprocessing) -> None:
    constant = [
        f"{name} (always {fill:g})"
        for name, fill, std in zip(preprocessing.numbers, preprocessing.fill, preprocessing.std, strict=False)
        if np.isinf(std)
    ]
    constant += [category.name for category in preprocessing.categories if not category.feature_names]
    if constant:
        shown = few(constant)
        log.warning("constant in the training rows, and therefore always 0 for the model: %s", shown)
