"""The statements in SQL files, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies.storage.database import read_statements, statements


def test_a_statement_is_the_text_below_its_name(tmp_path: Path) -> None:
    (tmp_path / "one.sql").write_text("-- What the file holds.\n-- name: first\nselect 1\n-- name: second\nselect 2\n")
    assert read_statements(tmp_path.iterdir()) == {"first": "\nselect 1\n", "second": "\nselect 2\n"}
    assert "claim" in statements()


def test_a_name_of_two_statements_is_refused_with_both_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one.sql", tmp_path / "two.sql"
    one.write_text("-- name: claim\nselect 1\n")
    two.write_text("-- name: claim\nselect 2\n")
    for files, places in (([one, two], "one.sql and again in two.sql"), ([one, one], "one.sql and again in one.sql")):
        with pytest.raises(ValueError, match=f"statement 'claim' is in {places}: rename one"):
            read_statements(files)
