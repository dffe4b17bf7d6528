"""GPTQ: weights on the writer's grid, and outputs that change less than by rounding to nearest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from correction_samples import (
    Graph,
    Images,
    arrays,
    dequantized_weights,
    in_batches,
    logits,
    normal_images,
    quantized,
    resnet18,
    sqnr_db,
    two_convs,
    with_arrays,
)
from numpy.typing import NDArray
from onnx_samples import saved

from deploy_tools.corrections import rounding
from deploy_tools.corrections.equalize import CORRECTIONS_KEY
from deploy_tools.corrections.layers import Parameters, layers_of
from deploy_tools.corrections.moments import second_moments
from deploy_tools.corrections.rounding import RoundConfig, RoundReport, rounded_from_onnx
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.static import StaticConfig
from deploy_tools.runtimes import open_session


def rounded(model: Path, path: Path, images: Images, **config: Any) -> RoundReport:
    return rounded_from_onnx(model, in_batches(images, 16), path, RoundConfig(**config))


def weights_of(path: Path) -> dict[str, NDArray[np.float32]]:
    """The float weights of every layer as the file has them, by node name."""
    proto = load_onnx(path)
    stored = arrays(proto)
    return {layer.name: stored[layer.weight] for layer in layers_of(proto)}


GRIDS = [
    (StaticConfig(), 127),
    (StaticConfig(per_channel=False), 127),
    (StaticConfig("x86-no-vnni"), 64),
    (StaticConfig("tensorrt"), 127),
    (StaticConfig("tensorrt", per_channel=False), 127),
    (StaticConfig("arm"), 127),
]


@pytest.mark.parametrize(("static", "levels"), GRIDS)
def test_the_writer_reproduces_the_rounded_weights(
    demo_onnx: Path, demo_images: Images, tmp_path: Path, static: StaticConfig, levels: int
) -> None:
    images = demo_images[:16]
    path = tmp_path / "rounded.onnx"
    report = rounded(demo_onnx, path, images, levels=levels, per_channel=static.per_channel)
    written = dequantized_weights(quantized(path, tmp_path / "q.onnx", images, static))
    original, floats = weights_of(demo_onnx), weights_of(path)
    assert set(written) == set(floats) == {layer.layer for layer in report.layers}
    for name, values in floats.items():
        peak = np.abs(values).max()
        np.testing.assert_allclose(values, written[name], atol=1e-6 * peak, err_msg=name)
        assert np.abs(original[name]).max() == peak  # it makes the grid
        assert not np.array_equal(original[name], values)
        wide = np.abs(original[name]).reshape(len(values), -1)
        step = (wide.max(1) if static.per_channel else np.full(len(values), wide.max())) / levels
        codes = values.reshape(len(values), -1) / step[:, None]
        assert np.abs(codes - np.rint(codes)).max() < 1e-3


def test_every_layer_form_lands_on_its_grid(tmp_path: Path) -> None:
    """Gemm either way round, MatMul, depthwise: where the output channels are differs."""
    graph = Graph(None, 3, 8, 8)
    first = graph.relu(graph.conv("a", graph.input, 3, 6))
    deep = graph.node("Relu", "deep/relu", graph.conv("deep", first, 6, 6, group=6))
    flat = graph.node("Flatten", "flat", graph.node("GlobalAveragePool", "pool", deep))
    graph.const("m.weight", np.random.default_rng(2).normal(size=(6, 9)))
    mat = graph.node("Relu", "m/relu", graph.node("MatMul", "m", flat, "m.weight"))
    one = graph.node("Relu", "one/relu", graph.gemm("one", mat, 9, 7, trans=False))
    model = saved(graph.model(graph.gemm("fc", one, 7, 5)), tmp_path / "m.onnx")
    images = normal_images(48, 3, 8, 8)
    report = rounded(model, tmp_path / "r.onnx", images)
    assert [layer.layer for layer in report.layers] == ["a", "deep", "m", "one", "fc"]
    written = dequantized_weights(quantized(tmp_path / "r.onnx", tmp_path / "q.onnx", images))
    for name, values in weights_of(tmp_path / "r.onnx").items():
        np.testing.assert_allclose(values, written[name], atol=1e-6 * np.abs(values).max())
        assert not np.array_equal(values, weights_of(model)[name])


def test_every_layer_errs_less_than_by_rounding_to_nearest(
    public_onnx: Path, public_images: Images, tmp_path: Path
) -> None:
    report = rounded(public_onnx, tmp_path / "r.onnx", public_images[:64])
    assert len(report.layers) == 20
    gains = []
    for layer in report.layers:
        assert layer.nearest_db is not None
        assert layer.learnt_db is not None
        assert layer.learnt_db >= layer.nearest_db
        gains.append(layer.learnt_db - layer.nearest_db)
    assert np.mean(gains) > 3
    assert str(report).splitlines()[0].startswith("conv1: ")
    # And the logits, with nothing else quantized, on images that it has not seen.
    nearest = onnx.load(str(public_onnx))
    parameters = Parameters(nearest)
    for one in layers_of(nearest):
        weight = parameters.weight(one)
        step = np.abs(weight).max((1, 2), keepdims=True) / 127
        parameters.set_weight(one, np.rint(weight / step) * step)
    held = public_images[256:384]
    wanted = logits(public_onnx, held)
    learnt = sqnr_db(wanted, logits(tmp_path / "r.onnx", held))
    assert learnt > sqnr_db(wanted, logits(parameters.proto, held)) + 2


def test_an_error_that_nearly_cancels_is_an_error() -> None:
    """Two inputs that are always alike: in float32 nothing is left of the sum."""
    alike = torch.ones((1, 2, 2), dtype=torch.float64)
    found = rounding._energy(torch.tensor([[[1.0, -1 - 1e-9]]], dtype=torch.float64), alike)
    assert found == pytest.approx(1e-18, rel=1e-3)
    assert rounding._below(1.0, found) == pytest.approx(180, abs=0.1)
    assert rounding._below(1.0, 0.0) is None


def test_a_torchvision_resnet(tmp_path: Path) -> None:
    model = saved(resnet18(), tmp_path / "m.onnx")
    report = rounded(model, tmp_path / "r.onnx", normal_images(32, 3, 32, 32))
    assert len(report.layers) == 21
    assert all(one.learnt_db >= one.nearest_db - 0.01 for one in report.layers)  # type: ignore[operator]


CONVS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (12, {}),
    "stride": (12, {"strides": [2, 1]}),
    "dilation": (12, {"dilations": [1, 2]}),
    "uneven pads": (12, {"pads": [0, 1, 2, 0]}),
    "grouped": (12, {"group": 2}),
    "depthwise": (8, {"group": 8}),
    "all": (12, {"group": 2, "strides": [2, 2], "dilations": [2, 1], "pads": [1, 0, 0, 2]}),
}


def conv(out: int, given: dict[str, Any]) -> onnx.ModelProto:
    """A second Conv, "b", with such attributes, on what a Relu leaves of a first one."""
    graph = Graph(None, 3, 8, 8)
    first = graph.relu(graph.conv("a", graph.input, 3, 8))
    return graph.model(graph.head(graph.conv("b", first, 8, out, **given), out))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("name", CONVS)
def test_second_moments_are_those_of_what_the_kernel_sees(name: str, named: bool) -> None:
    """H = E x x' over all patches x: then w' H w is E y^2 of the output y of any weights w."""
    out, given = CONVS[name]
    groups = given.get("group", 1)
    kernel = {"kernel_shape": [3, 3]} if named else {}  # ONNX may leave it to the weights
    proto = conv(out, {**given, **kernel})
    layers = [layer for layer in layers_of(proto) if layer.name == "b"]
    images = normal_images(10, 3, 8, 8)
    moments = second_moments(proto, layers, in_batches(images, 4), 10_000)["b"].mean().numpy()
    weight = arrays(proto)["b.weight"].reshape(groups, out // groups, -1).astype(np.float64)
    assert moments.shape == (groups, weight.shape[2], weight.shape[2])
    bare = with_arrays(proto, b__bias=np.zeros(out))
    bare.graph.output.append(onnx.ValueInfoProto(name="b"))
    session = open_session(bare.SerializeToString())
    made = dict(zip(session.output_names, session.run(images), strict=True))["b"]
    energy = np.einsum("gok,gkl,gol->go", weight, moments, weight).reshape(out)
    np.testing.assert_allclose(energy, np.square(made).mean((0, 2, 3)), rtol=1e-4)


def test_some_positions_stand_for_all() -> None:
    proto = conv(12, {})
    layers = layers_of(proto)
    images = normal_images(200, 3, 8, 8)
    few, every = (
        second_moments(proto, layers, in_batches(images, 50), positions) for positions in (16, 64)
    )
    for name in few:
        whole = every[name].mean()
        assert torch.linalg.norm(few[name].mean() - whole) < 0.2 * torch.linalg.norm(whole)


@pytest.mark.parametrize("batch", [1, 7, 48])
def test_the_size_of_the_batches_does_not_matter(tmp_path: Path, batch: int) -> None:
    model = saved(two_convs(), tmp_path / "m.onnx")
    images = normal_images(48, 3, 8, 8)
    reports = [
        rounded_from_onnx(model, in_batches(images, size), tmp_path / f"{size}.onnx")
        for size in (16, batch)
    ]
    first, second = (weights_of(tmp_path / f"{size}.onnx") for size in (16, batch))
    for name in first:
        # A weight that lies between two steps to the last bit may go either way.
        assert np.isclose(first[name], second[name]).mean() > 0.99
    for one, other in zip(*(report.layers for report in reports), strict=True):
        assert one.learnt_db == pytest.approx(other.learnt_db, abs=0.1)


@pytest.mark.parametrize("kind", ["black images", "dead input", "zero weights", "one image"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_singular_moments_break_nothing(tmp_path: Path, kind: str, per_channel: bool) -> None:
    proto = two_convs()
    weights = {name: values.copy() for name, values in arrays(proto).items()}
    images = normal_images(1 if kind == "one image" else 16, 3, 8, 8)
    if kind == "black images":
        images[:] = 0
    elif kind == "dead input":
        weights["a.weight"][2:5], weights["a.bias"][2:5] = 0, -1
    elif kind == "zero weights":
        weights["b.weight"][3] = 0
        weights["fc.weight"][:] = 0
    changed = {name.replace(".", "__"): values for name, values in weights.items()}
    model = saved(with_arrays(proto, **changed), tmp_path / "m.onnx")
    report = rounded(model, tmp_path / "r.onnx", images, per_channel=per_channel)
    found = weights_of(tmp_path / "r.onnx")
    before = weights_of(model)
    for name, values in found.items():
        assert np.isfinite(values).all()
        wide = np.abs(before[name]).reshape(len(values), -1)
        step = np.where(per_channel, wide.max(1), wide.max()) / 127
        # The error moves to other weights, but not far where nothing was seen.
        moved = np.abs(values - before[name]).reshape(len(values), -1).max(1)
        assert (moved <= 20 * step + 1e-9).all()
    if kind == "zero weights":
        assert not found["b"][3].any()
        assert not found["fc"].any()
        assert report.layers[-1].learnt_db is None
        assert "fc: no error -> no error" in str(report)
    if kind == "black images":
        # The first layer saw nothing: every weight goes to its nearest step.
        assert report.layers[0].nearest_db is None
        assert np.abs(found["a"] - before["a"]).max() <= 0.5001 * np.abs(before["a"]).max() / 127


def test_excluded_layers_keep_their_weights(tmp_path: Path) -> None:
    model = saved(two_convs(), tmp_path / "m.onnx")
    images = normal_images(16, 3, 8, 8)
    report = rounded(model, tmp_path / "r.onnx", images, exclude=("a", "fc"))
    assert [layer.layer for layer in report.layers] == ["b"]
    before, after = arrays(onnx.load(str(model))), arrays(onnx.load(str(tmp_path / "r.onnx")))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"b.weight"}


def test_the_same_call_writes_the_same_bytes_and_says_what_it_did(tmp_path: Path) -> None:
    model = saved(two_convs(), tmp_path / "m.onnx")
    images = normal_images(20, 3, 8, 8)
    said: list[tuple[str, int, int]] = []
    for name in "ab":
        report = rounded_from_onnx(
            model, in_batches(images), tmp_path / name, None, lambda *args: said.append(args)
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    metadata = {p.key: p.value for p in onnx.load(str(tmp_path / "a")).metadata_props}
    assert metadata[CORRECTIONS_KEY] == "gptq"
    assert said[:5] == [
        ("second moments", 16, 0), ("second moments", 20, 0),
        ("round weights", 1, 3), ("round weights", 2, 3), ("round weights", 3, 3),
    ]  # fmt: skip
    assert [one["layer"] for one in report.to_dict()["layers"]] == ["a", "b", "fc"]


def test_nodes_without_names_are_told_apart(tmp_path: Path) -> None:
    proto = two_convs()
    for node in proto.graph.node:
        node.name = "twice" if node.op_type == "Conv" else ""
    model = saved(proto, tmp_path / "m.onnx")
    report = rounded(model, tmp_path / "r.onnx", normal_images(16, 3, 8, 8))
    assert [one.layer for one in report.layers] == ["node_of_a", "node_of_b", "node_of_fc"]


def test_an_interrupted_call_leaves_nothing(tmp_path: Path) -> None:
    model = saved(two_convs(), tmp_path / "m.onnx")

    def stop(what: str, *_: int) -> None:
        if what == "round weights":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rounded_from_onnx(
            model, in_batches(normal_images(8, 3, 8, 8)), tmp_path / "r.onnx", progress=stop
        )
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
