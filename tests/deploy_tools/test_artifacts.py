"""The artifact directory: nothing half-written, nothing shared by two runs, nothing believed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from deploy_tools.artifacts import (
    MANIFEST,
    ArtifactDirectory,
    atomic_path,
    package_versions,
    read_manifest,
    sha256_of_file,
    sha256_of_value,
    stage_key,
    write_json,
    write_text,
)
from deploy_tools.errors import ArtifactError, OutputError


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_atomic_path_renames_on_success(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with atomic_path(target) as part:
        part.write_text("done")
        assert not target.exists()
        assert part.parent == target.parent  # a rename across file systems is not atomic
    assert target.read_text() == "done"
    assert names(target.parent) == {"file.txt"}


def test_a_reader_of_the_old_file_never_sees_half_of_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with target.open() as reader:
        write_text(target, "new and longer")
        assert reader.read() == "old"


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_atomic_path_keeps_the_old_file(tmp_path: Path, kind: type[BaseException]) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write() -> None:
        with atomic_path(target) as part:
            part.write_text("half")
            raise kind

    with pytest.raises(kind):
        write()
    assert target.read_text() == "old"
    assert names(tmp_path) == {"file.txt"}


def test_full_disk_is_an_output_error(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "file.txt") as part:
            part.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match="No space left") as caught:
        write()
    assert caught.value.exit_code == 8
    assert names(tmp_path) == set()


def test_another_files_error_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "file.txt"):
            (tmp_path / "input.txt").read_text()

    with pytest.raises(FileNotFoundError):
        write()


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "regular").write_text("")
    for folder in (tmp_path / "regular", tmp_path / "regular" / "a" / "b"):
        with pytest.raises(OutputError, match="cannot be written"):
            write_text(folder / "file.txt", "x")


def test_an_unwritable_ancestor_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tests may run as root, whom no permission bit stops.
    def refuse(path: object, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "a"))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        write_text(tmp_path / "a" / "b" / "file.txt", "x")


def test_write_json_is_sorted_and_without_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [2.5]})
    write_json(tmp_path / "b.json", {"a": [2.5], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [2.5], "b": 1}


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_file(tmp_path / "abc") == known
    assert sha256_of_value({"a": 1, "b": 2}) == sha256_of_value({"b": 2, "a": 1})
    assert sha256_of_value({"a": 1}) != sha256_of_value({"a": 2})


def test_versions_name_what_shapes_an_artifact() -> None:
    assert {"deploy-tools", "onnx", "onnxruntime", "numpy"} <= set(package_versions())


def test_stage_key_depends_on_everything_and_on_no_order() -> None:
    key = stage_key("export", {"opset": 20, "a": 1}, {"x": "1", "y": "2"})
    assert key == stage_key("export", {"a": 1, "opset": 20}, {"y": "2", "x": "1"})
    others = {
        stage_key("fuse", {"opset": 20, "a": 1}, {"x": "1", "y": "2"}),
        stage_key("export", {"opset": 21, "a": 1}, {"x": "1", "y": "2"}),
        stage_key("export", {"opset": 20}, {"x": "1", "y": "2"}),
        stage_key("export", {"opset": 20, "a": 1}, {"x": "1", "y": "3"}),
        stage_key("export", {"opset": 20, "a": 1}, {"x": "1"}),
    }
    assert len(others) == 5
    assert key not in others


def test_stage_key_depends_on_the_tools_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = stage_key("export", {}, {})
    monkeypatch.setattr("deploy_tools.artifacts.__version__", "999")
    assert stage_key("export", {}, {}) != before


def made(root: Path) -> None:
    """Make a directory with one artifact."""
    with ArtifactDirectory(root) as directory:
        directory.path("model.onnx").write_bytes(b"weights")
        directory.add("model", "model.onnx", "export", {"opset": 20}, {"in": "0"}, {"n": 1})


KEY = stage_key("export", {"opset": 20}, {"in": "0"})


def test_find_what_was_added(tmp_path: Path) -> None:
    made(tmp_path)
    with ArtifactDirectory(tmp_path) as directory:
        found = directory.find("model", KEY)
        assert found is not None
        assert (found.size_bytes, found.notes, found.parents) == (7, {"n": 1}, {"in": "0"})
        assert found.sha256 == sha256_of_file(tmp_path / "model.onnx")
        assert directory.find("model", "another key") is None
        assert directory.find("other", KEY) is None


def test_a_changed_file_is_not_found(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"weightz")  # the same size
    with ArtifactDirectory(tmp_path) as directory:
        assert directory.find("model", KEY) is None


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with ArtifactDirectory(tmp_path) as directory:
        assert directory.find("model", KEY) is None


def test_keep_only_forgets_and_leaves_the_file(tmp_path: Path) -> None:
    made(tmp_path)
    with ArtifactDirectory(tmp_path) as directory:
        directory.keep_only(["another"])
        assert not directory.artifacts
    assert read_manifest(tmp_path) == {}
    assert (tmp_path / "model.onnx").is_file()


HOLD = """
import sys
from pathlib import Path
from deploy_tools.artifacts import ArtifactDirectory
from deploy_tools.errors import OutputError
try:
    with ArtifactDirectory(Path(sys.argv[1])):
        print("entered")
except OutputError as error:
    print(error.exit_code, error)
"""


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    def other() -> str:
        command = [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with ArtifactDirectory(tmp_path):
        said = other()
        assert said.startswith("8 ")
        assert "held by another run" in said
    assert other() == "entered\n"


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{")
    for _ in range(2):  # a lock that is kept would give an OutputError the second time
        with pytest.raises(ArtifactError), ArtifactDirectory(tmp_path):
            pass


def test_a_lock_that_cannot_be_had_is_not_blamed_on_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OutputError, match="cannot be locked"), ArtifactDirectory(tmp_path):
        pass


def test_a_folder_below_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="cannot be written") as caught,
        ArtifactDirectory(tmp_path / "file" / "out"),
    ):
        pass
    assert caught.value.exit_code == 8


def test_leftovers_of_a_killed_run_go(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "calibration").mkdir()
    leftovers = [
        tmp_path / ".model.onnx.99999123.part",
        tmp_path / "calibration" / ".a.npz.99999007.part",
    ]
    others = [tmp_path / "notes.part", tmp_path / ".movie.part"]
    for path in (*leftovers, *others):
        path.write_bytes(b"x")
    (tmp_path / ".folder.1.part").mkdir()
    with ArtifactDirectory(tmp_path):
        assert not any(path.exists() for path in leftovers)
        assert all(path.exists() for path in others)  # not ours
    assert (tmp_path / "model.onnx").is_file()


def spoiled(tmp_path: Path, text: bytes) -> ArtifactError:
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(ArtifactError) as caught:
        read_manifest(tmp_path)
    assert str(tmp_path / MANIFEST) in caught.value.message
    assert caught.value.exit_code == 7
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"{}",
        b'{"schema": 1}',
        b'{"schema": 1, "artifacts": []}',
        b'{"schema": 1, "artifacts": {"a": {}}}',
        b'{"schema": 1, "artifacts": {"a": 3}}',
        b'{"schema": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
def test_damaged_manifest(tmp_path: Path, text: bytes) -> None:
    assert "damaged" in spoiled(tmp_path, text).message


def test_manifest_of_another_schema(tmp_path: Path) -> None:
    assert "schema 2" in spoiled(tmp_path, b'{"schema": 2, "artifacts": {}}').message


def edited(tmp_path: Path, **changes: Any) -> bytes:
    made(tmp_path)
    values = json.loads((tmp_path / MANIFEST).read_text())
    values["artifacts"]["model"] |= changes
    return json.dumps(values).encode()


@pytest.mark.parametrize("file", ["../../x", "/etc/passwd", "a/../../x", "..", "", ".", "a\0b"])
def test_a_manifest_cannot_name_files_outside(tmp_path: Path, file: str) -> None:
    assert "outside" in spoiled(tmp_path, edited(tmp_path, file=file)).message


@pytest.mark.parametrize(
    "change", [{"file": 7}, {"sha256": None}, {"key": []}, {"notes": 3}, {"name": "x"}, {"new": 1}]
)
def test_a_manifest_with_wrong_values(tmp_path: Path, change: dict[str, Any]) -> None:
    assert "damaged" in spoiled(tmp_path, edited(tmp_path, **change)).message


def test_a_file_in_a_subfolder_is_fine(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(edited(tmp_path, file="calibration/a.json"))
    assert read_manifest(tmp_path)["model"].file == "calibration/a.json"
