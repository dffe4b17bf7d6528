"""The simulated graph answers as the written file does, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from sensitivity_samples import Demo

from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.residual import main_branches
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx
from deploy_tools.runtimes import RuntimeConfig, open_session
from deploy_tools.sensitivity.items import items_of
from deploy_tools.sensitivity.plan import plan_of, quantized_graph


@pytest.mark.parametrize(
    "static",
    [
        StaticConfig(),
        StaticConfig("tensorrt"),
        StaticConfig("arm", per_channel=False),
        StaticConfig("x86-no-vnni", exclude=("conv1", "layer2.0.conv2")),
    ],
    ids=lambda static: static.target,
)
def test_the_quantized_graph_is_the_written_file(
    demo: Demo, static: StaticConfig, tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    qdq_from_onnx(demo.model, demo.table(), path, static)
    plan = plan_of(load_onnx(path))
    graph = quantized_graph(prepared(load_onnx(demo.model)), plan)
    onnx.checker.check_model(graph, full_check=True)
    exact = RuntimeConfig(fusions=False)
    inputs = demo.inputs[:32]
    wanted = open_session(path, exact).run(inputs)[0]
    found = open_session(graph.SerializeToString(), exact).run(inputs)[0]
    assert np.array_equal(found, wanted)
    float_logits = open_session(demo.model, exact).run(inputs)[0]
    assert not np.array_equal(found, float_logits)


def test_items_are_the_quantized_layers_and_branches(demo: Demo, tmp_path: Path) -> None:
    proto = prepared(load_onnx(demo.model))
    adds = list(main_branches(proto))
    static = StaticConfig(exclude=("layer1.0.conv1",), float_branches=(adds[0],))
    path = tmp_path / "int8.onnx"
    qdq_from_onnx(demo.model, demo.table(), path, static)
    items = items_of(proto, plan_of(load_onnx(path)))
    layers = [n.name for n in proto.graph.node if n.op_type in ("Conv", "Gemm")]
    assert [i.name for i in items if i.kind == "layer"] == [
        name for name in layers if name != "layer1.0.conv1"
    ]
    assert [i.name for i in items if i.kind == "branch"] == adds[1:]
    assert len(layers) == 22
    assert len(adds) == 9
