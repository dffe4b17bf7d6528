"""Small float graphs for the corrections, built node by node, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_samples import weight

from deploy_tools.data.spec import METADATA_KEY, InputSpec
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.static import StaticConfig, activation_tensors, qdq_from_onnx
from deploy_tools.runtimes import open_session

Images = NDArray[np.float32]
Batches = Callable[[], Iterable[Images]]


class Graph:
    """A graph under construction; every method returns the name of the tensor it made."""

    def __init__(self, *shape: int | None) -> None:
        """shape: of the input, (batch, channels, height, width)."""
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.input = "input"
        self._shape = ["N", *shape[1:]]

    def const(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        self.tensors.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def node(self, op: str, name: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node; its outputs are `name`, then `name.1` and so on."""
        made = [name, *(f"{name}.{i}" for i in range(1, outputs))]
        self.nodes.append(helper.make_node(op, [*inputs], made, name=name, **attributes))
        return name

    def conv(
        self, name: str, tensor: str, inner: int, out: int, kernel: int = 3, bias: bool = True,
        group: int = 1, **attributes: Any,
    ) -> str:  # fmt: skip
        attributes.setdefault("pads", [kernel // 2] * 4)
        # The size of the values stays from layer to layer (He et al. 2015).
        values = numpy_helper.to_array(weight(name, out, inner // group, kernel, kernel)) / 0.3
        values = values * (2 / (inner // group * kernel**2)) ** 0.5
        self.const(f"{name}.weight", values)
        inputs = [tensor, f"{name}.weight"]
        if bias:
            self.tensors.append(weight(f"{name}.bias", out))
            inputs.append(f"{name}.bias")
        return self.node("Conv", name, *inputs, group=group, **attributes)

    def relu(self, tensor: str) -> str:
        return self.node("Relu", f"{tensor}/relu", tensor)

    def gemm(self, name: str, tensor: str, inner: int, out: int, trans: bool = True) -> str:
        self.tensors.append(weight(f"{name}.weight", *((out, inner) if trans else (inner, out))))
        self.tensors.append(weight(f"{name}.bias", out))
        inputs = (tensor, f"{name}.weight", f"{name}.bias")
        return self.node("Gemm", name, *inputs, transB=int(trans))

    def head(self, tensor: str, channels: int) -> str:
        """Pool, flatten and a Gemm: the logits."""
        pooled = self.node("GlobalAveragePool", "pool", tensor)
        return self.gemm("fc", self.node("Flatten", "flat", pooled), channels, 5)

    def model(self, output: str, *shape: int) -> onnx.ModelProto:
        """shape: of the output after the batch; (5,) where not given."""
        kind = TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes, "sample",
            [helper.make_tensor_value_info(self.input, kind, self._shape)],
            [helper.make_tensor_value_info(output, kind, ["N", *(shape or (5,))])],
            self.tensors,
        )  # fmt: skip
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        known = [size for size in self._shape[1:] if isinstance(size, int)]
        if len(known) == 3:
            count = 3 if known[0] == 3 else 1  # of other counts the spec knows nothing
            spec = InputSpec((known[1], known[2]), (0.5,) * count, (0.25,) * count)
            helper.set_model_props(proto, {METADATA_KEY: spec.to_json()})
        onnx.checker.check_model(proto, full_check=True)
        return proto


def two_convs(**second: Any) -> onnx.ModelProto:
    """Conv-Relu-Conv-Relu-pool-Gemm on (N, 3, 8, 8); `second` goes to the second Conv."""
    graph = Graph(None, 3, 8, 8)
    first = graph.relu(graph.conv("a", graph.input, 3, 8))
    return graph.model(graph.head(graph.relu(graph.conv("b", first, 8, 12, **second)), 12))


def resnet18(width: int = 8) -> onnx.ModelProto:
    """Torchvision's ResNet-18, narrower, on (N, 3, 32, 32): strided stem, max pool, 1x1 shortcuts."""
    graph = Graph(None, 3, 32, 32)
    tensor = graph.relu(graph.conv("conv1", graph.input, 3, width, 7, strides=[2, 2]))
    tensor = graph.node(
        "MaxPool", "maxpool", tensor, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
    )
    inner = width
    for stage in range(4):
        out = width * 2**stage
        for block in range(2):
            name, stride = f"layer{stage + 1}.{block}", 1 + (stage > 0 and block == 0)
            main = graph.conv(f"{name}.conv1", tensor, inner, out, strides=[stride] * 2)
            main = graph.conv(f"{name}.conv2", graph.relu(main), out, out)
            if stride > 1:
                tensor = graph.conv(f"{name}.down", tensor, inner, out, 1, strides=[2, 2])
            tensor = graph.relu(graph.node("Add", f"{name}.add", main, tensor))
            inner = out
    return graph.model(graph.head(tensor, inner))


def normal_images(count: int, *shape: int, seed: int = 0) -> Images:
    """Return inputs (count, *shape) for graphs that no photo fits."""
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def in_batches(images: Images, size: int = 16) -> Batches:
    """A pass over images in batches at each call."""
    return lambda: (images[at : at + size] for at in range(0, len(images), size))


def logits(model: onnx.ModelProto | Path, images: Images) -> Images:
    """Run in onnxruntime."""
    given = model if isinstance(model, Path) else model.SerializeToString()
    return open_session(given).run(images)[0]


def sqnr_db(wanted: Images, found: Images) -> float:
    """Return 10 log10 of the energy of the logits over the energy of the difference."""
    difference = np.square((wanted - found).astype(np.float64)).sum()
    return float(10 * np.log10(np.square(wanted.astype(np.float64)).sum() / difference))


def arrays(proto: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Return the initializers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def with_arrays(proto: onnx.ModelProto, **changed: Any) -> onnx.ModelProto:
    """Return a copy with other values; `__` in a name stands for a dot."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for name, values in changed.items():
        wanted = name.replace("__", ".")
        (tensor,) = [t for t in copy.graph.initializer if t.name == wanted]
        tensor.CopyFrom(numpy_helper.from_array(np.array(values, np.float32), wanted))
    return copy


class SeenRanges:
    """Min-max ranges of every activation of a model over some images."""

    def __init__(self, model: Path, images: Images) -> None:
        proto = prepared(load_onnx(model))
        name = proto.graph.input[0].name
        outputs = {value.name for value in proto.graph.output}
        wanted = [t for t in activation_tensors(proto) if t != name and t not in outputs]
        proto.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in wanted)
        session = open_session(proto.SerializeToString())
        values = dict(zip(session.output_names, session.run(images), strict=True))
        values[name] = images
        self.ends = {k: (float(v.min()), float(v.max())) for k, v in values.items()}

    def range_of(self, tensor: str, grid: str) -> tuple[float, float]:
        low, high = min(0.0, self.ends[tensor][0]), max(0.0, self.ends[tensor][1])
        return (low, high) if grid == "u8" else (-max(-low, high), max(-low, high))


def quantized(model: Path, path: Path, images: Images, config: StaticConfig | None = None) -> Path:
    """Write the Q/DQ file of a model with min-max ranges of these images."""
    qdq_from_onnx(model, SeenRanges(model, images), path, config)
    return path


def dequantized_weights(path: Path) -> dict[str, NDArray[np.float64]]:
    """Return the weights of every layer of a Q/DQ file as it computes with them, by node name."""
    proto = onnx.load(str(path))
    stored = arrays(proto)
    producers = {tensor: node for node in proto.graph.node for tensor in node.output}
    found = {}
    for node in proto.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        last = producers.get(node.input[1])
        if last is None:  # in float
            found[node.name] = stored[node.input[1]].astype(np.float64)
            continue
        scale = stored[last.input[1]].astype(np.float64)
        axis = next((a.i for a in last.attribute if a.name == "axis"), 1)
        first = producers.get(last.input[0])
        if first is None:
            codes = stored[last.input[0]].astype(np.float64)
        else:  # float weights behind a pair of their own
            exact = stored[first.input[0]].astype(np.float64)
            codes = np.clip(np.rint(exact / _along(scale, exact.ndim, axis)), -127, 127)
        found[node.name] = codes * _along(scale, codes.ndim, axis)
    return found


def _along(scale: NDArray[np.float64], rank: int, axis: int) -> NDArray[np.float64]:
    if scale.size == 1:
        return scale.reshape(())
    return scale.reshape([-1 if a == axis else 1 for a in range(rank)])
