"""Checkpoints in a bucket of a real S3-compatible server; and what every store does, wherever it is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from studies.checkpoint_stores import CheckpointStore, open_store
from studies.errors import CheckpointError
from tests.support.postgres import free_port

STUDY = "6f1c1d1e-7f43-4c35-9a56-0b6a3f1b2c3d"
SECRET = "hunter2"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server that lists objects by threes."""
    port = free_port()
    argv = [sys.executable, "-m", "moto.server", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(argv, env={"MOTO_S3_DEFAULT_MAX_KEYS": "3"}, **quiet) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 120
            while not answers(url):
                assert process.poll() is None, "the server does not start"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.05)
            yield url
        finally:
            process.kill()


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Sets what boto3 reads to one server, and nothing of this person's or machine's own."""
    for name in [*os.environ]:
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ann")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return lambda url: monkeypatch.setenv("AWS_ENDPOINT_URL", url)


@pytest.fixture(scope="module")
def s3(server: str) -> Any:
    """A client of the server, to look behind the store; making one takes as long as a test."""
    import boto3

    keys = {"aws_access_key_id": "ann", "aws_secret_access_key": SECRET}
    return boto3.session.Session(region_name="us-east-1", **keys).client("s3", endpoint_url=server)


@pytest.fixture
def bucket(s3: Any, environment: Callable[[str], None], server: str) -> Iterator[str]:
    """A new, empty bucket, gone at the end."""
    environment(server)
    name = f"bucket-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=name)
    yield name
    for key in keys(s3, name):
        s3.delete_object(Bucket=name, Key=key)
    s3.delete_bucket(Bucket=name)


def keys(s3: Any, bucket: str) -> list[str]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return [item["Key"] for page in pages for item in page.get("Contents", ())]


@pytest.fixture(params=["directory", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place, a directory and a bucket in turn."""
    if request.param == "directory":
        return str(tmp_path / "checkpoints")
    return f"s3://{request.getfixturevalue('bucket')}/a/prefix"


@pytest.fixture
def store(location: str) -> CheckpointStore:
    return open_store(location, STUDY)


def refusal(call: Callable[[], object]) -> str:
    """The message of the CheckpointError that ``call`` raises: one line, without the secret."""
    with pytest.raises(CheckpointError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET not in message
    return message


# -- what every store does -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_what_was_written_is_read_back_by_whoever_opens_the_store(
    store: CheckpointStore, location: str, size: int
) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    store.write("12/3-7", data[:size])
    assert store.read("12/3-7") == data[:size]
    assert open_store(location, STUDY).read("12/3-7") == data[:size]
    assert open_store(location, STUDY.upper().replace("-", "")).location == location == store.location


def test_there_is_none_before_one_is_written(store: CheckpointStore) -> None:
    assert store.read("12/3-7") is None
    assert store.names() == []
    store.delete([])
    store.delete(["12/3-7", "13/1-1"])
    store.write("12/3-7", b"state")
    assert store.read("12/3-8") is None
    assert store.read("1/3-7") is None


def test_writing_a_name_again_replaces_it(store: CheckpointStore) -> None:
    store.write("12/3-7", b"a longer one")
    store.write("12/3-7", b"short")
    assert store.read("12/3-7") == b"short"
    assert store.names() == ["12/3-7"]


def test_names_are_all_that_are_there(store: CheckpointStore) -> None:
    names = sorted(f"{trial}/{epoch}-{i}" for trial in (0, 7, 12) for epoch in (1, 10) for i in (1, 2))
    for name in reversed(names):
        store.write(name, name.encode())
    assert store.names() == names
    store.delete([names[0], names[5], "12/99-1"])
    assert store.names() == names[1:5] + names[6:]
    assert all(store.read(name) == name.encode() for name in store.names())
    store.delete(iter(store.names()))
    assert store.names() == []


def test_clearing_deletes_all_of_the_study(store: CheckpointStore, location: str) -> None:
    other = open_store(location, str(uuid.uuid4()))
    for name in ("12/3-7", "13/1-1"):
        store.write(name, b"state")
        other.write(name, b"other")
    store.clear()
    assert store.names() == []
    assert other.names() == ["12/3-7", "13/1-1"]


def test_more_names_than_fit_into_one_request_are_deleted(store: CheckpointStore) -> None:
    names = [f"{i % 3}/1-{i}" for i in range(2100)]
    for i in (0, 999, 1000, 2099):
        store.write(names[i], b"state")
    store.delete(names)
    assert store.names() == []


def test_studies_do_not_see_each_other(store: CheckpointStore, location: str) -> None:
    other = open_store(location, str(uuid.uuid4()))
    store.write("12/3-7", b"state")
    assert other.read("12/3-7") is None
    assert other.names() == []
    other.delete(["12/3-7"])
    assert store.read("12/3-7") == b"state"


def test_a_check_leaves_nothing_and_disturbs_nothing(store: CheckpointStore) -> None:
    store.check()
    assert store.names() == []
    store.write("12/3-7", b"state")
    store.check()
    assert store.names() == ["12/3-7"]


def test_any_other_name_is_a_mistake_of_the_caller(store: CheckpointStore) -> None:
    for name in ("", "12", "../3-7", "12/3-7/", "12/.3-7", "a/b", "12/3-7\n"):
        for call in (lambda n: store.write(n, b"x"), store.read, lambda n: store.delete(["1/1-1", n])):
            with pytest.raises(ValueError, match="TRIAL/EPOCH-SEQUENCE"):
                call(name)
    assert store.names() == []


def test_many_threads_share_one_store(store: CheckpointStore) -> None:
    failures: list[BaseException] = []

    def work(trial: int) -> None:
        try:
            for i in range(5):
                name = f"{trial}/1-{i}"
                store.write(name, name.encode() * 1000)
                assert store.read(name) == name.encode() * 1000
                if i:
                    store.delete([f"{trial}/1-{i - 1}"])
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(trial,)) for trial in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert store.names() == [f"{trial}/1-4" for trial in range(6)]


# -- S3 alone ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/prefix", "/a/b=c+d"])
def test_objects_lie_below_the_prefix_and_others_are_left_alone(s3: Any, bucket: str, prefix: str) -> None:
    store = open_store(f"s3://{bucket}{prefix}", STUDY)
    store.write("12/3-7", b"state")
    mine = f"{prefix}/{STUDY}/12/3-7"[1:]
    assert keys(s3, bucket) == [mine]
    others = sorted([f"{mine}.bak", f"{prefix}/{STUDY}-2/12/3-7"[1:], "README"])
    for key in others:
        s3.put_object(Bucket=bucket, Key=key, Body=b"precious")
    store.check()
    assert store.names() == ["12/3-7"]
    store.delete(store.names())
    assert sorted(keys(s3, bucket)) == others


def test_a_bucket_that_does_not_exist_is_named(environment: Callable[[str], None], server: str) -> None:
    environment(server)
    store = open_store("s3://no-such-bucket/prefix", STUDY)
    for call in (store.check, store.names, lambda: store.read("1/1-1"), lambda: store.delete(["1/1-1"])):
        told = refusal(call)
        assert told.startswith("s3://no-such-bucket/prefix cannot be used: An error occurred (NoSuchBucket)")
        assert "; check the bucket's name" in told


def test_a_server_that_does_not_answer_is_named_without_its_password(environment: Callable[[str], None]) -> None:
    port = free_port()
    environment(f"http://ann:{SECRET}@127.0.0.1:{port}")
    store = open_store("s3://bucket", STUDY)
    for call in (store.check, store.names, lambda: store.write("1/1-1", b"x"), lambda: store.read("1/1-1")):
        told = refusal(call)
        assert f"127.0.0.1:{port}" in told
        assert "AWS_ENDPOINT_URL" in told


def test_an_endpoint_that_is_no_url_is_refused(environment: Callable[[str], None]) -> None:
    environment(f"ann:{SECRET}@127.0.0.1:9000")
    assert "Invalid endpoint" in refusal(lambda: open_store("s3://bucket", STUDY))


def test_missing_credentials_are_asked_for(
    environment: Callable[[str], None], server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(server)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    told = refusal(open_store("s3://bucket", STUDY).check)
    assert "Unable to locate credentials; check the bucket's name, the credentials" in told
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "The config profile (nobody) could not be found" in refusal(lambda: open_store("s3://bucket", STUDY))


@contextmanager
def canned(answers: dict[str, tuple[int, str]]) -> Iterator[str]:
    """A server with one answer for each method, as some of S3's servers give it."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answers[self.command]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}"
        finally:
            http.shutdown()
            thread.join()


DENIED = "<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"


def test_what_the_credentials_do_not_allow_is_said(environment: Callable[[str], None]) -> None:
    undeleted = (
        "<DeleteResult><Error><Key>k</Key><Code>AccessDenied</Code><Message>No.</Message></Error></DeleteResult>"
    )
    with canned({"PUT": (403, DENIED), "GET": (403, DENIED), "POST": (200, undeleted)}) as url:
        environment(url)
        store = open_store("s3://bucket", STUDY)
        for operation, call in {
            "PutObject": store.check,
            "GetObject": lambda: store.read("1/1-1"),
            "ListObjectsV2": store.names,
            "DeleteObjects": lambda: store.delete(["1/1-1"]),
        }.items():
            told = refusal(call)
            assert f"(AccessDenied) when calling the {operation} operation" in told
            assert "the credentials and what they allow" in told


def test_a_check_tells_of_a_server_that_forgets(environment: Callable[[str], None]) -> None:
    with canned({"PUT": (200, ""), "GET": (200, "something else"), "POST": (200, "<DeleteResult/>")}) as url:
        environment(url)
        assert "does not keep or delete what it is told to" in refusal(open_store("s3://bucket", STUDY).check)


def test_an_answer_that_ends_too_early_is_no_checkpoint(environment: Callable[[str], None]) -> None:
    class Short(str):
        def __len__(self) -> int:
            return 100

    with canned({"GET": (200, Short("half"))}) as url:
        environment(url)
        assert "cannot be used" in refusal(lambda: open_store("s3://bucket", STUDY).read("1/1-1"))
