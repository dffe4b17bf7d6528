"""Small ONNX graphs, built by hand, for tests that need no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy_tools.data.spec import METADATA_KEY, InputSpec

SPEC = InputSpec(size=(4, 4), mean=(0.5,), std=(0.25,), labels=tuple("abcde"))


def weight(name: str, *shape: int) -> onnx.TensorProto:
    """Return a float32 initializer that depends on its name and shape only."""
    generator = np.random.default_rng([*name.encode(), *shape])
    return numpy_helper.from_array((generator.normal(size=shape) * 0.3).astype(np.float32), name)


def two_gemms(
    batch: int | str | None = "N", metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """Return Conv-Relu-Flatten-Gemm-Relu-Gemm: (N, 1, 4, 4) -> (N, 5)."""
    nodes = [
        helper.make_node(
            "Conv", ["input", "c.weight", "c.bias"], ["c"], name="c", pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["c"], ["c/relu"], name="c/relu"),
        helper.make_node("Flatten", ["c/relu"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "a.weight", "a.bias"], ["a"], name="a", transB=1),
        helper.make_node("Relu", ["a"], ["a/relu"], name="a/relu"),
        helper.make_node("Gemm", ["a/relu", "b.weight", "b.bias"], ["logits"], name="b", transB=1),
    ]
    weights = [
        weight("c.weight", 3, 1, 3, 3), weight("c.bias", 3), weight("a.weight", 8, 48),
        weight("a.bias", 8), weight("b.weight", 5, 8), weight("b.bias", 5),
    ]  # fmt: skip
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "two_gemms",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 1, 4, 4])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5])],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    given = {METADATA_KEY: SPEC.to_json()} if metadata is None else metadata
    helper.set_model_props(proto, dict(given))
    return proto


def saved(proto: onnx.ModelProto, path: Path) -> Path:
    """Write a graph and return where."""
    onnx.save(proto, str(path))
    return path
