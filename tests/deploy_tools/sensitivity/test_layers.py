"""What a layer costs alone, against files that quantize that layer alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sensitivity_samples import Demo

from deploy_tools.errors import UserError
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx
from deploy_tools.runtimes import RuntimeConfig, open_session
from deploy_tools.sensitivity import session
from deploy_tools.sensitivity.costs import costs_of
from deploy_tools.sensitivity.figures import agreeing, logit_sqnr_db
from deploy_tools.sensitivity.items import items_of, leavable, written_plan
from deploy_tools.sensitivity.layers import Sensitivity, SensitivityConfig, sensitivity_from_onnx
from deploy_tools.sensitivity.plan import quantized_graph

IMAGES = 24
EXACT = RuntimeConfig(fusions=False)


@pytest.fixture(scope="module")
def found(demo: Demo) -> Sensitivity:
    config = SensitivityConfig(left_out=True)
    return sensitivity_from_onnx(demo.model, demo.table(), demo.images(IMAGES), config)


def test_every_layer_and_branch_has_its_figures(found: Sensitivity) -> None:
    assert len(found.items) == 31
    assert set(found.alone) == set(found.left_out) == {item.name for item in found.items}
    assert found.images == IMAGES
    for item in found.items:
        assert found.whole_db < found.sqnr_db(item.name) < 80
        assert found.agreeing(item.name) >= IMAGES - 2
    best = found.worst_first[0].name
    assert found.gain_db(best) > 0.1


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts without fusions: a last bit then decides no rounding differently."""
    plain = session.session_options
    monkeypatch.setattr(session, "session_options", lambda ort, n, fusions: plain(ort, n, False))


@pytest.mark.usefixtures("exact")
def test_alone_and_left_out_are_whole_models_bit_for_bit(demo: Demo, tmp_path: Path) -> None:
    config = SensitivityConfig(left_out=True)
    inputs = demo.inputs[:8]
    found = sensitivity_from_onnx(demo.model, demo.table(), demo.images(8), config)
    proto = prepared(load_onnx(demo.model))
    plan = written_plan(demo.model, demo.table(), config.static)
    add = "layer2.1.conv2/add"
    for name in ("conv1", "layer3.0.conv1", "linear"):
        one = quantized_graph(proto, {name: plan[name]}).SerializeToString()
        assert np.array_equal(open_session(one, EXACT).run(inputs)[0], found.alone[name]), name
        # Left out: the file that the writer makes, whose layer may keep its input's pair.
        path = tmp_path / "others.onnx"
        qdq_from_onnx(demo.model, demo.table(), path, StaticConfig(exclude=(name,)))
        assert np.array_equal(open_session(path, EXACT).run(inputs)[0], found.left_out[name]), name
    qdq_from_onnx(demo.model, demo.table(), path, StaticConfig(float_branches=(add,)))
    assert np.array_equal(open_session(path, EXACT).run(inputs)[0], found.left_out[add])
    qdq_from_onnx(demo.model, demo.table(), path)
    assert np.array_equal(open_session(path, EXACT).run(inputs)[0], found.everything)


def test_a_relu_keeps_its_pair_when_its_reader_is_left_in_float(demo: Demo) -> None:
    static = StaticConfig()
    proto = prepared(load_onnx(demo.model))
    items = items_of(proto, written_plan(demo.model, demo.table(), static))
    freed = {i.name: i.positions for i in leavable(items, demo.model, demo.table(), static)}
    assert freed["conv1"] == (0, 1, 2)
    assert freed["layer1.0.conv1"] == (1, 2)
    tensorrt = StaticConfig("tensorrt")
    items = items_of(proto, written_plan(demo.model, demo.table(), tensorrt))
    freed = {i.name: i.positions for i in leavable(items, demo.model, demo.table(), tensorrt)}
    assert freed["layer1.0.conv1"] == (0, 1)


def test_it_prints_worst_first_and_tells_json(found: Sensitivity) -> None:
    lines = str(found).splitlines()
    assert lines[0].startswith(found.worst_first[0].name)
    assert "of 24 agree" in lines[0]
    assert len(lines) == 32
    rows = found.to_dict()["items"]
    values = [row["sqnr_db"] for row in rows]
    assert values == sorted(values)
    assert set(rows[0]) == {"name", "kind", "op", "sqnr_db", "agreeing", "gain_db"}


def test_figures_are_those_of_the_logits() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 5.0]], np.float32)
    other = np.array([[3.5, 3.0], [0.0, 5.0]], np.float32)
    assert logit_sqnr_db(reference, other) == pytest.approx(10 * np.log10(50 / 1.25))
    assert logit_sqnr_db(reference, reference) == np.inf
    assert agreeing(reference, other) == 1


def test_costs_are_multiply_adds(demo: Demo, found: Sensitivity) -> None:
    proto = prepared(load_onnx(demo.model))
    costs = costs_of(proto, found.items, (1, 1, 28, 28))
    assert costs["conv1"] == 28 * 28 * 16 * 9
    assert costs["linear"] == 640
    assert costs["layer2.0.shortcut.0"] == 14 * 14 * 32 * 16
    assert costs["layer1.0.conv2/add"] == 32 * 28 * 28 * 16


def test_no_images_is_the_users_mistake(demo: Demo) -> None:
    with pytest.raises(UserError, match="no images"):
        sensitivity_from_onnx(demo.model, demo.table(), list)
