"""A backup, restored: on the same server and on another version, with the study going on."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import pytest

from studies import PostgresStorage
from studies.errors import StorageError
from studies.storage.backup import backup, restore
from studies.storage.url import StorageURL
from tests.conftest import Server
from tests.support.mirrored import begin, claim, finish, report, run


@pytest.mark.parametrize(("source", "target"), [("embedded", "separate"), ("separate", "embedded")])
def test_a_backup_restored_on_another_server_holds_the_same_and_goes_on(
    source: str, target: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    draw = random.Random(1)
    servers: dict[str, Server] = {name: request.getfixturevalue(f"{name}_server") for name in ("embedded", "separate")}
    file = tmp_path / "studies.dump"
    with servers[source].database() as before, servers[target].database() as after:
        with closing(PostgresStorage(before)) as storage:
            record = begin(storage, "study", 5)
            run(storage, record, 3, 3, draw)
            running = claim(storage, record)
            report(storage, running, range(0, 2), draw)
            backup(before, file)
            assert file.stat().st_mode & 0o077 == 0
            expected = storage.trials(record)
        restore(after, file)
        with closing(PostgresStorage(after, create=False)) as storage:
            record = storage.find_study("study")
            assert storage.trials(record) == expected
            # Whoever ran it then is not there any more.
            storage.workers.reap(["w"], died_of=None)
            again = claim(storage, record)
            assert again.number == running.number
            finish(storage, again, "COMPLETE", draw)
            assert storage.status(record).trials["complete"] == 3
        with pytest.raises(StorageError, match="is not empty: a backup is restored into an empty database"):
            restore(after, file)
        with pytest.raises(StorageError, match="is there already: choose another name"):
            backup(before, file)
        with pytest.raises(StorageError, match="cannot be written: No such file or directory"):
            backup(before, tmp_path / "none" / "file")


def test_a_service_file_may_say_where_the_database_is(
    separate_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with separate_server.database() as named, separate_server.database() as empty:
        PostgresStorage(named).close()
        services = tmp_path / "services.conf"
        for service, url in (("named", named), ("empty", empty)):
            given = "".join(f"{key}={value}\n" for key, value in url.libpq.items())
            with services.open("a") as out:
                out.write(f"[{service}]\n{given}")
        monkeypatch.setenv("PGSERVICEFILE", str(services))
        file = tmp_path / "studies.dump"
        backup(StorageURL.parse("postgresql://?service=named"), file)
        restore(StorageURL.parse("postgresql://?service=empty"), file)
        with closing(PostgresStorage(empty, create=False)) as storage:
            assert storage.study_names() == []


def test_what_is_no_backup_changes_nothing(separate_server: Server, tmp_path: Path) -> None:
    file = tmp_path / "no.dump"
    file.write_text("hello")
    with separate_server.database() as url:
        with pytest.raises(StorageError, match=r"pg_restore: .*not appear to be a valid archive"):
            restore(url, file)
        with pytest.raises(StorageError, match="there is no backup"):
            restore(url, tmp_path / "missing")
        PostgresStorage(url).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["no.dump"]
