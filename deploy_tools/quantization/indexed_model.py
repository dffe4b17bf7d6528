"""onnxruntime's Q/DQ writer in time that grows with the graph, not with its square.

For every tensor the writer looks through all nodes and all initializers, several times. Here it
gets its own model class with an index of both; what it writes is the same, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx

from deploy_tools.errors import require
from deploy_tools.onnx_files import remove_where

_LOOKUP = "find_by_name"
_MODULES = ("onnxruntime.quantization.qdq_quantizer", "onnxruntime.quantization.base_quantizer")


def index_model(quantizer: Any) -> None:
    """Give a new QDQQuantizer an `IndexedModel`; call its `finish` after `quantize_model`.

    It gets its ranges afterwards: with them it looks through the graph while it is made.
    """
    for name in _MODULES:
        module = require(name, "", "Quantizing")
        # A function of those modules, not a method: nothing but replacing it lets it use the
        # index. For any other list it does what it did.
        if hasattr(module, _LOOKUP):
            setattr(module, _LOOKUP, find_by_name)
    quantizer.model = IndexedModel(quantizer.model)


class IndexedTensors(list[onnx.TensorProto]):
    """The initializers of a graph, found by name."""

    def __init__(self, tensors: Iterable[onnx.TensorProto]) -> None:
        super().__init__(tensors)
        self.by_name = {tensor.name: tensor for tensor in self}


def find_by_name(name: str, items: Iterable[Any]) -> Any:
    """Return the first item with this name, None where there is none."""
    if isinstance(items, IndexedTensors):
        return items.by_name.get(name)
    return next((item for item in items if item.name == name), None)


class IndexedModel:
    """onnxruntime's ONNXModel, where it changes the graph or looks for something in it."""

    def __init__(self, base: Any) -> None:
        self._base = base
        self.model: onnx.ModelProto = base.model
        self._tensors = IndexedTensors(self.model.graph.initializer)
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._writers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            self._index(node)
        self._removed: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def initializer(self) -> IndexedTensors:
        """Return the initializers; one that was removed is not found by its name any more.

        In the list itself it stays until `finish`.
        """
        return self._tensors

    def get_initializer(self, name: str) -> onnx.TensorProto | None:
        """Return an initializer by name."""
        return self._tensors.by_name.get(name)

    def add_initializer(self, tensor: onnx.TensorProto) -> None:
        """Append an initializer; one whose name is taken is left out, as the base does it."""
        if tensor.name not in self._tensors.by_name:
            self.initializer_extend([tensor])

    def initializer_extend(self, tensors: Sequence[onnx.TensorProto]) -> None:
        """Append initializers."""
        if not tensors:
            raise ValueError("no initializers to add")
        if any(tensor.name in self._removed for tensor in tensors):
            self.finish()  # which goes by name, and would take the new one too
        for tensor in tensors:
            stored = self.model.graph.initializer
            stored.append(self._base._check_init(tensor))
            self._tensors.append(stored[-1])
            self._tensors.by_name.setdefault(tensor.name, stored[-1])

    def remove_initializer(self, tensor: onnx.TensorProto) -> None:
        """Remove an initializer, and the graph input of its name; from the graph in `finish`.

        Old exporters list weights as inputs too. What is written in place of the weight takes its
        name, which the input would then have as well.
        """
        if self._tensors.by_name.pop(tensor.name, None) is not None:
            self._removed.add(tensor.name)

    def add_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Append nodes."""
        for node in nodes:
            self.add_node(node)

    def add_node(self, node: onnx.NodeProto) -> None:
        """Append a node."""
        # The base's check, which looks an initializer up: here in the index.
        checked = type(self._base)._check_node(self, node)
        self.model.graph.node.append(checked)
        self._index(self.model.graph.node[-1])

    def remove_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Remove nodes, by name: the graph is one that `prepared` returned."""
        names = {node.name for node in nodes}
        remove_where(self.model.graph.node, lambda node: node.name in names)

    def input_name_to_nodes(self) -> dict[str, list[onnx.NodeProto]]:
        """Return the nodes that read each tensor, once for each time that they do."""
        return self._readers

    def replace_input_of_all_nodes(self, old: str, new: str) -> None:
        """Let every reader of a tensor read another one."""
        self.replace_input_of_nodes(old, new, None)

    def replace_input_of_nodes(self, old: str, new: str, names: Iterable[str] | None) -> None:
        """Let these readers (None: all) of a tensor read another one."""
        chosen = None if names is None else set(names)
        readers = self._readers.pop(old, [])
        kept = [node for node in readers if chosen is not None and node.name not in chosen]
        moved = [node for node in readers if chosen is None or node.name in chosen]
        for node in moved:
            self._base.replace_node_input(node, old, new)
        if kept:
            self._readers[old] = kept
        if moved:
            self._readers.setdefault(new, []).extend(moved)

    def replace_node_input(self, node: onnx.NodeProto, old: str, new: str) -> None:
        """Let one node read another tensor."""
        self.replace_input_of_nodes(old, new, [node.name])

    def replace_output_of_all_nodes(self, old: str, new: str) -> None:
        """Let what makes a tensor make another one."""
        for node in self._writers.pop(old, []):
            self._base.replace_node_output(node, old, new)
            self._writers.setdefault(new, []).append(node)

    def clean_initializers(self) -> None:
        """Remove the initializers that nothing reads."""
        graph = self.model.graph
        if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
            self.finish()
            self._base.clean_initializers()
            self._tensors = IndexedTensors(graph.initializer)
            return
        read = {tensor for node in graph.node for tensor in node.input}
        read |= {value.name for value in graph.output}
        self._removed |= {t.name for t in graph.initializer if t.name not in read}
        self.finish()

    def finish(self) -> None:
        """Take what was removed out of the graph and out of the list."""
        gone = self._removed
        if not gone:
            return
        graph = self.model.graph
        remove_where(graph.initializer, lambda tensor: tensor.name in gone)
        remove_where(graph.input, lambda value: value.name in gone)
        self._tensors = IndexedTensors(graph.initializer)
        self._removed = set()

    def _index(self, node: onnx.NodeProto) -> None:
        for tensor in filter(None, node.input):
            self._readers.setdefault(tensor, []).append(node)
        for tensor in filter(None, node.output):
            self._writers.setdefault(tensor, []).append(node)
