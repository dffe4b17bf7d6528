"""Engines of the ResNets that people have, in every precision, with a dynamic batch.

ResNet-18 and ResNet-50 have random weights and images of 64 pixels, which changes no layer (one
build has 224). ResNet-20 is a public one, with ranges from real images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from engine_samples import Files, files_of
from numpy.typing import NDArray

from deploy_tools.data.cifar10 import SPEC, open_cifar10
from deploy_tools.data.source import batches
from deploy_tools.data.spec import InputSpec
from deploy_tools.engine_files import NO_GPU, Sidecar, read_sidecar
from deploy_tools.engines.build import BuildConfig, engine_from_onnx, weighted_nodes
from deploy_tools.engines.builder import BuildOptions, build_engine
from deploy_tools.engines.layers import precision_by_node
from deploy_tools.engines.shapes import shapes_of_batch
from deploy_tools.export import onnx_from_module
from deploy_tools.models import new_module
from deploy_tools.onnx_files import load_onnx
from deploy_tools.pipeline.model import fold_model, load_model
from deploy_tools.quantization.cast import fp16_from_onnx
from deploy_tools.quantization.static import StaticConfig, activation_tensors, qdq_from_onnx
from deploy_tools.recipe import InputTable, ModelTable
from deploy_tools.runtimes import open_session
from deploy_tools.runtimes.flavours import Flavour

# Convolutions and Gemms, those of the shortcuts among them.
LAYERS = {"resnet18": 21, "resnet50": 54, "resnet20-cifar-a": 20}
PRECISIONS = {"fp32": "fp32", "fp16": "fp16", "int8": "int8+fp32", "int8_fp16": "int8+fp16"}
CONFIG = BuildConfig("tensorrt-rtx")

pytestmark = pytest.mark.usefixtures("rtx")


class SeenRanges:
    """The smallest and largest value of every activation over some inputs."""

    def __init__(self, model: Path, inputs: NDArray[np.float32]) -> None:
        proto = onnx.load(str(model))
        name = proto.graph.input[0].name
        wanted = [tensor for tensor in activation_tensors(proto) if tensor != name]
        proto.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in wanted)
        session = open_session(proto.SerializeToString())
        self.values = dict(zip(session.output_names, session.run(inputs), strict=True))
        self.values[name] = inputs

    def range_of(self, tensor: str, grid: str) -> tuple[float, float]:
        values = self.values[tensor]
        return min(0.0, float(values.min())), max(0.0, float(values.max()))


def random_weights(arch: str, side: int, folder: Path) -> Path:
    torch.manual_seed(0)
    spec = InputSpec(size=(side, side), mean=(0.5,) * 3, std=(0.25,) * 3)
    path = folder / "fp32.onnx"
    onnx_from_module(new_module(arch, 1000).eval(), spec, path)
    return path


def public_resnet20(shared_data: Path, folder: Path) -> Files:
    """The public checkpoint; INT8 with what 32 of the calibration images reach."""
    checkpoint = shared_data / "weights" / "resnet20-12fca82f.th"
    given = InputTable(size=SPEC.size, mean=SPEC.mean, std=SPEC.std)
    loaded = load_model(ModelTable("resnet20-cifar-a", str(checkpoint), num_classes=10), given)
    files = Files(*(folder / f"{kind}.onnx" for kind in PRECISIONS))
    onnx_from_module(fold_model(loaded)[0], loaded.spec, files.fp32)
    images = next(batches(open_cifar10(shared_data / "cifar10", "train"), loaded.spec, 32))[0]
    fp16_from_onnx(files.fp32, files.fp16)
    ranges = SeenRanges(files.fp32, images)
    qdq_from_onnx(files.fp32, ranges, files.int8, StaticConfig("tensorrt"))
    fp16_from_onnx(files.int8, files.int8_fp16)
    return files


@dataclass(frozen=True)
class Built:
    """The files of one architecture, and their engines by precision."""

    arch: str
    side: int
    files: Files
    engines: dict[str, Path]

    def sidecar(self, kind: str) -> Sidecar:
        return read_sidecar(self.engines[kind])

    def size(self, kind: str) -> int:
        return self.engines[kind].stat().st_size


@pytest.fixture(scope="module", params=LAYERS)
def built(
    request: pytest.FixtureRequest, rtx: Flavour, tmp_path_factory: pytest.TempPathFactory
) -> Built:
    """Each architecture, exported once and built in every precision."""
    arch = request.param
    folder = tmp_path_factory.mktemp(arch)
    if arch == "resnet20-cifar-a":
        files, side = public_resnet20(request.getfixturevalue("shared_data"), folder), 32
    else:
        files, side = files_of(random_weights(arch, 64, folder), folder), 64
    engines = {kind: folder / f"{kind}.engine" for kind in PRECISIONS}
    for kind, engine in engines.items():
        engine_from_onnx(getattr(files, kind), engine, CONFIG)
    return Built(arch, side, files, engines)


@pytest.mark.parametrize("kind", PRECISIONS)
def test_the_sidecar_tells_precision_and_profile(built: Built, kind: str) -> None:
    sidecar = built.sidecar(kind)
    image = [3, built.side, built.side]
    assert sidecar.profile == {"min": [1, *image], "opt": [8, *image], "max": [32, *image]}
    assert (sidecar.precision, sidecar.gpu) == (PRECISIONS[kind], NO_GPU)
    assert (sidecar.input_name, sidecar.output_names) == ("input", ("logits",))
    assert sidecar.input_spec is not None
    assert sidecar.input_spec["size"] == image[1:]


@pytest.mark.parametrize("kind", PRECISIONS)
def test_every_layer_runs_in_the_precision_of_the_file(built: Built, kind: str) -> None:
    nodes = weighted_nodes(load_onnx(getattr(built.files, kind)))
    assert len(nodes) == LAYERS[built.arch]
    found = precision_by_node(built.sidecar(kind).layers, nodes)
    expected = kind.partition("_")[0]
    assert {node: precision for node, precision in found.items() if precision != expected} == {}


@pytest.mark.parametrize("kind", PRECISIONS)
def test_input_and_output_stay_fp32_for_who_feeds_it(built: Built, kind: str) -> None:
    layers = built.sidecar(kind).layers
    outside = {
        (tensor, dtype)
        for layer in layers
        for tensor, dtype in (*layer.inputs, *layer.outputs)
        if tensor in ("input", "logits")
    }
    assert outside == {("input", "fp32"), ("logits", "fp32")}


@pytest.mark.parametrize("kind", ["fp32", "int8_fp16"])
def test_the_batch_is_dynamic_from_the_first_layer_to_the_last(
    built: Built, kind: str, rtx: Flavour
) -> None:
    """The build log has -1 for it; a fixed batch would be there as a number."""
    shapes = shapes_of_batch("1:8:32", (None, 3, built.side, built.side))
    found = build_engine(rtx, getattr(built.files, kind), shapes, BuildOptions())
    lines = found.log.texts()
    image = f"{built.side}, {built.side}"
    assert any(f"input with dtype: float32, dimensions: (-1, 3, {image})" in line for line in lines)
    listing = next(line for line in lines if "LayerType: " in line)
    assert f"Name: input, Dimensions: [-1,3,{image.replace(' ', '')}]" in listing
    assert "Name: logits, Dimensions: [-1,10" in listing


def test_fewer_bits_make_smaller_engines(built: Built) -> None:
    """Where the weights are most of an engine; in ResNet-20's INT8 engines it is the kernels."""
    sizes = {kind: built.size(kind) for kind in PRECISIONS}
    weights = built.files.fp32.stat().st_size
    assert sizes["fp16"] < sizes["fp32"]
    if built.arch != "resnet20-cifar-a":
        assert sizes["int8_fp16"] < sizes["fp16"]
        assert sizes["int8"] < sizes["fp32"]
        assert sizes["fp16"] - sizes["int8_fp16"] > 0.15 * weights
        assert sizes["fp32"] - sizes["fp16"] > 0.3 * weights


def test_the_ranges_of_the_public_model_are_those_of_its_images(
    shared_data: Path, tmp_path: Path
) -> None:
    """The INT8 file that the engine is built from answers as the FP32 one does."""
    files = public_resnet20(shared_data, tmp_path)
    source = open_cifar10(shared_data / "cifar10", "test")
    inputs, labels = next(batches(source, SPEC, 200))
    found = {
        kind: open_session(getattr(files, kind)).run(inputs)[0].argmax(1)
        for kind in ("fp32", "int8")
    }
    assert (found["fp32"] == labels).mean() > 0.88
    assert (found["int8"] == found["fp32"]).mean() > 0.96


def test_resnet50_int8_at_224_pixels(rtx: Flavour, tmp_path: Path) -> None:
    files = files_of(random_weights("resnet50", 224, tmp_path), tmp_path)
    sidecar = engine_from_onnx(files.int8_fp16, tmp_path / "x.engine", CONFIG)
    assert sidecar.precision == "int8+fp16"
    assert sidecar.profile["max"] == [32, 3, 224, 224]
    found = precision_by_node(sidecar.layers, weighted_nodes(load_onnx(files.int8_fp16)))
    assert len(found) == LAYERS["resnet50"]
    assert set(found.values()) == {"int8"}
