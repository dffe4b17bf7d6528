"""Bias correction: each layer of the INT8 file has the mean output of the float one again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from correction_samples import (
    Graph,
    Images,
    SeenRanges,
    arrays,
    in_batches,
    normal_images,
    quantized,
    resnet18,
    two_convs,
    with_arrays,
)
from numpy.typing import NDArray
from onnx_samples import saved

from deploy_tools.corrections.bias import BiasConfig, BiasReport, bias_corrected_from_onnx
from deploy_tools.corrections.equalize import CORRECTIONS_KEY
from deploy_tools.corrections.layers import layers_of
from deploy_tools.errors import UserError
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx
from deploy_tools.training.onnx_module import OnnxModule

IMAGES = normal_images(40, 3, 8, 8)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(two_convs(), tmp_path / "m.onnx")


def corrected(
    model: Path, q: Path, path: Path, images: Images = IMAGES, reference: Path | None = None,
    batch: int = 16, count: int = 64,
) -> BiasReport:  # fmt: skip
    return bias_corrected_from_onnx(
        model, q, in_batches(images, batch), path, BiasConfig(count), reference=reference
    )


def mean_outputs(model: Path, images: Images) -> NDArray[np.float64]:
    """The mean of every output channel of every layer, in the order of their names."""
    proto = load_onnx(model)
    layers = sorted(n.output[0] for n in proto.graph.node if n.op_type in ("Conv", "Gemm"))
    with torch.no_grad():
        found = OnnxModule(proto).values(torch.from_numpy(images), layers)
    means = [found[name].double().transpose(0, 1).flatten(1).mean(1) for name in layers]
    return np.concatenate([mean.numpy() for mean in means])


def test_a_planted_shift_is_removed(model: Path, tmp_path: Path) -> None:
    right = arrays(load_onnx(model))
    shifted = with_arrays(
        load_onnx(model), a__bias=right["a.bias"] + 0.5, b__bias=right["b.bias"] - 0.7,
        fc__bias=right["fc.bias"] + [0, 0, 2, 0, 0],
    )  # fmt: skip
    bad = saved(shifted, tmp_path / "bad.onnx")
    q = quantized(bad, tmp_path / "q.onnx", IMAGES)
    path = tmp_path / "corrected.onnx"
    report = corrected(bad, q, path, reference=model)
    found = arrays(load_onnx(path))
    for name in ("a", "b", "fc"):
        bias = f"{name}.bias"
        assert np.abs(found[bias] - right[bias]).max() < 0.05
        np.testing.assert_array_equal(found[f"{name}.weight"], right[f"{name}.weight"])
    assert [entry.layer for entry in report.layers] == ["a", "b", "fc"]
    # The report counts in units of the output's root mean square.
    with torch.no_grad():
        output = OnnxModule(load_onnx(model)).values(torch.from_numpy(IMAGES), ["a"])["a"]
    assert report.layers[0].shift == pytest.approx(
        0.5 / float(output.square().mean().sqrt()), rel=0.1
    )
    assert report.to_dict()["layers"][0]["layer"] == "a"


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_means_of_every_layer_come_back(tmp_path: Path, target: str) -> None:
    model = saved(resnet18(), tmp_path / "m.onnx")
    images = normal_images(24, 3, 32, 32)
    static = StaticConfig(target, per_channel=False)
    ranges = SeenRanges(model, images)
    qdq_from_onnx(model, ranges, tmp_path / "q.onnx", static)
    report = corrected(model, tmp_path / "q.onnx", tmp_path / "c.onnx", images)
    assert len(report.layers) == 21
    assert report.without_bias == ()
    qdq_from_onnx(tmp_path / "c.onnx", ranges, tmp_path / "again.onnx", static)
    wanted, before, after = (
        mean_outputs(tmp_path / name, images) for name in ("m.onnx", "q.onnx", "again.onnx")
    )
    assert np.linalg.norm(after - wanted) < 0.3 * np.linalg.norm(before - wanted)


def test_the_reference_is_what_is_aimed_at(model: Path, tmp_path: Path) -> None:
    weight = arrays(load_onnx(model))["b.weight"]
    rounded = saved(
        with_arrays(load_onnx(model), b__weight=np.floor(weight * 8) / 8), tmp_path / "r.onnx"
    )
    q = quantized(rounded, tmp_path / "q.onnx", IMAGES)
    for name, reference in (("to model", model), ("to itself", rounded), ("default", None)):
        corrected(rounded, q, tmp_path / name, reference=reference)
    assert (tmp_path / "to itself").read_bytes() == (tmp_path / "default").read_bytes()
    goal = mean_outputs(model, IMAGES)
    near, far = (
        np.linalg.norm(
            mean_outputs(quantized(tmp_path / name, tmp_path / "q2.onnx", IMAGES), IMAGES) - goal
        )
        for name in ("to model", "default")
    )
    assert near < 0.2 * far


def test_layers_without_a_bias_are_named_and_kept(tmp_path: Path) -> None:
    graph = Graph(None, 3, 8, 8)
    first = graph.relu(graph.conv("a", graph.input, 3, 8, bias=False))
    model = saved(graph.model(graph.head(graph.conv("b", first, 8, 6), 6)), tmp_path / "m.onnx")
    q = quantized(model, tmp_path / "q.onnx", IMAGES)
    report = corrected(model, q, tmp_path / "c.onnx")
    assert report.without_bias == ("a",)
    assert [one.layer for one in report.layers] == ["b", "fc"]
    before, after = (arrays(load_onnx(path)) for path in (model, tmp_path / "c.onnx"))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"b.bias", "fc.bias"}


@pytest.mark.parametrize("batch", [1, 7, 16])
def test_a_walk_over_several_batches_is_one_over_all(
    model: Path, tmp_path: Path, batch: int
) -> None:
    q = quantized(model, tmp_path / "q.onnx", IMAGES)
    corrected(model, q, tmp_path / "whole.onnx", batch=40)
    corrected(model, q, tmp_path / "parts.onnx", batch=batch)
    whole, parts = (arrays(load_onnx(tmp_path / f"{n}.onnx")) for n in ("whole", "parts"))
    original = arrays(load_onnx(model))
    for name in ("a.bias", "b.bias", "fc.bias"):
        # A value between two steps may fall to the other side with another order of sums.
        moved = np.abs(whole[name] - original[name]).max()
        assert np.abs(whole[name] - parts[name]).max() < 0.02 * moved + 1e-6


def test_only_the_first_images_are_read(model: Path, tmp_path: Path) -> None:
    q = quantized(model, tmp_path / "q.onnx", IMAGES)
    corrected(model, q, tmp_path / "first.onnx", count=20)
    corrected(model, q, tmp_path / "those.onnx", IMAGES[:20])
    corrected(model, q, tmp_path / "all.onnx")
    first, those, whole = (
        (tmp_path / f"{name}.onnx").read_bytes() for name in ("first", "those", "all")
    )
    assert first == those
    assert first != whole


def test_dead_channels_and_zero_weights(tmp_path: Path) -> None:
    proto = two_convs()
    weights = arrays(proto)
    dead = weights["a.weight"].copy()
    dead[:4] = 0
    model = saved(
        with_arrays(proto, a__weight=dead, a__bias=np.full(8, -1), b__weight=weights["b.weight"] * 0),
        tmp_path / "m.onnx",
    )  # fmt: skip
    q = quantized(model, tmp_path / "q.onnx", IMAGES)
    report = corrected(model, q, tmp_path / "c.onnx")
    assert all(np.isfinite(v).all() for v in arrays(load_onnx(tmp_path / "c.onnx")).values())
    assert all(np.isfinite(one.shift) for one in report.layers)


def test_the_same_call_writes_the_same_bytes_and_says_what_it_did(
    model: Path, tmp_path: Path
) -> None:
    q = quantized(model, tmp_path / "q.onnx", IMAGES)
    said: list[tuple[str, int, int]] = []
    for name in "ab":
        bias_corrected_from_onnx(
            model, q, in_batches(IMAGES), tmp_path / name, None, lambda *args: said.append(args)
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    metadata = {p.key: p.value for p in onnx.load(str(tmp_path / "a")).metadata_props}
    assert metadata[CORRECTIONS_KEY] == "bias"
    assert said[:3] == [("mean outputs", done, 3) for done in (1, 2, 3)]
    assert said[3][0] == "correct biases"


def test_nodes_without_names_are_told_apart(tmp_path: Path) -> None:
    proto = two_convs()
    for node in proto.graph.node:
        node.name = ""
    model = saved(proto, tmp_path / "m.onnx")
    q = quantized(model, tmp_path / "q.onnx", IMAGES)
    report = corrected(model, q, tmp_path / "c.onnx")
    assert [one.layer for one in report.layers] == ["node_of_a", "node_of_b", "node_of_fc"]


def test_files_that_do_not_belong_together_are_refused(model: Path, tmp_path: Path) -> None:
    other = two_convs()
    for node in other.graph.node:
        node.name = f"other/{node.name}"
    stranger = quantized(saved(other, tmp_path / "o.onnx"), tmp_path / "q.onnx", IMAGES)
    with pytest.raises(UserError, match=r"q\.onnx has no layer of .*m\.onnx"):
        corrected(model, stranger, tmp_path / "c.onnx")
    graph = Graph(None, 3, 8, 8)  # one layer has no bias, which is no reason not to look
    first = graph.relu(graph.conv("z", graph.input, 3, 8, bias=False))
    mixed = saved(graph.model(graph.head(graph.conv("y", first, 8, 6), 6)), tmp_path / "z.onnx")
    with pytest.raises(UserError, match=r"has no layer of"):
        corrected(mixed, quantized(model, tmp_path / "q3.onnx", IMAGES), tmp_path / "c.onnx")
    q = quantized(model, tmp_path / "q2.onnx", IMAGES)
    reference = saved(resnet18(), tmp_path / "r.onnx")
    with pytest.raises(UserError, match="the graph has no tensor"):
        corrected(model, q, tmp_path / "c.onnx", normal_images(4, 3, 32, 32), reference)
    assert not (tmp_path / "c.onnx").exists()
    assert [layer.name for layer in layers_of(load_onnx(model))] == ["a", "b", "fc"]


def test_an_interrupted_call_leaves_nothing(model: Path, tmp_path: Path) -> None:
    q = quantized(model, tmp_path / "q.onnx", IMAGES)

    def stop(what: str, *_: int) -> None:
        if what == "correct biases":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bias_corrected_from_onnx(model, q, in_batches(IMAGES), tmp_path / "c.onnx", progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "q.onnx"]
