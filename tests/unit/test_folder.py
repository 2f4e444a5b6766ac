"""New folders: whole or not there, whoever else writes them and whatever was left."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies.errors import StudyhallError
from studies.finalize.folder import new_directory


def test_a_folder_is_there_when_it_is_whole_and_replaces_what_a_killed_process_left(tmp_path: Path) -> None:
    left = tmp_path / ".net-final.part"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "weights").touch()
    (left / "model.json").touch()
    (left / "link").symlink_to(tmp_path)
    with new_directory(tmp_path / "net-final", "--out") as beside:
        (beside / "weights").write_text("w")
        assert not (tmp_path / "net-final").exists()
    assert [file.name for file in (tmp_path / "net-final").iterdir()] == ["weights"]
    assert [file.name for file in tmp_path.iterdir()] == ["net-final"]


def test_one_process_at_a_time_writes_a_folder_and_nothing_is_left_of_one_that_fails(tmp_path: Path) -> None:
    place = tmp_path / "net-final"

    def write(text: str = "", *, beside: Path | None = None) -> None:
        with new_directory(place, "--out") as folder:
            if beside:
                (beside / "theirs").mkdir(parents=True)
            (folder / "w").write_text(text)

    with new_directory(place, "--out"), pytest.raises(StudyhallError, match=r"another process is writing .*; wait for"):
        write()
    assert list(place.iterdir()) == []
    with pytest.raises(StudyhallError, match=r"net-final' exists; name another folder with --out"):
        write()
    place.rmdir()
    with pytest.raises(UnicodeEncodeError):
        write("\ud800")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StudyhallError, match=r"cannot write .*net-final': .*; name another folder with --out"):
        write(beside=place)
    assert [file.name for file in tmp_path.iterdir()] == ["net-final"]
