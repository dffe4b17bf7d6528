"""Equalization keeps the model and makes its INT8 file better, where there is something to gain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from correction_samples import (
    Graph,
    Images,
    arrays,
    in_batches,
    logits,
    normal_images,
    quantized,
    resnet18,
    sqnr_db,
    two_convs,
    with_arrays,
)
from onnx_samples import saved

from deploy_tools.corrections.channels import channels_of, scaled
from deploy_tools.corrections.equalize import (
    CORRECTIONS_KEY,
    EqualizeConfig,
    EqualizeReport,
    equalized_from_onnx,
    note_correction,
)
from deploy_tools.errors import UserError
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.static import StaticConfig, quantized_tensors

CALIBRATION = 256


def equalized(model: Path, path: Path, images: Images, **config: Any) -> EqualizeReport:
    """Equalize for full placement on ort-cpu."""
    tensors = quantized_tensors(prepared(load_onnx(model)), StaticConfig())
    return equalized_from_onnx(
        model, tensors, in_batches(images, 50), path, EqualizeConfig(**config)
    )


def unbalanced(model: Path, path: Path, seed: int = 0) -> Path:
    """Scale all channels against each other, as no training would leave them; same logits."""
    proto = onnx.load(str(model))
    channels = channels_of(proto)
    random = np.random.default_rng(seed).uniform(-0.8, 0.8, len(channels.free))
    return saved(scaled(proto, channels, np.where(channels.free, np.exp(random), 1)), path)


def int8_db(model: Path, reference: Path, folder: Path, images: Images) -> float:
    """Logit SQNR of a model's INT8 file on images that it was not calibrated with."""
    file = quantized(model, folder / f"q-{model.name}", images[:CALIBRATION])
    held = images[CALIBRATION:]
    return sqnr_db(logits(reference, held), logits(file, held))


@pytest.mark.parametrize("name", ["demo", "public"])
def test_what_was_unbalanced_on_purpose_comes_back(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: Path = request.getfixturevalue(f"{name}_onnx")
    images: Images = request.getfixturevalue(f"{name}_images")
    bad, mended = unbalanced(model, tmp_path / "bad.onnx"), tmp_path / "mended.onnx"
    report = equalized(bad, mended, images[:CALIBRATION])
    wanted = logits(model, images[:16])
    np.testing.assert_allclose(logits(mended, images[:16]), wanted, atol=1e-3)
    before, planted, after = (
        int8_db(file, model, tmp_path, images) for file in (model, bad, mended)
    )
    assert planted < before - 3
    assert after > planted + 2
    assert after > before - 1.5
    assert report.predicted_gain_db > 2
    assert report.scaled_channels > 100
    assert 0.01 < report.smallest_factor < 1 < report.largest_factor < 100


def test_a_torchvision_resnet_keeps_its_logits(tmp_path: Path) -> None:
    model = saved(resnet18(), tmp_path / "m.onnx")
    images = normal_images(64, 3, 32, 32)
    report = equalized(model, tmp_path / "e.onnx", images)
    wanted = logits(model, images)
    np.testing.assert_allclose(
        logits(tmp_path / "e.onnx", images), wanted, atol=1e-4 * np.abs(wanted).max()
    )
    assert report.scaled_channels > 300
    assert report.predicted_gain_db > 0


def degenerate(kind: str) -> onnx.ModelProto:
    """two_convs with something in it that a careless division would trip over."""
    proto = two_convs()
    weights = {name: values.copy() for name, values in arrays(proto).items()}
    if kind == "dead channels":  # a Relu that never opens
        weights["a.weight"][:3], weights["a.bias"][:3] = 0, -1
    elif kind == "all dead":
        weights["a.weight"][:], weights["a.bias"][:] = 0, -1
    elif kind == "zero weights":
        weights["b.weight"][:] = 0
    elif kind == "zero rows":
        weights["b.weight"][2:5], weights["fc.weight"][1] = 0, 0
    elif kind == "folded zero variance":  # BatchNorm with variance 0: weights times 1 / sqrt(eps)
        weights["a.weight"][1] *= 316.0
        weights["b.weight"][:, 1] *= 1e-12
    elif kind == "zero logits":
        weights["fc.weight"][:] = 0
    return with_arrays(proto, **{name.replace(".", "__"): v for name, v in weights.items()})


KINDS = [
    "dead channels", "all dead", "zero weights", "zero rows", "folded zero variance", "zero logits",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_degenerate_models(tmp_path: Path, kind: str, per_channel: bool) -> None:
    model = saved(degenerate(kind), tmp_path / "m.onnx")
    images = normal_images(24, 3, 8, 8)
    report = equalized(model, tmp_path / "e.onnx", images, per_channel=per_channel)
    assert all(np.isfinite(v).all() for v in arrays(onnx.load(str(tmp_path / "e.onnx"))).values())
    wanted = logits(model, images)
    scale = max(float(np.abs(wanted).max()), 1e-3)
    np.testing.assert_allclose(logits(tmp_path / "e.onnx", images), wanted, atol=1e-4 * scale)
    assert np.isfinite(report.predicted_gain_db)
    found = logits(quantized(tmp_path / "e.onnx", tmp_path / "q.onnx", images), images)
    assert np.isfinite(found).all()


def test_one_channel(tmp_path: Path) -> None:
    graph = Graph(None, 1, 8, 8)
    first = graph.relu(graph.conv("a", graph.input, 1, 1))
    model = saved(graph.model(graph.head(graph.conv("b", first, 1, 1), 1)), tmp_path / "m.onnx")
    images = normal_images(16, 1, 8, 8)
    equalized(model, tmp_path / "e.onnx", images)
    np.testing.assert_allclose(
        logits(tmp_path / "e.onnx", images), logits(model, images), atol=1e-5
    )


def test_a_graph_without_anything_to_scale_is_copied(tmp_path: Path) -> None:
    graph = Graph(None, 3, 4, 4)
    flat = graph.node("Flatten", "flat", graph.input)
    model = saved(graph.model(graph.gemm("fc", flat, 48, 5)), tmp_path / "m.onnx")
    report = equalized(model, tmp_path / "e.onnx", normal_images(8, 3, 4, 4))
    assert (report.scaled_channels, report.predicted_gain_db) == (0, 0)
    assert (report.smallest_factor, report.largest_factor) == (1, 1)
    before, after = (arrays(onnx.load(str(tmp_path / name))) for name in ("m.onnx", "e.onnx"))
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_layers_in_float_do_not_count(tmp_path: Path) -> None:
    proto = two_convs()
    # The second Conv reads one channel with huge weights: its own rounding would suffer.
    weight = arrays(proto)["b.weight"].copy()
    weight[:, 0] *= 40
    model = saved(with_arrays(proto, b__weight=weight), tmp_path / "m.onnx")
    images = normal_images(24, 3, 8, 8)
    counted = equalized(model, tmp_path / "a.onnx", images)
    ignored = equalized(model, tmp_path / "b.onnx", images, exclude=("a", "b", "fc"))
    files = [arrays(onnx.load(str(tmp_path / name)))["b.weight"] for name in ("a.onnx", "b.onnx")]
    ratio = [np.abs(w[:, 0]).max() / np.abs(w[:, 1:]).max() for w in files]
    assert ratio[0] < 0.7 * ratio[1]
    assert counted.predicted_gain_db != ignored.predicted_gain_db


def test_the_same_call_writes_the_same_bytes(tmp_path: Path) -> None:
    model = saved(two_convs(), tmp_path / "m.onnx")
    images = normal_images(24, 3, 8, 8)
    for name in "ab":
        equalized(model, tmp_path / name, images)
    equalized(model, tmp_path / "c", images, seed=1)
    first, again, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == again
    assert first != other


def test_the_file_says_what_was_done_to_it(tmp_path: Path) -> None:
    model = saved(two_convs(), tmp_path / "m.onnx")
    said: list[str] = []
    tensors = quantized_tensors(onnx.load(str(model)), StaticConfig())
    batches = in_batches(normal_images(8, 3, 8, 8))
    for source, target in ((model, "a.onnx"), (tmp_path / "a.onnx", "b.onnx")):
        equalized_from_onnx(
            source, tensors, batches, tmp_path / target,
            progress=lambda what, done, total: said.append(what),
        )  # fmt: skip
    metadata = {p.key: p.value for p in onnx.load(str(tmp_path / "b.onnx")).metadata_props}
    assert metadata[CORRECTIONS_KEY] == "equalize,equalize"
    assert "deploy_tools.input_spec" in metadata
    assert set(said) == {"observe channels", "weigh channels", "balance channels"}
    proto = onnx.ModelProto()
    note_correction(proto, "bias")
    assert [(p.key, p.value) for p in proto.metadata_props] == [(CORRECTIONS_KEY, "bias")]


def test_a_graph_that_torch_cannot_run_is_named(tmp_path: Path) -> None:
    graph = Graph(None, 3, 8, 8)
    first = graph.node("HardSwish", "strange", graph.conv("a", graph.input, 3, 4))
    model = saved(graph.model(graph.head(first, 4)), tmp_path / "m.onnx")
    with pytest.raises(UserError, match='node "strange" is of operator HardSwish'):
        equalized(model, tmp_path / "e.onnx", normal_images(4, 3, 8, 8))
    assert not (tmp_path / "e.onnx").exists()


def test_an_interrupted_call_leaves_nothing(tmp_path: Path) -> None:
    model = saved(two_convs(), tmp_path / "m.onnx")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    tensors = quantized_tensors(onnx.load(str(model)), StaticConfig())
    with pytest.raises(KeyboardInterrupt):
        equalized_from_onnx(
            model, tensors, in_batches(normal_images(4, 3, 8, 8)), tmp_path / "e.onnx",
            progress=stop,
        )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
