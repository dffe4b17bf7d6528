"""Fetching Fashion-MNIST: looked for first, then apt, and only as root."""

from __future__ import annotations

import subprocess
import urllib.error
from pathlib import Path

import pytest

from deploy_tools.data import fashion_mnist, fetch

FILES = [f"{a}-{b}-ubyte.gz" for a in ("train", "t10k") for b in ("images-idx3", "labels-idx1")]
Capture = pytest.CaptureFixture[str]


class Apt:
    """Stands in for subprocess.run; `install` puts the files where Debian's package does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.works = True
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_options: object) -> None:
        self.commands.append(command)
        if command[1] == "install" and self.works:
            put(self.folder)


def put(folder: Path) -> None:
    folder.mkdir()
    for name in FILES:
        (folder / name).touch()


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    """A machine of root's with apt, without the data and without a network."""

    def unreachable(*_args: object, **_options: object) -> None:
        raise urllib.error.URLError("no route to host")

    found = Apt(tmp_path / "debian")
    monkeypatch.setenv("DEPLOY_TOOLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr(subprocess, "run", found)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return found


def test_what_is_there_is_not_fetched(apt: Apt, tmp_path: Path, capsys: Capture) -> None:
    put(tmp_path / "debian")
    assert fetch.main() == 0
    assert str(tmp_path / "debian") in capsys.readouterr().out
    assert apt.commands == []


def test_without_root_it_says_the_command(
    apt: Apt, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert fetch.main() == 2
    assert "apt-get install dataset-fashion-mnist" in capsys.readouterr().err
    assert apt.commands == []


def test_without_apt_it_says_where_to_put_the_files(
    apt: Apt, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert fetch.main() == 2
    assert "train-images-idx3-ubyte.gz" in capsys.readouterr().err
    assert apt.commands == []


def test_as_root_it_installs_the_package(apt: Apt, tmp_path: Path, capsys: Capture) -> None:
    assert fetch.main() == 0
    assert apt.commands == [
        ["apt-get", "update", "-q"],
        ["apt-get", "install", "-y", "-q", "dataset-fashion-mnist"],
    ]
    assert str(tmp_path / "debian") in capsys.readouterr().out.splitlines()[-1]


def test_an_installation_that_fails(apt: Apt, capsys: Capture) -> None:
    apt.works = False
    assert fetch.main() == 2
    assert len(apt.commands) == 2
    assert "not on this machine" in capsys.readouterr().err
