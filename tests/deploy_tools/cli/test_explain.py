"""explain and inspect of engines: what they say, where it comes from, and when they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
import tensorrt_samples as samples

from deploy_tools.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx (Q/DQ, one layer in float) and its engine."""
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("built")
    proto = samples.good()
    proto.graph.node.remove(samples.node(proto, samples.PAIR[1]))
    proto.graph.node.remove(samples.node(proto, samples.PAIR[0]))
    samples.node(proto, "conv2").input[0] = "conv1/relu"
    onnx.save(proto, str(folder / "model.onnx"))
    args = ["build", str(folder / "model.onnx"), "--flavour", "tensorrt-rtx", "-q"]
    assert main([*args, "-o", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("file", ["model.onnx", "model.engine"])
def test_it_tells_what_runs_in_int8_and_why_not(built: Path, file: str, capsys: Capture) -> None:
    assert main(["explain", str(built / file), "-q"]) == 0
    shown = capsys.readouterr().out
    assert "int8+fp32, tensorrt-rtx 1." in shown
    assert "layers from the build log" in shown
    assert 'conv2: its input "conv1/relu" has no Q/DQ' in shown
    assert shown.splitlines()[-1] == "2 of 3 convolutions and Gemms in INT8, 1 in FP32"
    assert "correlation" not in shown


def test_verbose_lists_every_layer_of_the_engine(built: Path, capsys: Capture) -> None:
    assert main(["explain", str(built / "model.engine"), "-v"]) == 0
    shown = capsys.readouterr().out
    assert "correlation" in shown
    assert "int8 -> " in shown


def test_json_has_a_row_for_every_node(built: Path, capsys: Capture) -> None:
    assert main(["explain", str(built / "model.engine"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["products"], found["int8_products"]) == (3, 2)
    rows = {row["node"]: row for row in found["nodes"]}
    assert rows["conv1"]["precision"] == "int8"
    assert rows["conv2"]["reason"]
    assert "build log" in found["layers_from"]


def test_an_engine_alone_is_explained_by_its_sidecar(
    built: Path, tmp_path: Path, capsys: Capture
) -> None:
    for name in ("model.engine", "model.engine.json"):
        shutil.copy(built / name, tmp_path / name)
    assert main(["explain", str(tmp_path / "model.engine")]) == 0
    shown = capsys.readouterr().out
    assert "The ONNX file is not at hand" in shown
    assert "2 of 3 convolutions and Gemms in INT8" in shown
    named = ["explain", str(tmp_path / "model.engine"), "--onnx", str(built / "model.onnx")]
    assert main(named) == 0
    assert "has no Q/DQ" in capsys.readouterr().out


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("tensorrt_rtx")
    proto = samples.good()
    names = {"conv1": "blocks[0]/[/relu]c1", "conv2": "[bold]c2 :x:"}
    for before, after in names.items():
        samples.node(proto, before).name = after
    onnx.save(proto, str(tmp_path / "m.onnx"))
    assert main(["explain", str(tmp_path / "m.onnx"), "-q"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in names.values())


def test_a_free_image_size_is_pointed_to_an_option_that_there_is(
    tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("tensorrt_rtx")
    proto = samples.tiny()
    for place in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[place].dim_param = f"S{place}"
    onnx.save(proto, str(tmp_path / "m.onnx"))
    assert main(["explain", str(tmp_path / "m.onnx"), "-q"]) == 2
    assert "deploy-tools build takes whole shapes: --min-shapes" in capsys.readouterr().err


def test_another_file_is_not_taken_for_its_source(
    built: Path, tmp_path: Path, capsys: Capture
) -> None:
    onnx.save(samples.good(), str(tmp_path / "other.onnx"))
    args = ["explain", str(built / "model.engine"), "--onnx", str(tmp_path / "other.onnx")]
    assert main(args) == 7
    assert "onnx_sha256" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["explain", "inspect"])
def test_an_engine_that_does_not_match_its_sidecar_exits_7(
    verb: str, built: Path, tmp_path: Path, capsys: Capture
) -> None:
    engine = tmp_path / "model.engine"
    shutil.copy(built / "model.engine", engine)
    assert main([verb, str(engine)]) == 7
    assert "no sidecar" in capsys.readouterr().err
    shutil.copy(built / "model.engine.json", tmp_path / "model.engine.json")
    engine.write_bytes(engine.read_bytes()[:-1])
    assert main([verb, str(engine)]) == 7
    assert "engine_sha256" in capsys.readouterr().err
    assert main([verb, str(tmp_path / "absent.engine")]) == 2


def test_inspect_shows_what_an_engine_is(built: Path, capsys: Capture) -> None:
    assert main(["inspect", str(built / "model.engine")]) == 0
    shown = capsys.readouterr().out
    for words in (
        "int8+fp32", "tensorrt-rtx 1.", "built without a GPU", "1x3x16x16 to 32x3x16x16",
        "best at 8x3x16x16", "2 take in int8", "any GPU it supports",
    ):  # fmt: skip
        assert words in shown
    assert main(["inspect", str(built / "model.engine"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layer_precisions"]["int8"] >= 2
    assert found["flavour"] == "tensorrt-rtx"


@pytest.mark.parametrize(
    ("args", "words"),
    [(["model.engine", "--flavour", "tensorrt-rtx"], "--flavour is for an ONNX file"),
     (["model.onnx", "--onnx", "model.onnx"], "--onnx is for an engine")],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(
    args: list[str], words: str, built: Path, capsys: Capture
) -> None:
    assert main(["explain", *(str(built / a) if a.startswith("model") else a for a in args)]) == 2
    assert words in capsys.readouterr().err
