"""MODEL.tune.json: written, read, damaged, of another file, of another machine."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from deploy_tools.artifacts import ArtifactDirectory, read_manifest, sha256_of_file
from deploy_tools.errors import ArtifactError, UserError
from deploy_tools.tuning.files import (
    Tuning,
    has_manifest,
    read_tuning,
    tuning_path,
    write_tuning,
)
from deploy_tools.tuning.settings import Settings

MACHINE = {
    "cpu": {"model": "A CPU", "cores_usable": 2, "flags": ["amx_int8"]},
    "cpus_allowed": None,
    "packages": {"onnxruntime": "1.31.1", "onnxruntime-ep-openvino": "1.8.1"},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"a model")
    return path


def tuning_of(model: Path, **changes: Any) -> Tuning:
    settings = Settings("openvino", 2, 2, False, batch=16)
    measured = {"chosen": {"speedup": 1.5}}
    tuning = Tuning(sha256_of_file(model), MACHINE, None, settings, False, Settings(), measured)
    return replace(tuning, **changes)


def test_what_is_written_is_read(model: Path) -> None:
    wanted = tuning_of(model, latency_limit_ms=7.5)
    assert write_tuning(model, wanted, None) == tuning_path(model)
    assert tuning_path(model).name == "m.onnx.tune.json"
    assert read_tuning(model) == wanted
    assert wanted.goal == "throughput with p99 within 7.5 ms"
    assert tuning_of(model).goal == "throughput"


def test_without_one_there_is_none(model: Path) -> None:
    assert read_tuning(model) is None
    assert not has_manifest(model)


def test_of_another_file_it_is_refused(model: Path) -> None:
    write_tuning(model, tuning_of(model), None)
    model.write_bytes(b"another model")
    with pytest.raises(ArtifactError, match="made for another file") as caught:
        read_tuning(model)
    assert caught.value.exit_code == 7
    model.unlink()
    with pytest.raises(UserError, match="does not exist"):
        read_tuning(model)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), []),
        (("schema",), 2),
        (("more",), 1),
        (("model_sha256",), 7),
        (("machine",), "x"),
        (("is_default",), 1),
        (("measured",), None),
        (("latency_limit_ms",), -1),
        (("latency_limit_ms",), True),
        (("compared_with",), None),
        (("compared_with", "threads"), -1),
        (("measured", "chosen", "speedup"), float("nan")),
        (("measured", "chosen", "speedup"), float("inf")),
        (("measured", "chosen", "note"), "\ud800"),
        (("machine", "cpu", "model"), "\udfff"),
        (("settings",), None),
        (("settings", "runtime"), "tensorrt"),
        (("settings", "runtime"), 3),
        (("settings", "precision"), "int4"),
        (("settings", "threads"), -1),
        (("settings", "threads"), True),
        (("settings", "streams"), 0),
        (("settings", "streams"), 1.5),
        (("settings", "batch"), 0),
        (("settings", "pinned"), 1),
        (("settings", "spinning"), None),
        (("settings", "unknown"), 1),
    ],
    ids=str,
)
def test_damage_is_named(model: Path, path: tuple[str, ...], value: Any) -> None:
    values: Any = asdict(tuning_of(model))
    table = values
    for key in path[:-1]:
        table = table[key]
    if path:
        table[path[-1]] = value
    tuning_path(model).write_text(json.dumps(values if path else value))
    with pytest.raises(ArtifactError, match="is damaged"):
        read_tuning(model)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00", "null"])
def test_no_json(model: Path, text: str) -> None:
    tuning_path(model).write_text(text)
    with pytest.raises(ArtifactError, match="is damaged"):
        read_tuning(model)


def changed(path: str, value: Any) -> dict[str, Any]:
    machine = json.loads(json.dumps(MACHINE))
    table = machine
    *above, last = path.split("/")
    for key in above:
        table = table[key]
    table[last] = value
    return machine


def test_what_differs_on_another_machine_is_named(model: Path) -> None:
    tuning = tuning_of(model)
    assert tuning.differences(MACHINE) == []
    assert tuning.differences(changed("cpu/cores_usable", 4)) == ["cores_usable was 2 and is 4"]
    assert tuning.differences(changed("cpus_allowed", 1.5)) == ["cpus_allowed was None and is 1.5"]
    newer = changed("packages/onnxruntime", "1.32")
    assert tuning.differences(newer) == ["onnxruntime was 1.31.1 and is 1.32"]


def test_what_only_one_side_knows_differs(model: Path) -> None:
    tuning = tuning_of(model)
    less = {key: value for key, value in MACHINE.items() if key != "cpus_allowed"}
    nothing = replace(tuning, machine={}).differences(MACHINE)
    assert "model was None and is A CPU" in nothing
    assert "onnxruntime was None and is 1.31.1" in nothing
    assert tuning.differences({}) != []
    limited = changed("cpus_allowed", 1.5)
    assert replace(tuning, machine=less).differences(limited) == [
        "cpus_allowed was None and is 1.5"
    ]


def test_only_the_runtime_that_is_used_has_to_be_the_same(model: Path) -> None:
    gone = changed("packages/onnxruntime-ep-openvino", None)
    assert tuning_of(model).differences(gone) != []
    assert tuning_of(model, settings=Settings()).differences(gone) == []


def test_the_manifest_lists_it(model: Path) -> None:
    with ArtifactDirectory(model.parent) as directory:
        directory.add("int8", "m.onnx", "quantize", {}, {})
        assert has_manifest(model)
        write_tuning(model, tuning_of(model), directory)
    listed = read_manifest(model.parent)["m.onnx.tune.json"]
    assert listed.stage == "tune"
    assert listed.parents == {"int8": sha256_of_file(model)}
    assert listed.sha256 == sha256_of_file(tuning_path(model))
