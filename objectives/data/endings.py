"""What a file's name says of it; kept apart so that a name can be judged without importing pyarrow."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".csv", ".tsv", ".parquet")
#: Of tables as text; empty for none.
COMPRESSIONS = ("", ".gz", ".bz2", ".xz")


def is_table(path: str) -> bool:
    """Whether a path is one of a table."""
    suffix, compression = endings(path)
    # Parquet compresses by itself, and is read from its end: a compressed file would have to be unpacked first.
    return suffix in SUFFIXES and (compression == "" or suffix != ".parquet")


def endings(path: str) -> tuple[str, str]:
    """(.csv, .gz) of x.CSV.gz."""
    *_, last = ["", *Path(path.lower()).suffixes]
    compression = last if last in COMPRESSIONS else ""
    return Path(path.lower().removesuffix(compression)).suffix, compression
