"""A partial run gives what a whole run of the changed model gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from sensitivity_samples import Demo

from deploy_tools.errors import UserError
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.runtimes import open_session
from deploy_tools.sensitivity.graph import Graph
from deploy_tools.sensitivity.grids import grid_of
from deploy_tools.sensitivity.partial import NodeTrial, PartialRuns, TensorTrial, WholeTrial
from deploy_tools.sensitivity.run import Work, run_trials


@pytest.fixture(scope="module")
def proto(demo: Demo) -> onnx.ModelProto:
    return prepared(load_onnx(demo.model))


def whole(proto: onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
    return open_session(proto.SerializeToString()).run(inputs)[0]


def test_a_graph_cut_anywhere_gives_the_same_logits(demo: Demo, proto: onnx.ModelProto) -> None:
    graph = Graph(proto)
    inputs = demo.inputs[:4]
    wanted = whole(proto, inputs)
    for cut in (1, 5, 13, 20, 36, len(graph.nodes) - 1):
        alive = graph.alive(cut)
        first = open_session(graph.part(0, cut, {graph.input: inputs.dtype}, alive))
        state = dict(zip(first.output_names, first.run(inputs), strict=True))
        types = {name: value.dtype for name, value in state.items()}
        rest = graph.part(cut, len(graph.nodes), types, [graph.output])
        from deploy_tools.sensitivity.session import PartSession

        found = PartSession(rest).run(state)[graph.output]
        assert np.allclose(found, wanted, atol=1e-4), cut
    assert len(graph.alive(20)) == 2  # inside a residual block: the branch and the shortcut
    assert graph.alive(0) == (graph.input,)


def test_other_weights_and_a_grid_are_seen_by_one_node_only(
    demo: Demo, proto: onnx.ModelProto
) -> None:
    node = next(n for n in proto.graph.node if n.name == "layer2.0.shortcut.0")
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    stored = {t.name: t for t in proto.graph.initializer}
    halved = numpy_helper.to_array(stored[node.input[1]]) * np.float32(0.5)
    for graph in (proto.graph, changed.graph):
        if "other" not in {t.name for t in graph.initializer}:
            graph.initializer.append(numpy_helper.from_array(halved, "other"))
    grid = grid_of(0.0, 0.4, "u8")
    make = onnx.helper.make_node
    pair = [
        make("QuantizeLinear", [node.input[0], "s", "z"], ["q"]),
        make("DequantizeLinear", ["q", "s", "z"], ["dq"]),
    ]
    changed.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(grid.scale, np.float32), "s"),
            numpy_helper.from_array(np.array(grid.zero_point, np.uint8), "z"),
        ]
    )
    place = [n.name for n in changed.graph.node].index(node.name)
    changed.graph.node[place].input[0] = "dq"
    changed.graph.node[place].input[1] = "other"
    nodes = list(changed.graph.node)
    del changed.graph.node[:]
    changed.graph.node.extend([*nodes[:place], *pair, *nodes[place:]])
    trial = NodeTrial("t", node.name, {1: "other"}, {0: grid})
    inputs = demo.inputs[:20]
    found = PartialRuns(proto, [trial, WholeTrial("w")], 2).logits(inputs, [trial, WholeTrial("w")])
    assert np.allclose(found["t"], whole(changed, inputs), atol=1e-3)
    assert np.allclose(found["w"], whole(proto, inputs), atol=1e-4)
    assert not np.allclose(found["t"], found["w"], atol=0.1)


def test_a_tensor_on_a_grid_is_seen_by_all_its_readers(demo: Demo, proto: onnx.ModelProto) -> None:
    tensor = "layer1.2.conv2/relu"  # read by a convolution and by the shortcut's
    readers = [n.name for n in proto.graph.node if tensor in n.input]
    assert len(readers) == 2
    grid = grid_of(0.0, 0.4, "u8")
    inputs = demo.inputs[:20]
    one = NodeTrial("one", readers[0], {}, {0: grid})
    both = TensorTrial("both", tensor, grid)
    found = PartialRuns(proto, [one, both], 1).logits(inputs, [one, both])
    graph = Graph(proto)
    first = open_session(
        graph.part(0, graph.made[tensor], {graph.input: inputs.dtype}, [tensor])
    ).run(inputs)[0]
    rest = graph.part(graph.made[tensor], len(graph.nodes), {tensor: first.dtype}, [graph.output])
    wanted = open_session(rest).run(grid.nearest(first))[0]
    assert np.allclose(found["both"], wanted, atol=1e-3)
    assert not np.allclose(found["one"], found["both"], atol=1e-2)


def test_chunks_batches_and_threads_change_no_bit(
    demo: Demo, proto: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy_tools.sensitivity import run

    grid = grid_of(0.0, 2.0, "u8")
    trials = [TensorTrial("a", "conv1/relu", grid), TensorTrial("b", "layer3.1.conv2/relu", grid)]
    wanted = run_trials(proto, trials, [demo.inputs], Work(threads=1))
    monkeypatch.setattr(run, "_ALIVE_BYTES", 1)  # chunks of one batch
    done: list[int] = []
    pass_ = demo.images(80, batch=13)
    found = run_trials(proto, trials, pass_(), Work(threads=2), done.append)
    assert done == [8, 16, 24, 32, 40, 48, 56, 64, 72, 80]
    for name, logits in wanted.items():
        assert np.array_equal(found[name], logits), name


def test_what_does_not_exist_is_refused(proto: onnx.ModelProto) -> None:
    with pytest.raises(UserError, match="conv1"):
        PartialRuns(proto, [NodeTrial("t", "conv11")], 1)
    with pytest.raises(UserError, match="no tensor"):
        PartialRuns(proto, [TensorTrial("t", "nothing", grid_of(0, 1, "u8"))], 1)
    with pytest.raises(UserError, match="no images"):
        run_trials(proto, [WholeTrial("w")], [])
