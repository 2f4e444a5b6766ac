"""TLS as the runbook has it: verify-full, and nothing else gets in."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from studies import PostgresStorage
from studies.errors import StorageUnreachable
from studies.storage.embedded.binaries import account_for
from studies.storage.url import StorageURL
from tests.support.postgres import DEBIAN_15, start_postgres


def authority(folder: Path, name: str) -> Path:
    """The certificate of a new authority; its key lies beside it."""
    file = folder / f"{name}.pem"
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
            "-keyout", str(file.with_suffix(".key")), "-out", str(file))  # fmt: skip
    return file


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StorageURL, Path, Path]]:
    """A server that speaks TLS alone, the authority of its certificate for localhost, and another one."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with: apt-get install openssl")
    folder = tmp_path_factory.mktemp("tls")
    ours, other = authority(folder, "ours"), authority(folder, "other")
    request = folder / "server.csr"
    with start_postgres(DEBIAN_15 if DEBIAN_15.is_dir() else None, listen_addresses="localhost") as postgres:
        postgres.stop()
        certificate, key = postgres.data / "server.crt", postgres.data / "server.key"
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", str(key),
                "-out", str(request), "-addext", "subjectAltName=DNS:localhost")  # fmt: skip
        openssl("x509", "-req", "-in", str(request), "-CA", str(ours), "-CAkey", str(ours.with_suffix(".key")),
                "-days", "2", "-copy_extensions", "copy", "-out", str(certificate))  # fmt: skip
        account = account_for(postgres.data)
        for file in (certificate, key):
            account.own(file)
            file.chmod(0o600)
        with (postgres.data / "postgresql.conf").open("a") as settings:
            settings.write("ssl = on\n")
        rules = postgres.data / "pg_hba.conf"
        rules.write_text(rules.read_text().replace("host ", "hostssl "))
        postgres.start()
        yield replace(StorageURL.parse(postgres.url), hosts=(("localhost", postgres.port),)), ours, other


def with_options(url: StorageURL, **options: str) -> StorageURL:
    return replace(url, options=tuple(sorted(options.items())))


def test_with_the_right_authority_and_name_it_works(server: tuple[StorageURL, Path, Path]) -> None:
    url, ours, _ = server
    with closing(PostgresStorage(with_options(url, sslmode="verify-full", sslrootcert=str(ours)))) as storage:
        (row,) = storage.database.execute("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
        assert row == {"ssl": True}
        assert storage.study_names() == []


def test_plain_text_is_refused(server: tuple[StorageURL, Path, Path]) -> None:
    url, _, _ = server
    with pytest.raises(StorageUnreachable, match="refuses unencrypted connections: add sslmode=require to the URL"):
        PostgresStorage(with_options(url, sslmode="disable"))


def test_another_authority_is_refused(server: tuple[StorageURL, Path, Path]) -> None:
    url, _, other = server
    with pytest.raises(StorageUnreachable, match="certificate verify failed"):
        PostgresStorage(with_options(url, sslmode="verify-full", sslrootcert=str(other)))


def test_another_name_is_refused(server: tuple[StorageURL, Path, Path]) -> None:
    url, ours, _ = server
    by_number = replace(url, hosts=(("127.0.0.1", url.hosts[0][1]),))
    with pytest.raises(StorageUnreachable, match="does not match host name"):
        PostgresStorage(with_options(by_number, sslmode="verify-full", sslrootcert=str(ours)))
