"""Predictions of a final model on the command line: ``python -m objectives.predict FOLDER ROWS``.

ROWS is a table as it was in training (.csv, .tsv, .parquet), or an array (.npy, or X of .npz). The predictions go to
standard output as CSV, a line for each row.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from objectives.data.endings import is_table
from objectives.data.table import Rows, open_table
from objectives.model import Model, load_model


def read_rows(file: Path, model: Model) -> Rows | np.ndarray:
    """The raw rows of a file, as ``model`` takes them.

    Raises:
        ValueError: the file is missing, or not of the kind that the model was trained on.
    """
    if not file.is_file():
        raise ValueError(f"no such file: {file}")
    if model.preprocessing.columns:
        if not is_table(file.name):
            raise ValueError(f"{file} is no table; the model takes .csv, .tsv or .parquet")
        # Any of its columns tells the separator where several would do.
        return open_table(file, model.preprocessing.names[0])
    if file.suffix not in (".npy", ".npz"):
        raise ValueError(f"{file} is no array; the model takes .npy, or .npz with an array X")
    if file.suffix == ".npy":
        # Never pickled objects: rows may come from strangers.
        return np.asarray(np.load(file, allow_pickle=False))
    with np.load(file, allow_pickle=False) as loaded:
        if "X" not in loaded:
            raise ValueError(f"{file} has no array X; it holds: {', '.join(loaded) or 'none'}")
        return np.asarray(loaded["X"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print predictions; exits with 1 and one line where there can be none."""
    parser = argparse.ArgumentParser(prog="python -m objectives.predict", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what studyhall finalize wrote")
    parser.add_argument("rows", type=Path, help="a table or an array of raw rows")
    given = parser.parse_args(arguments)
    exit_in_one_line(lambda: _predict(given.folder, given.rows))


def _predict(folder: Path, file: Path) -> None:
    model = load_model(folder)
    try:
        predicted = model.predict(read_rows(file, model))
    except ValueError as error:
        raise ValueError(f"cannot predict from {file}: {error}") from None
    predicted.to_csv(sys.stdout, index=False, lineterminator="\n")


def exit_in_one_line(action: Callable[[], None]) -> None:
    """Run a command; an error is one line on standard error and exit status 1."""
    try:
        action()
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
