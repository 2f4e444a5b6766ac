"""Where checkpoints lie: the locations that are legal, and the directory under everything that goes wrong."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from studies.checkpoint_stores import DirectoryStore, open_store, require_allowed
from studies.errors import CheckpointError, StudyhallError
from studies.spec.locations import validate_location
from tests.conftest import ROOT

STUDY = "6f1c1d1e-7f43-4c35-9a56-0b6a3f1b2c3d"
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as several users, and mount")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore(str(root), STUDY)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refusal(call: Callable[[], object]) -> str:
    """The message of the CheckpointError that ``call`` raises: one line."""
    with pytest.raises(CheckpointError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- locations and names -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "normal"),
    [
        ("postgresql", "postgresql"),
        ("/shared/checkpoints", "/shared/checkpoints"),
        ("//shared///my checkpoints/", "/shared/my checkpoints"),
        ("/überall/…/.hidden", "/überall/…/.hidden"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://my.bucket-1//a/b_c=1/", "s3://my.bucket-1/a/b_c=1"),
    ],
)
def test_a_legal_location_loses_only_the_slashes_that_mean_nothing(location: str, normal: str) -> None:
    assert validate_location(location) == normal
    assert validate_location(normal) == normal


@pytest.mark.parametrize(
    "location",
    [
        "",
        "/",
        "//",
        "checkpoints",
        "./checkpoints",
        "~/checkpoints",
        "/shared/../etc",
        "/shared/.",
        "/shared/a\nb",
        "/shared/\0",
        "Postgresql",
        "s3:/bucket",
        "s3://",
        "s3://ab",
        "s3://bucket/../other",
        "s3://bucket/ä",
        "s3://bucket/a b",
        "S3://bucket",
        "gs://bucket/prefix",
        "file:///shared",
    ],
)
def test_any_other_location_is_refused_with_the_legal_ones(location: str) -> None:
    with pytest.raises(ValueError, match="legal: postgresql, a directory's absolute path") as caught:
        validate_location(location)
    assert repr(location) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "location",
    [
        "s3://AKIA:hunter2@bucket/prefix",
        "s3://bucket/prefix?aws_secret_access_key=hunter2",
        "postgresql://ann:hunter2@db/studies",
        "postgresql://ann:p/hunter2@x@db/studies",
        "postgresql:ann:hunter2@db",
        "postgresql://db/studies?password=hunter2",
    ],
)
def test_a_pasted_password_is_not_repeated(location: str) -> None:
    with pytest.raises(ValueError, match="legal") as caught:
        validate_location(location)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "12",
        "12/3",
        "12/3-",
        "12/-7",
        "12/3-7/",
        "/12/3-7",
        "12/3-7\n",
        "12/3.7",
        "../3-7",
        "12/../3-7",
        "12/3-7/1-1",
        ".12/3-7",
        "12/.3-7",
        "12//3-7",
        "a/3-7",
        "١٢/3-7",
        "-1/3-7",
        "12/3-7\0",
    ],
)
def test_a_name_with_anything_but_numbers_is_a_mistake_of_the_caller(
    store: DirectoryStore, root: Path, name: str
) -> None:
    for call in (lambda: store.write(name, b"x"), lambda: store.read(name), lambda: store.delete(["1/1-1", name])):
        with pytest.raises(ValueError, match="TRIAL/EPOCH-SEQUENCE"):
            call()
    assert everything(root) == []


def test_a_study_is_named_by_a_uuid_and_by_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="badly formed"):
        open_store(str(tmp_path), "../elsewhere")
    with pytest.raises(ValueError, match="PostgreSQL"):
        open_store("postgresql", STUDY)
    assert everything(tmp_path) == []


def test_without_boto3_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    told = refusal(lambda: open_store("s3://bucket/prefix", STUDY))
    assert told == "checkpoints in s3://bucket/prefix need boto3: pip install 'studyhall[s3]'"


def test_the_error_is_one_of_ours() -> None:
    assert issubclass(CheckpointError, StudyhallError)
    assert CheckpointError.exit_code == 1


# -- the root ------------------------------------------------------------------------------------------


def test_the_directory_is_made_if_its_parent_is_there(tmp_path: Path) -> None:
    store = open_store(f"{tmp_path}/checkpoints/", STUDY)
    assert store.location == str(tmp_path / "checkpoints")
    store.write("12/3-7", b"state")
    assert (tmp_path / "checkpoints" / STUDY / "12" / "3-7").read_bytes() == b"state"


def test_a_share_that_is_not_mounted_is_not_replaced_by_a_local_directory(tmp_path: Path) -> None:
    away = tmp_path / "share" / "checkpoints"
    told = refusal(lambda: open_store(str(away), STUDY))
    assert told == f"there is no directory {away} on this machine: mount its share, or create it"
    link = tmp_path / "link"
    link.symlink_to(away)
    assert f"there is no directory {link}" in refusal(lambda: open_store(str(link), STUDY))
    assert everything(tmp_path) == ["link"]


def test_a_share_that_goes_away_in_the_midst_is_not_replaced_either(store: DirectoryStore, root: Path) -> None:
    store.write("12/3-7", b"state")
    root.rename(root.with_name("away"))
    for call in (
        store.check,
        store.names,
        lambda: store.write("12/3-8", b"more"),
        lambda: store.read("12/3-7"),
        lambda: store.delete(["12/3-7"]),
    ):
        assert f"there is no directory {root}" in refusal(call)
    root.with_name("away").rename(root)
    assert store.read("12/3-7") == b"state"
    assert store.names() == ["12/3-7"]


def test_a_file_in_the_place_of_the_directory_is_refused_and_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    told = refusal(lambda: open_store(str(tmp_path / "file"), STUDY))
    assert told == f"{tmp_path / 'file'} cannot be used (Not a directory)"
    assert (tmp_path / "file").read_text() == "precious"


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    store = open_store(str(tmp_path / "link"), STUDY)
    store.check()
    store.write("12/3-7", b"state")
    assert (tmp_path / "disk" / STUDY / "12" / "3-7").read_bytes() == b"state"


# -- who may read --------------------------------------------------------------------------------------


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("mask", "file", "directory"), [(0, 0o660, 0o770), (0o022, 0o640, 0o750), (0o77, 0o600, 0o700)]
)
def test_others_may_not_read_and_the_group_as_the_umask_says(root: Path, mask: int, file: int, directory: int) -> None:
    with umask(mask):
        DirectoryStore(str(root), STUDY).write("12/3-7", b"state")
    made = [root, root / STUDY, root / STUDY / "12"]
    assert [path.stat().st_mode & 0o777 for path in made] == [directory] * 3
    assert (root / STUDY / "12" / "3-7").stat().st_mode & 0o777 == file


AS_USERS = """
import os, sys
from studies.checkpoint_stores import open_store
from studies.errors import CheckpointError

root, study, mask = sys.argv[1], sys.argv[2], int(sys.argv[3], 8)

def act(user, group, body):
    pid = os.fork()
    if pid == 0:
        os.umask(mask)
        os.setgroups([group]); os.setgid(user); os.setuid(user)
        try:
            body(open_store(root, study))
        except CheckpointError as exc:
            print(exc, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""


def as_users(body: str, root: Path, mask: str = "022") -> str:
    argv = [sys.executable, "-c", AS_USERS + body, str(root), STUDY, mask]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert not done.stderr, done.stderr
    return done.stdout


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="studyhall-checkpoints-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@needs_root
def test_two_users_share_a_study_in_a_directory_of_their_group(public: Path) -> None:
    os.chown(public, 0, 4242)
    public.chmod(0o2775)
    body = """
act(4001, 4242, lambda store: (store.check(), store.write("12/1-1", b"by one")))
act(4002, 4242, lambda store: (store.check(), print(store.read("12/1-1")), store.write("12/2-1", b"by another")))
act(4002, 4242, lambda store: store.delete(["12/1-1"]))
act(4001, 4242, lambda store: (print(store.names()), store.delete(store.names())))
act(4003, 4003, lambda store: store.write("12/1-1", b"by a stranger"))
"""
    told = as_users(body, public, "007").splitlines()
    assert told[:2] == ["b'by one'", "['12/2-1']"]
    assert told[2].endswith("let user 4003 read and write there")
    assert everything(public) == []


@needs_root
def test_a_directory_that_one_may_not_write_is_refused_with_what_to_do(public: Path) -> None:
    (public / "checkpoints").mkdir(mode=0o755)
    root = public / "checkpoints"
    DirectoryStore(str(root), STUDY).write("12/1-1", b"state")
    body = f"""
for call in (lambda s: s.check(), lambda s: s.write("12/1-2", b"x"), lambda s: s.read("12/1-1"), lambda s: s.names()):
    act({NOBODY}, {NOBODY}, call)
"""
    told = as_users(body, root).splitlines()
    advice = f"(Permission denied): mount it writable, and let user {NOBODY} read and write there"
    assert told[0].startswith(f"{root}/{STUDY}/")
    assert told[0].endswith(f"/0-0 cannot be written {advice}")
    assert told[1:] == [
        f"{root}/{STUDY}/12/1-2 cannot be written {advice}",
        f"{root}/{STUDY}/12/1-1 cannot be read {advice}",
        f"{root} cannot be read {advice}",
    ]
    assert everything(root) == [STUDY, f"{STUDY}/12", f"{STUDY}/12/1-1"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the test above shows it for root")
def test_a_directory_without_write_permission_is_refused(store: DirectoryStore, root: Path) -> None:
    root.chmod(0o500)
    try:
        assert "cannot be written (Permission denied)" in refusal(store.check)
    finally:
        root.chmod(0o700)
    assert everything(root) == []


# -- disks ---------------------------------------------------------------------------------------------


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """A small disk of its own; yields how to change its options."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield lambda changed: subprocess.run(["mount", "-o", f"remount,{changed}", folder], check=True) and None
    finally:
        subprocess.run(["umount", folder], check=True)


@needs_root
def test_a_full_disk_costs_the_new_checkpoint_alone(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=64k") as change:
        root = tmp_path / "disk"
        store = DirectoryStore(str(root), STUDY)
        store.check()
        store.write("12/3-7", b"a" * 30_000)
        before = everything(root)
        full = f"{root} is full (No space left on device): free some space there, or raise the quota"
        for name in ("12/3-8", "12/3-7", "13/1-1"):
            assert refusal(lambda name=name: store.write(name, b"b" * 60_000)) == full
        assert everything(root) == before
        assert store.read("12/3-7") == b"a" * 30_000
        change("size=1m")
        store.write("12/3-8", b"b" * 60_000)
        assert store.names() == ["12/3-7", "12/3-8"]


@needs_root
def test_a_disk_without_room_for_a_directory_is_full_too(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "nr_inodes=2"):
        store = DirectoryStore(str(tmp_path / "disk"), STUDY)
        assert "is full" in refusal(store.check)
        assert everything(tmp_path / "disk") == []


@needs_root
def test_a_read_only_disk_still_gives_checkpoints_back(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=64k") as change:
        store = DirectoryStore(str(tmp_path / "disk"), STUDY)
        store.write("12/3-7", b"state")
        change("ro")
        for call in (store.check, lambda: store.write("12/3-8", b"x"), lambda: store.delete(["12/3-7"])):
            assert "(Read-only file system): mount it writable" in refusal(call)
        assert DirectoryStore(str(tmp_path / "disk"), STUDY).read("12/3-7") == b"state"
        assert store.names() == ["12/3-7"]
        change("rw")


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def spy(name: str, what: Callable[..., str]) -> None:
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, **kwargs: (real(*args, **kwargs), done.append(what(*args)))[0])

    inodes = {root.stat().st_ino: "root"}
    spy("fsync", lambda fd: "sync " + inodes.get(os.fstat(fd).st_ino, "new"))
    spy("replace", lambda _, file: f"rename to {file}")
    store.write("12/3-7", b"state")
    # Root, study's directory, the file; its name, and the trial's directory, which holds that.
    assert done == ["sync root", "sync new", "sync new", "rename to 3-7", "sync new"]


# -- writers that are killed ---------------------------------------------------------------------------

WRITER = """
import os, sys, time
from studies.checkpoint_stores import DirectoryStore

root, study, stage = sys.argv[1:4]
store = DirectoryStore(root, study)

def stop(*args, **kwargs):
    print("here", flush=True)
    time.sleep(60)

real = os.fsync
def stop_at_the_file(fd):
    return stop() if os.path.isfile(f"/proc/self/fd/{fd}") else real(fd)

if stage == "sync":
    os.fsync = stop_at_the_file
elif stage == "rename":
    os.replace = stop
for name in sys.argv[4:]:
    store.write(name, name.encode() * 1_000_000)
    print(name, flush=True)
"""


@contextmanager
def writer(root: Path, stage: str, *names: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", WRITER, str(root), STUDY, stage, *names]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def kill_in_the_middle(root: Path, stage: str, name: str) -> None:
    with writer(root, stage, name) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("stage", ["sync", "rename"])
def test_a_writer_killed_in_the_middle_leaves_the_earlier_checkpoint_and_no_new_name(
    store: DirectoryStore, root: Path, stage: str
) -> None:
    store.write("12/3-7", b"earlier")
    kill_in_the_middle(root, stage, "12/3-8")
    assert store.names() == ["12/3-7"]
    assert store.read("12/3-7") == b"earlier"
    assert store.read("12/3-8") is None
    assert len(everything(root)) == 4  # what it has half-written
    store.write("12/4-1", b"by the next")
    store.delete(["12/3-7", "12/4-1"])
    assert everything(root) == []


def half_written(root: Path) -> list[Path]:
    return [*(root / STUDY / "12").glob(".*.part")]


def test_what_a_writer_killed_at_its_first_checkpoint_left_is_removed_after_an_hour(
    store: DirectoryStore, root: Path
) -> None:
    kill_in_the_middle(root, "rename", "12/3-7")
    (part,) = half_written(root)
    store.write("13/1-1", b"another trial")
    store.delete(["13/1-1"])
    assert store.names() == []
    assert half_written(root) == [part]  # its writer may be alive
    os.utime(part, (time.time() - 4000,) * 2)
    assert store.names() == []
    assert everything(root) == []


def test_clearing_a_study_leaves_nothing_however_new(store: DirectoryStore, root: Path) -> None:
    other = DirectoryStore(str(root), str(uuid.uuid4()))
    other.write("12/3-7", b"another study")
    kill_in_the_middle(root, "rename", "12/3-7")
    os.utime(half_written(root)[0], (time.time() + 100,) * 2)  # a file server's clock runs ahead
    store.write("13/1-1", b"state")
    store.clear()
    store.clear()
    assert not (root / STUDY).exists()
    assert other.read("12/3-7") == b"another study"


def test_a_slow_first_checkpoint_outlives_whoever_looks_meanwhile(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace
    looks: list[list[str]] = []

    def look_first(*args: str, **descriptors: int) -> None:
        looks.append(store.names())
        real(*args, **descriptors)

    monkeypatch.setattr(os, "replace", look_first)
    store.write("12/3-7", b"state")
    assert looks == [[]]  # it was written once, not again and again
    assert store.read("12/3-7") == b"state"


def test_wherever_a_writer_is_killed_each_name_that_is_there_is_complete(store: DirectoryStore, root: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    names = [f"12/1-{i}" for i in range(1000)]
    for _ in range(5):
        with writer(root, "none", *names) as process:
            assert process.stdout is not None
            told = [process.stdout.readline().strip() for _ in range(3)]
            time.sleep(draw.random() * 0.05)
            process.send_signal(signal.SIGKILL)
        found = store.names()
        assert {*told} <= {*found}
        for name in found:
            assert store.read(name) == name.encode() * 1_000_000
        store.delete(found)
        assert everything(root) == []


def test_an_interrupted_write_leaves_nothing(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    store.write("12/3-7", b"earlier")
    before = everything(root)
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: interrupt(fd) if os.fstat(fd).st_mode & 0o100000 else real(fd))
    with pytest.raises(KeyboardInterrupt):
        store.write("12/3-8", b"more")
    assert everything(root) == before


# -- links ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [STUDY, f"{STUDY}/12", f"{STUDY}/12/3-7"])
@pytest.mark.parametrize("checked", [True, False], ids=["before", "made after the check"])
def test_a_link_below_the_root_is_not_followed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str, checked: bool
) -> None:
    store = DirectoryStore(str(root), STUDY)
    outside = tmp_path / "outside"
    (outside / "12").mkdir(parents=True)
    for name in ("3-7", "12/3-7"):
        (outside / name).write_bytes(b"precious")
    before = everything(outside)
    place = root / link
    place.parent.mkdir(parents=True, exist_ok=True)
    is_file = link.endswith("3-7")
    place.symlink_to(outside / "3-7" if is_file else outside)
    if not checked:
        monkeypatch.setattr(DirectoryStore, "_refuse_link", lambda *_: None)
    calls = [lambda: store.read("12/3-7")]
    if checked or not is_file:
        calls.append(lambda: store.write("12/3-7", b"new"))
    if not is_file:
        calls += [store.names, lambda: store.delete(["12/3-7"])]
    for call in calls:
        told = refusal(call)
        if checked:
            assert told.startswith(f"{place} is a link to {place.readlink()}, and no link is followed there")
    if is_file:
        store.delete(["12/3-7"])  # the link itself
        assert not place.is_symlink()
    assert everything(outside) == before
    assert (outside / "3-7").read_bytes() == (outside / "12" / "3-7").read_bytes() == b"precious"


def test_a_link_in_the_place_of_a_file_is_at_worst_replaced(
    store: DirectoryStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (root / STUDY / "12").mkdir(parents=True)
    (root / STUDY / "12" / "3-7").symlink_to(tmp_path / "precious")
    monkeypatch.setattr(DirectoryStore, "_refuse_link", lambda *_: None)  # made after the check
    store.write("12/3-7", b"new")
    assert store.read("12/3-7") == b"new"
    assert (tmp_path / "precious").read_bytes() == b"precious"


# -- side by side --------------------------------------------------------------------------------------


def test_files_of_others_in_the_directory_are_left_alone(store: DirectoryStore, root: Path) -> None:
    store.write("12/3-7", b"state")
    others = [
        root / "README",
        root / STUDY / "notes",
        root / STUDY / "12" / ".nfs000123",
        root / STUDY / "12" / "3-7.bak",
    ]
    for other in others:
        other.write_text("precious")
    assert store.names() == ["12/3-7"]
    store.delete(["12/3-7"])
    assert all(other.read_text() == "precious" for other in others)


def test_studies_in_one_directory_do_not_see_each_other(root: Path) -> None:
    one, other = (open_store(str(root), str(uuid.uuid4())) for _ in range(2))
    one.write("12/3-7", b"one")
    assert other.read("12/3-7") is None
    assert other.names() == []
    other.delete(["12/3-7"])
    assert one.read("12/3-7") == b"one"


def test_writers_and_those_that_tidy_up_do_not_disturb_each_other(root: Path) -> None:
    ends = time.monotonic() + 1.5
    failures: list[BaseException] = []

    def work(trial: int) -> None:
        store = DirectoryStore(str(root), STUDY)
        sequence = 0
        try:
            while time.monotonic() < ends:
                sequence += 1
                name, data = f"{trial}/1-{sequence}", os.urandom(100)
                store.write(name, data)
                assert store.read(name) == data
                store.delete([name])
        except BaseException as exc:
            failures.append(exc)

    def tidy() -> None:
        store = DirectoryStore(str(root), STUDY)
        try:
            while time.monotonic() < ends:
                store.names()
                store.check()
                time.sleep(0.005)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(trial,)) for trial in (1, 1000, 3)] + [threading.Thread(target=tidy)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert everything(root) == []


def test_a_check_tells_of_a_disk_that_forgets(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda fd, mode: real(fd, mode) if mode == "wb" else _Forgetful(fd))
    assert "does not keep or delete what it is told to" in refusal(store.check)
    assert everything(root) == []


class _Forgetful:
    def __init__(self, descriptor: int) -> None:
        os.close(descriptor)

    def __enter__(self) -> _Forgetful:
        return self

    def __exit__(self, *_: object) -> None: ...

    def read(self) -> bytes:
        return b""


@pytest.mark.parametrize(
    ("location", "allow"),
    [
        ("postgresql", []),
        ("{}/data", []),
        ("{}/data/checkpoints", []),
        ("{}/shared", ["store={}/shared"]),
        ("{}/shared/deep/er", ["lab.", "store={}/shared/"]),
        ("{}/to-shared/x", ["store={}/shared"]),
        ("s3://bucket/prefix", ["store=s3://bucket"]),
        ("s3://bucket/prefix", ["store=s3://bucket/prefix/"]),
    ],
)
def test_a_study_keeps_checkpoints_where_the_operator_lets_it(tmp_path: Path, location: str, allow: list[str]) -> None:
    (tmp_path / "to-shared").symlink_to("shared")
    allow = [entry.replace("{}", str(tmp_path)) for entry in allow]
    require_allowed(location.replace("{}", str(tmp_path)), allow, tmp_path / "data", "study")


@pytest.mark.parametrize("location", ["/", "/etc", "{}", "{}/database", "{}/data/out", "{}/sharedly", "s3://bucket/p"])
@pytest.mark.parametrize(
    "allow", [[], ["lab.", "{}/shared", "/"], ["store="], ["store={}/shared", "store=s3://bucket/pre"]]
)
def test_and_nowhere_else(tmp_path: Path, location: str, allow: list[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "out").symlink_to("/etc")
    location = location.replace("{}", str(tmp_path))
    allow = [entry.replace("{}", str(tmp_path)) for entry in allow]
    told = refusal(lambda: require_allowed(location, allow, tmp_path / "data", "study"))
    assert told.startswith(f"study 'study' keeps checkpoints in {location!r}, which this machine does not allow")
    assert f"--allow store={location}" in told
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]
