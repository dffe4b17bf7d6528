"""What is seen of the activations, against the same by brute force."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from correction_samples import Graph, in_batches, logits, normal_images, two_convs

from deploy_tools.corrections import observe
from deploy_tools.corrections.observe import (
    first_images,
    importance_of_channels,
    observe_channels,
)
from deploy_tools.runtimes import open_session
from deploy_tools.training.onnx_module import OnnxModule

IMAGES = normal_images(21, 3, 8, 8)


def test_peak_and_mean_square_of_each_channel() -> None:
    proto = two_convs()
    seen = observe_channels(OnnxModule(proto), in_batches(IMAGES, 8), ["a", "flat", "a"])
    proto.graph.output.append(onnx.ValueInfoProto(name="a"))
    proto.graph.output.append(onnx.ValueInfoProto(name="flat"))
    session = open_session(proto.SerializeToString())
    found = dict(zip(session.output_names, session.run(IMAGES), strict=True))
    assert set(seen) == {"a", "flat"}
    for name in seen:
        axes = (0, *range(2, found[name].ndim))
        each = np.abs(found[name]).max(axes[1:])  # (images, channels)
        expected = each.mean(0) + each.std(0) * np.sqrt(6) / np.pi * np.log(10_000)
        peak = np.maximum(expected, each.max(0))
        np.testing.assert_allclose(seen[name].peak, peak, rtol=1e-5)
        assert seen[name].images == 21
        np.testing.assert_allclose(
            seen[name].mean_square, np.square(found[name]).mean(axes), rtol=1e-5
        )


def test_channels_without_any_spread() -> None:
    graph = Graph(None, 3, 8, 8)
    graph.const("a.weight", np.zeros((3, 3, 1, 1)))
    graph.const("a.bias", [0.0, -2.0, 3.0])
    first = graph.relu(graph.node("Conv", "a", graph.input, "a.weight", "a.bias"))
    proto = graph.model(graph.head(first, 3))
    seen = observe_channels(OnnxModule(proto), in_batches(IMAGES), ["a", "a/relu"])
    np.testing.assert_allclose(seen["a"].peak, [0, 2, 3])
    np.testing.assert_allclose(seen["a"].mean_square, [0, 4, 9])
    np.testing.assert_allclose(seen["a/relu"].peak, [0, 0, 3])  # dead channels stay dead


def test_batches_leave_no_trace() -> None:
    module = OnnxModule(two_convs())
    whole = observe_channels(module, in_batches(IMAGES, 21), ["b"])["b"]
    parts = observe_channels(module, in_batches(IMAGES, 4), ["b"])["b"]
    np.testing.assert_allclose(parts.mean_square, whole.mean_square, rtol=1e-6)
    np.testing.assert_allclose(parts.peak, whole.peak, rtol=1e-6)


def test_progress_counts_images() -> None:
    said: list[tuple[str, int, int]] = []
    observe_channels(
        OnnxModule(two_convs()), in_batches(IMAGES, 8), ["a"], lambda *args: said.append(args)
    )
    assert said == [("observe channels", count, 0) for count in (8, 16, 21)]


def test_importance_is_the_energy_of_the_logits_derivative() -> None:
    module = OnnxModule(two_convs())
    images = IMAGES[:3]
    found = importance_of_channels(module, in_batches(images, 2), ["a", "b/relu"], probes=60)
    for name, energy in found.items():
        whole = torch.zeros(len(energy))
        for image in torch.from_numpy(images):
            start = image[None].requires_grad_(True)
            values = module.values(start, [name, module.output_name])
            for logit in values[module.output_name][0]:
                (slope,) = torch.autograd.grad(logit, values[name], retain_graph=True)
                whole += slope[0].square().sum((1, 2))
        np.testing.assert_allclose(energy, whole.numpy() / len(images), rtol=0.5)
        assert np.corrcoef(energy, whole.numpy())[0, 1] > 0.95


def test_importance_predicts_the_error_of_white_noise() -> None:
    proto = two_convs()
    # From the second Conv to the logits all is linear: first order is exact.
    for node in [n for n in proto.graph.node if n.name == "b/relu"]:
        node.op_type = "Identity"
    images = normal_images(256, 3, 8, 8, seed=3)
    energy = importance_of_channels(OnnxModule(proto), in_batches(images, 64), ["b"], 8)["b"]
    graph = onnx.ModelProto()
    graph.CopyFrom(proto)
    del graph.graph.node[0], graph.graph.node[0], graph.graph.node[0]
    graph.graph.input[0].CopyFrom(
        onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, ["N", 12, 8, 8])
    )
    random = np.random.default_rng(1)
    for channel in (0, 5):
        clean = np.zeros((256, 12, 8, 8), np.float32)
        noisy = clean.copy()
        noisy[:, channel] = 0.5 * random.normal(size=(256, 8, 8))
        error = np.square(logits(graph, noisy) - logits(graph, clean)).sum(1).mean()
        assert error == pytest.approx(0.25 * energy[channel], rel=0.25)


@pytest.mark.parametrize("count", [8, 16])
def test_outputs_with_positions_have_a_probe_for_each(count: int) -> None:
    graph = Graph(None, 3, 8, 8)
    last = graph.conv("b", graph.relu(graph.conv("a", graph.input, 3, 4)), 4, 6, kernel=1)
    proto = graph.model(last, 6, 8, 8)
    images = normal_images(count, 3, 8, 8)
    found = importance_of_channels(OnnxModule(proto), in_batches(images, 16), ["a/relu"], 20)
    (weight,) = (
        onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "b.weight"
    )
    wanted = np.square(weight[..., 0, 0]).sum(0) * 64
    np.testing.assert_allclose(found["a/relu"], wanted, rtol=0.1)


def test_what_the_logits_do_not_depend_on_weighs_nothing() -> None:
    graph = Graph(None, 3, 8, 8)
    dead = graph.relu(graph.conv("unread", graph.input, 3, 2))
    first = graph.relu(graph.conv("a", graph.input, 3, 4))
    proto = graph.model(graph.head(first, 4))
    found = importance_of_channels(OnnxModule(proto), in_batches(IMAGES[:4]), [dead, "a"])
    np.testing.assert_array_equal(found[dead], np.zeros(2))
    assert (found["a"] > 0).any()


def test_the_seed_decides_the_probes() -> None:
    module = OnnxModule(two_convs())
    first, again, other = (
        importance_of_channels(module, in_batches(IMAGES), ["a"], seed=seed)["a"]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(("count", "sizes"), [(5, [5]), (8, [8]), (12, [8, 4]), (99, [8, 8, 5])])
def test_first_images(count: int, sizes: list[int]) -> None:
    some = first_images(in_batches(IMAGES, 8), count)
    for _ in range(2):  # each call gives a pass of its own
        found = list(some())
        assert [len(part) for part in found] == sizes
        np.testing.assert_array_equal(np.concatenate(found), IMAGES[:count])


def test_slopes_in_parts_are_those_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the depth: a deep network's images go through a few at a time."""
    module = OnnxModule(two_convs())
    sizes: list[int] = []

    def recorded(given: torch.Tensor, tensors: list[str]) -> dict[str, torch.Tensor]:
        sizes.append(len(given))
        return dict(module.each_value(given, tensors))

    monkeypatch.setattr(module, "values", recorded)
    found = []
    size, shape = observe._kept_by_slopes(module, torch.zeros(1, 3, 8, 8))
    assert size == 2 * 4 * ((8 + 8 + 12 + 12) * 64 + 12 + 12 + 5)
    assert shape == (5,)
    for limit in (1 << 30, 3 * size, 1):
        monkeypatch.setattr(observe, "_SLOPES_BYTES", limit)
        found.append(importance_of_channels(module, in_batches(IMAGES[:16], 8), ["a", "b/relu"]))
    assert sizes == [8, 8, 3, 3, 2, 3, 3, 2, *[1] * 16]
    for other in found[1:]:
        for name in ("a", "b/relu"):
            np.testing.assert_allclose(other[name], found[0][name], rtol=1e-4)
