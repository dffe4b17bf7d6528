"""Real builds with TensorRT for RTX, which needs no GPU: what comes out, and what is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import onnx
import pytest
from engine_samples import Files
from onnx import TensorProto, helper

from deploy_tools.artifacts import sha256_of_file
from deploy_tools.engine_files import NO_GPU, EngineLayer, read_sidecar, sidecar_path
from deploy_tools.engines import builder as builder_module
from deploy_tools.engines.build import (
    BuildConfig,
    engine_from_onnx,
    precision_of,
    weighted_nodes,
)
from deploy_tools.engines.builder import BuildOptions, build_engine
from deploy_tools.engines.layers import layers_from_log, precision_by_node
from deploy_tools.engines.shapes import Shapes, shapes_of_batch
from deploy_tools.errors import OutputError, UserError
from deploy_tools.onnx_files import input_spec_of, load_onnx
from deploy_tools.runtimes.flavours import Flavour

RTX = BuildConfig(flavour="tensorrt-rtx")
DEMO = (None, 1, 28, 28)
PRECISIONS = {"fp32": "fp32", "fp16": "fp16", "int8": "int8+fp32", "int8_fp16": "int8+fp16"}

pytestmark = pytest.mark.usefixtures("rtx")


def unsupported(path: Path) -> Path:
    """A valid classifier with an operator that no TensorRT has."""
    nodes = [
        helper.make_node("Relu", ["input"], ["positive"], name="first"),
        helper.make_node("Det", ["positive"], ["logits"], name="determinant"),
    ]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("kind", PRECISIONS)
def test_an_engine_and_its_sidecar(kind: str, demo_files: Files, rtx: Flavour, tmp_path: Path) -> None:  # fmt: skip
    model: Path = getattr(demo_files, kind)
    path = tmp_path / "out" / f"{kind}.engine"
    sidecar = engine_from_onnx(model, path, RTX)
    assert read_sidecar(path) == sidecar
    assert sorted(p.name for p in path.parent.iterdir()) == [
        f"{kind}.engine",
        f"{kind}.engine.json",
    ]
    assert sidecar.precision == PRECISIONS[kind]
    assert (sidecar.flavour, sidecar.tensorrt_version) == ("tensorrt-rtx", rtx.version)
    assert (sidecar.gpu, sidecar.compute_capability) == (NO_GPU, "")
    assert sidecar.onnx_sha256 == sha256_of_file(model)
    assert sidecar.engine_sha256 == sha256_of_file(path)
    assert (sidecar.input_name, sidecar.output_names) == ("input", ("logits",))
    assert sidecar.profile == {"min": [1, 1, 28, 28], "opt": [8, 1, 28, 28], "max": [32, 1, 28, 28]}
    assert sidecar.input_spec == input_spec_of(load_onnx(model), model).to_dict()
    assert sidecar.versions["tensorrt-rtx"] == rtx.version
    assert (sidecar.tf32, sidecar.workspace_bytes, sidecar.build_seconds > 0) == (False, None, True)
    nodes = weighted_nodes(load_onnx(model))
    assert len(nodes) == 22
    assert set(precision_by_node(sidecar.layers, nodes).values()) == {kind.split("_")[0]}


def test_the_dynamic_batch_is_in_the_log(demo_files: Files, rtx: Flavour) -> None:
    built = build_engine(rtx, demo_files.fp32, shapes_of_batch("1:8:32", DEMO), BuildOptions())
    lines = built.log.texts()
    assert any("input with dtype: float32, dimensions: (-1, 1, 28, 28)" in line for line in lines)
    assert built.log.errors() == []
    listing = next(line for line in lines if "LayerType: " in line)
    assert "Name: input, Dimensions: [-1,1,28,28]" in listing
    assert len(layers_from_log(lines)) == listing.count("LayerType: ")


@pytest.mark.parametrize("tf32", [False, True])
def test_options_reach_the_builder(
    tf32: bool, demo_files: Files, rtx: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of the builder's own settings: two builds of one network may differ in their bytes."""
    seen: list[Any] = []
    configure = builder_module._configure

    def spy(*given: Any) -> Any:
        seen.append(configure(*given))
        return seen[-1]

    monkeypatch.setattr(builder_module, "_configure", spy)
    options = BuildOptions(tf32=tf32, workspace_bytes=64 << 20)
    assert build_engine(rtx, demo_files.fp32, shapes_of_batch("1", DEMO), options).data
    (config,) = seen
    assert config.get_flag(rtx.module.BuilderFlag.TF32) is tf32
    workspace = rtx.module.MemoryPoolType.WORKSPACE
    assert config.get_memory_pool_limit(workspace) == 64 << 20


def test_options_reach_the_sidecar(demo_files: Files, tmp_path: Path) -> None:
    config = dataclasses.replace(RTX, tf32=True, workspace_mib=64, batch="2:3:4")
    sidecar = engine_from_onnx(demo_files.fp32, tmp_path / "x.engine", config)
    assert (sidecar.tf32, sidecar.workspace_bytes) == (True, 64 << 20)
    assert [shape[0] for shape in sidecar.profile.values()] == [2, 3, 4]


def test_whole_shapes(demo_files: Files, tmp_path: Path) -> None:
    shapes = Shapes((1, 1, 28, 28), (2, 1, 28, 28), (5, 1, 28, 28))
    config = dataclasses.replace(RTX, shapes=shapes)
    sidecar = engine_from_onnx(demo_files.fp32, tmp_path / "x.engine", config)
    assert sidecar.profile == shapes.profile()


def test_progress(demo_files: Files, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    engine_from_onnx(demo_files.int8, tmp_path / "x.engine", RTX, lambda *args: seen.append(args))
    assert {what.partition(",")[0] for what, _, _ in seen} == {"building"}
    assert len({what for what, _, _ in seen}) > 3
    assert all(0 <= done <= total for _, done, total in seen)
    assert seen[-1][1] == seen[-1][2]


# What fails leaves nothing behind, and an engine that was there stays.


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder with an engine of an earlier build; it must be the same after the test."""
    folder = tmp_path / "out"
    folder.mkdir()
    engine = folder / "x.engine"
    engine.write_bytes(b"earlier")
    sidecar_path(engine).write_text("earlier", "utf-8")
    return engine


def require_kept(engine: Path) -> None:
    assert engine.read_bytes() == b"earlier"
    assert sidecar_path(engine).read_text("utf-8") == "earlier"
    assert len(list(engine.parent.iterdir())) == 2


def test_the_parsers_reason_with_the_node(kept: Path, tmp_path: Path, rtx: Flavour) -> None:
    with pytest.raises(UserError) as caught:
        engine_from_onnx(unsupported(tmp_path / "bad.onnx"), kept, RTX)
    message = str(caught.value)
    assert "bad.onnx cannot be read by TensorRT for RTX" in message
    assert (
        'node "determinant" (Det): the operator Det is not supported [UNSUPPORTED_NODE]' in message
    )
    require_kept(kept)


def test_the_builders_reason(kept: Path, demo_files: Files) -> None:
    with pytest.raises(UserError) as caught:
        engine_from_onnx(demo_files.fp32, kept, dataclasses.replace(RTX, workspace_mib=1))
    message = str(caught.value)
    assert "no tactics to implement the operation within workspace limit" in message
    assert "--workspace" in message
    assert "None" not in message
    assert ".cpp" not in message
    require_kept(kept)


def test_an_error_of_the_callback_ends_the_build(kept: Path, demo_files: Files) -> None:
    seen: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        seen.append(what)
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError, match="nobody reads"):
        engine_from_onnx(demo_files.int8, kept, RTX, progress)
    assert len(seen) == 1
    require_kept(kept)


def test_ctrl_c_ends_the_build(kept: Path, demo_files: Files) -> None:
    code = f"""
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
from pathlib import Path
from deploy_tools.engines.build import BuildConfig, engine_from_onnx
seen = []
def progress(what, done, total):
    seen.append((what, done, total))
    if len(seen) == 5:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
try:
    engine_from_onnx(Path({str(demo_files.int8)!r}), Path({str(kept)!r}), BuildConfig("tensorrt-rtx"), progress)
except KeyboardInterrupt:
    print(len(seen))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "5", done.stdout + done.stderr
    assert done.returncode == 0
    require_kept(kept)


def test_a_folder_that_cannot_be_written(demo_files: Files, tmp_path: Path) -> None:
    """It is known before the build, which may take long."""
    seen: list[str] = []

    def build(path: Path) -> None:
        engine_from_onnx(demo_files.fp32, path, RTX, lambda what, done, total: seen.append(what))

    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        build(tmp_path / "file" / "x.engine")
    (tmp_path / "x.engine").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        build(tmp_path / "x.engine")
    assert seen == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"timing_cache": Path("t.cache")}, "has no timing cache"),
        ({"hardware_compatible": True}, "has no hardware compatibility level"),
        ({"version_compatible": True}, "cannot build version-compatible engines"),
        ({"workspace_mib": 0}, "workspace must be 1 MiB or more"),
        ({"batch": "8:1:2"}, "not in order"),
        ({"flavour": "rtx"}, "no flavour of TensorRT"),
        ({"shapes": Shapes(*[(1, 3, 28, 28)] * 3)}, "dimension 1 is 1"),
    ],
)
def test_what_cannot_be_done_is_refused(
    change: dict[str, object], words: str, kept: Path, demo_files: Files
) -> None:
    with pytest.raises(UserError, match=words):
        engine_from_onnx(demo_files.fp32, kept, dataclasses.replace(RTX, **change))
    require_kept(kept)


def test_a_fixed_batch_and_a_missing_file_are_refused(kept: Path, demo_files: Files, tmp_path: Path) -> None:  # fmt: skip
    proto = onnx.load(str(demo_files.fp32))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(proto, str(tmp_path / "fixed.onnx"))
    with pytest.raises(UserError, match=r"fixed\.onnx cannot become"):
        engine_from_onnx(tmp_path / "fixed.onnx", kept, RTX)
    with pytest.raises(UserError, match="does not exist"):
        engine_from_onnx(tmp_path / "absent.onnx", kept, RTX)
    require_kept(kept)


def test_names_with_spaces_and_umlauts(demo_files: Files, tmp_path: Path) -> None:
    model = tmp_path / "ein Modell für äöü.onnx"
    model.write_bytes(demo_files.fp32.read_bytes())
    path = tmp_path / "größe 1.engine"
    sidecar = engine_from_onnx(model, path, RTX)
    assert read_sidecar(path) == sidecar


def test_another_logger_in_the_process_takes_nothing_away(
    demo_files: Files, rtx: Flavour, tmp_path: Path
) -> None:
    trt = rtx.module
    foreign = trt.Logger(trt.ILogger.ERROR)
    builder = trt.Builder(foreign)
    sidecar = engine_from_onnx(demo_files.int8, tmp_path / "x.engine", RTX)
    assert len(sidecar.layers) > 22
    del builder


def test_builds_at_the_same_time_do_not_mix(demo_files: Files, tmp_path: Path) -> None:
    found = {}

    def build(kind: str) -> None:
        found[kind] = engine_from_onnx(getattr(demo_files, kind), tmp_path / f"{kind}.engine", RTX)

    threads = [threading.Thread(target=build, args=(kind,)) for kind in PRECISIONS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {kind: sidecar.precision for kind, sidecar in found.items()} == PRECISIONS


def test_many_failures_harm_nothing(demo_files: Files, rtx: Flavour, tmp_path: Path) -> None:
    bad = unsupported(tmp_path / "bad.onnx")
    for _ in range(20):
        with pytest.raises(UserError):
            build_engine(rtx, bad, Shapes(*[(1, 3, 8, 8)] * 3), BuildOptions())
    assert build_engine(rtx, demo_files.fp32, shapes_of_batch("1", DEMO), BuildOptions()).data


# Precision, from what TensorRT says and what the file asks for.


def layer(node: str, precision: str) -> EngineLayer:
    return EngineLayer(node, "CaskConvolution", precision, (), (), (node,))


def test_precision_is_that_of_the_engine_not_of_the_file(demo_files: Files) -> None:
    int8, rest = load_onnx(demo_files.int8), load_onnx(demo_files.int8_fp16)
    nodes = weighted_nodes(int8)
    assert precision_of(int8, [layer(node, "fp32") for node in nodes]) == "fp32"
    assert precision_of(rest, [layer(node, "fp16") for node in nodes]) == "fp16"
    one = [layer(nodes[0], "int8"), *(layer(node, "fp32") for node in nodes[1:])]
    assert precision_of(int8, one) == "int8+fp32"


def test_where_no_layer_tells_the_file_counts(demo_files: Files) -> None:
    for kind, precision in PRECISIONS.items():
        proto = load_onnx(getattr(demo_files, kind))
        assert precision_of(proto, []) == precision
        assert precision_of(proto, [layer("conv1", "unknown")]) == precision


def test_nodes_without_a_name(demo_files: Files, rtx: Flavour, tmp_path: Path) -> None:
    proto = onnx.load(str(demo_files.fp32))
    for node in proto.graph.node:
        node.name = ""
    onnx.save(proto, str(tmp_path / "unnamed.onnx"))
    sidecar = engine_from_onnx(tmp_path / "unnamed.onnx", tmp_path / "x.engine", RTX)
    found = precision_by_node(sidecar.layers, weighted_nodes(proto))
    assert set(found.values()) == {"fp32"}
    assert len(found) == 22
