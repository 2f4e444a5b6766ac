"""What lies in deploy/ is well formed, as far as can be told without an engine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

UNIT = ROOT / "deploy" / "systemd" / "studyhall-worker@.service"


def test_the_systemd_unit_is_clean(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze: apt-get install systemd")
    # It wants the program to be there, which is where the runbook installs it.
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    mine = [line for line in done.stderr.splitlines() if UNIT.name.partition("@")[0] in line]
    assert (done.returncode, mine) == (0, []), done.stderr


@pytest.mark.parametrize("files", [["docker-compose.yml"], ["docker-compose.yml", "deploy/docker-compose.gpu.yml"]])
def test_the_compose_files_are_clean(files: list[str]) -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("no docker-compose: apt-get install docker-compose")
    options = [option for file in files for option in ("-f", file)]
    done = subprocess.run(["docker-compose", *options, "config"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    # Passwords come by files alone.
    assert "PASSWORD_FILE" in done.stdout
    assert not re.search(r"PASSWORD: |:[^/\s]+@postgres", done.stdout)
    for published in re.findall(r"published: .*|- \S+:\d+:\d+/?\w*$", done.stdout, flags=re.MULTILINE):
        assert "127.0.0.1" in published or published.startswith("published")


def test_scripts_of_the_shell_are_clean() -> None:
    for script in (ROOT / "deploy" / "secrets.sh", ROOT / "deploy" / "postgres" / "initdb" / "10-roles.sh"):
        subprocess.run(["sh", "-n", script], check=True)
        assert script.stat().st_mode & 0o111, f"{script} is not executable"


def test_passwords_are_made_once_and_for_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy" / "secrets.sh", tmp_path / "deploy")
    said = [
        subprocess.run([tmp_path / "deploy" / "secrets.sh"], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    secrets = tmp_path / "secrets"
    assert secrets.stat().st_mode & 0o777 == 0o700
    contents = {file.name: file.read_text() for file in secrets.iterdir()}
    assert len(contents) == 10
    assert len({text for name, text in contents.items() if "." not in name}) == 6
    assert all(len(text) == 32 for name, text in contents.items() if "." not in name)
    for role in ("owner", "worker", "viewer", "mlflow"):
        assert contents[f"{role}.pgpass"] == f"postgres:5432:*:studyhall_{role}:{contents[role]}\n"
        assert (secrets / f"{role}.pgpass").stat().st_mode & 0o777 == 0o600
    assert (secrets / "sites").stat().st_mode & 0o777 == 0o600
    assert "made secrets/sites" in said[0]
    assert "made" not in said[1]
    assert not any(text.strip() in out for out in said for text in contents.values())
