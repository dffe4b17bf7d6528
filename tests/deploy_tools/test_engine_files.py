"""The sidecar: what it keeps, what damage it notices, and where an engine may be loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from deploy_tools.engine_files import (
    NO_GPU,
    EngineLayer,
    Sidecar,
    read_sidecar,
    require_match,
    require_writable,
    sidecar_path,
    write_engine,
)
from deploy_tools.errors import ArtifactError, OutputError, UserError

DATA = b"an engine"
LAYERS = (
    EngineLayer("input", "kgen", "fp32", (("input", "fp32"),), (("q", "int8"),), ()),
    EngineLayer("conv1", "gemm", "int8", (("q", "int8"),), (("y", "fp32"),), ("conv1", "conv1/q")),
)
SIDECAR = Sidecar(
    flavour="tensorrt",
    tensorrt_version="10.16.1.11",
    gpu="NVIDIA L4",
    compute_capability="8.9",
    onnx_sha256="0" * 64,
    engine_sha256=hashlib.sha256(DATA).hexdigest(),
    precision="int8+fp16",
    input_name="input",
    output_names=("logits",),
    profile={"min": [1, 3, 8, 8], "opt": [4, 3, 8, 8], "max": [16, 3, 8, 8]},
    tf32=False,
    hardware_compatible=False,
    version_compatible=False,
    workspace_bytes=1 << 30,
    input_spec={"size": [8, 8]},
    layers=LAYERS,
    build_seconds=1.5,
    versions={"deploy-tools": "0.1.0", "tensorrt": "10.16.1.11"},
)
HERE = {"flavour": "tensorrt", "tensorrt_version": "10.16.1.11", "gpu_name": "NVIDIA L4", "compute_capability": "8.9"}  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    write_engine(path, DATA, SIDECAR)
    return path


def damaged(engine: Path, **changes: Any) -> Path:
    """The sidecar with some fields replaced, or removed where the value is Ellipsis."""
    path = sidecar_path(engine)
    values = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}), "utf-8")
    return path


def test_a_sidecar_is_read_back_as_it_was(engine: Path) -> None:
    assert engine.read_bytes() == DATA
    assert sidecar_path(engine) == engine.parent / "model.engine.json"
    assert read_sidecar(engine) == SIDECAR
    assert read_sidecar(engine).schema == 1
    plain = dataclasses.replace(SIDECAR, workspace_bytes=None, input_spec=None, gpu=NO_GPU)
    write_engine(engine, DATA, plain)
    assert read_sidecar(engine) == plain
    assert sorted(p.name for p in engine.parent.iterdir()) == ["model.engine", "model.engine.json"]


def test_a_missing_engine_and_a_missing_sidecar(engine: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_sidecar(engine.with_name("other.engine"))
    sidecar_path(engine).unlink()
    with pytest.raises(ArtifactError, match=r"model\.engine\.json is not beside it") as caught:
        read_sidecar(engine)
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "schema is 2"),
        ({"schema": ...}, "schema is None"),
        ({"flavour": 3}, "flavour is not text"),
        ({"gpu": None}, "gpu is not text"),
        ({"engine_sha256": "abc"}, "engine_sha256 is not a sha256"),
        ({"onnx_sha256": ...}, "lacks onnx_sha256"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"tf32": "no"}, "tf32 is not true or false"),
        ({"workspace_bytes": 0}, "workspace_bytes is not a whole number above 0"),
        ({"workspace_bytes": True}, "workspace_bytes is not a whole number"),
        ({"input_spec": []}, "input_spec is not a table"),
        ({"build_seconds": "1"}, "build_seconds is not a number"),
        ({"versions": {"onnx": 1}}, "versions onnx is not text"),
        ({"versions": {}}, "flavour is tensorrt, which its versions do not list"),
        ({"flavour": "tensorrt-rtx"}, "flavour is tensorrt-rtx, which its versions do not list"),
        ({"flavour": "foo"}, "flavour is 'foo', not one of tensorrt, tensorrt-rtx"),
        ({"build_seconds": float("nan")}, "JSON compliant"),
        ({"build_seconds": -1.5}, "build_seconds is not a time"),
        ({"build_seconds": 10**400}, "build_seconds is not a time"),
        ({"input_spec": {"mean": [float("inf")]}}, "JSON compliant"),
        ({"input_name": "\ud800"}, "surrogates not allowed"),
        ({"workspace_bytes": 2**63}, "workspace_bytes is larger than any"),
        ({"output_names": "logits"}, "output_names is not a list"),
        ({"profile": {"min": [1], "opt": [1]}}, "profile does not have min, opt and max"),
        ({"profile": {"min": [1], "opt": [1], "max": ["8"]}}, "profile max is not a whole number"),
        ({"profile": {"min": [4, 3], "opt": [1, 3], "max": [8, 3]}}, "not in the order"),
        ({"profile": {"min": [1], "opt": [1, 3], "max": [8, 3]}}, "different lengths"),
        ({"profile": {"min": [], "opt": [], "max": []}}, "different lengths"),
        ({"layers": {}}, "layers is not a list"),
        ({"layers": [{"name": "x"}]}, r"layers\[0\] lacks inputs, kind"),
        ({"layers": ["x"]}, r"layers\[0\] is not a table"),
        ({"extra": 1}, "unknown field extra"),
    ],
)
def test_damage_is_named_by_its_field(engine: Path, changes: dict[str, Any], words: str) -> None:
    damaged(engine, **changes)
    with pytest.raises(ArtifactError, match=words) as caught:
        read_sidecar(engine)
    assert caught.value.exit_code == 7


def test_a_layer_with_a_broken_tensor_is_damage(engine: Path) -> None:
    layer = dataclasses.asdict(LAYERS[0])
    for inputs in ([["x"]], [["x", 1]], "x"):
        damaged(engine, layers=[layer | {"inputs": inputs}])
        with pytest.raises(ArtifactError, match=r"layers\[0\] inputs"):
            read_sidecar(engine)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_a_sidecar_is_damage(engine: Path, content: bytes) -> None:
    sidecar_path(engine).write_bytes(content)
    with pytest.raises(ArtifactError, match="is damaged"):
        read_sidecar(engine)


@pytest.mark.parametrize("length", range(2, 200, 23))
def test_a_truncated_sidecar_is_damage(engine: Path, length: int) -> None:
    path = sidecar_path(engine)
    path.write_bytes(path.read_bytes()[:-length])
    with pytest.raises(ArtifactError, match="is damaged"):
        read_sidecar(engine)


@pytest.mark.parametrize("content", [b"", DATA[:-1], DATA + b"x", b"another"])
def test_another_engine_is_noticed(engine: Path, content: bytes) -> None:
    engine.write_bytes(content)
    with pytest.raises(ArtifactError, match="engine_sha256") as caught:
        read_sidecar(engine)
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("broken", ["model.engine", "model.engine.json"])
def test_a_failed_write_leaves_both_files_as_they_were(engine: Path, broken: str) -> None:
    before = {p.name: p.read_bytes() for p in engine.parent.iterdir()}
    assert sorted(before) == ["model.engine", "model.engine.json"]
    # A folder where this file is first written: it fails behind every check.
    part = engine.parent / f".{broken}.{os.getpid()}.part"
    part.mkdir()
    with pytest.raises(OutputError, match=broken):
        write_engine(engine, b"new", dataclasses.replace(SIDECAR, precision="fp32"))
    part.rmdir()
    assert {p.name: p.read_bytes() for p in engine.parent.iterdir()} == before


@pytest.mark.parametrize("broken", ["model.engine", "model.engine.json"])
def test_a_folder_in_the_place_of_a_file_leaves_the_other_as_it_was(
    engine: Path, broken: str
) -> None:
    (engine.parent / broken).unlink()
    (engine.parent / broken).mkdir()
    before = {p.name: p.read_bytes() for p in engine.parent.iterdir() if p.is_file()}
    with pytest.raises(OutputError, match="is a folder"):
        write_engine(engine, b"new", SIDECAR)
    assert {p.name: p.read_bytes() for p in engine.parent.iterdir() if p.is_file()} == before


def test_where_nothing_can_be_written_is_known_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_writable(tmp_path / "new" / "folder" / "m.engine")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"m\.engine cannot be written: .*file is not a folder"):
        require_writable(tmp_path / "m.engine", tmp_path / "file" / "sub" / "m.engine")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write all
    with pytest.raises(OutputError, match=f"{tmp_path} cannot be written to") as caught:
        require_writable(tmp_path / "new" / "m.engine")
    assert caught.value.exit_code == 8


def test_an_engine_fits_where_it_was_built() -> None:
    require_match(Path("m.engine"), SIDECAR, **HERE)
    known = {k: v for k, v in HERE.items() if k not in ("gpu_name", "compute_capability")}
    require_match(Path("m.engine"), SIDECAR, **known)


@pytest.mark.parametrize(
    ("field", "there", "here"),
    [
        ("flavour", "tensorrt", "tensorrt-rtx"),
        ("tensorrt_version", "10.16.1.11", "10.16.1.12"),
        ("compute_capability", "8.9", "8.6"),
        ("gpu", "NVIDIA L4", "NVIDIA L40"),
    ],
)
def test_a_mismatch_names_the_field_and_both_values(field: str, there: str, here: str) -> None:
    values = HERE | {"gpu_name" if field == "gpu" else field: here}
    with pytest.raises(ArtifactError) as caught:
        require_match(Path("m.engine"), SIDECAR, **values)
    assert f"{field} is {there} in its sidecar and {here} here" in str(caught.value)
    assert "deploy-tools build" in str(caught.value)
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("built", "runtime", "fits"),
    [
        ("10.12.0", "10.16.1", True),
        ("10.12.0.36", "10.12.0.36", True),
        ("10.12.0", "10.12.1", True),
        ("10.16.1", "10.12.0", False),
        ("10.12.0", "11.4.0", True),  # support matrix of 11.4.1
        ("11.4.0", "10.16.1", False),
        ("10.12.0", "12.0.0", False),
        ("", "10.12.0", False),
    ],
)
def test_version_compatible_engines(built: str, runtime: str, fits: bool) -> None:
    sidecar = dataclasses.replace(SIDECAR, tensorrt_version=built, version_compatible=True)
    here = HERE | {"tensorrt_version": runtime}
    if fits:
        require_match(Path("m.engine"), sidecar, **here)
    else:
        with pytest.raises(ArtifactError, match="tensorrt_version"):
            require_match(Path("m.engine"), sidecar, **here)


@pytest.mark.parametrize(("capability", "fits"), [("8.0", True), ("8.6", True), ("12.0", True), ("7.5", False)])  # fmt: skip
def test_hardware_compatible_engines(capability: str, fits: bool) -> None:
    sidecar = dataclasses.replace(SIDECAR, hardware_compatible=True)
    here = HERE | {"compute_capability": capability, "gpu_name": "another"}
    if fits:
        require_match(Path("m.engine"), sidecar, **here)
    else:
        with pytest.raises(ArtifactError, match=r"compute_capability is 8\.0 or newer"):
            require_match(Path("m.engine"), sidecar, **here)


def test_an_engine_for_rtx_is_bound_to_no_gpu_but_to_its_version() -> None:
    sidecar = dataclasses.replace(SIDECAR, flavour="tensorrt-rtx", tensorrt_version="1.7.1.116")
    here = HERE | {"flavour": "tensorrt-rtx", "gpu_name": "another", "compute_capability": "12.0"}
    require_match(Path("m.engine"), sidecar, **here | {"tensorrt_version": "1.7.1.116"})
    with pytest.raises(ArtifactError, match="tensorrt_version"):
        require_match(Path("m.engine"), sidecar, **here | {"tensorrt_version": "1.8.0.1"})


def test_a_sidecar_is_the_same_text_every_time(engine: Path) -> None:
    before = sidecar_path(engine).read_bytes()
    write_engine(engine, DATA, read_sidecar(engine))
    assert sidecar_path(engine).read_bytes() == before
