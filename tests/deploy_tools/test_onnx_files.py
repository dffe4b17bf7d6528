"""Reading ONNX files that users hand in."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from onnx_samples import SPEC, saved, two_gemms, weight

from deploy_tools.data.spec import METADATA_KEY
from deploy_tools.errors import UserError
from deploy_tools.onnx_files import (
    input_spec_of,
    load_onnx,
    real_inputs,
    require_dynamic_batch,
    require_nodes,
)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_onnx(path)
    assert str(path) in caught.value.message
    return str(caught.value)


def test_a_good_file(tmp_path: Path) -> None:
    path = saved(two_gemms(), tmp_path / "m.onnx")
    proto = load_onnx(path)
    require_dynamic_batch(proto, path)
    assert input_spec_of(proto, path) == SPEC


def test_missing_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.onnx")
    assert "does not exist" in refused(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"\x00" * 100, b"\x89PNG\r\n", b"<html></html>"],
    ids=["empty", "text", "zeros", "png", "html"],
)
def test_garbage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert "not a valid ONNX file" in refused(tmp_path / "m.onnx")


def test_damage_is_a_user_error_wherever_it_is(tmp_path: Path) -> None:
    whole = two_gemms().SerializeToString()
    path = tmp_path / "m.onnx"
    for position in range(0, len(whole), 31):
        flipped = bytearray(whole)
        flipped[position] ^= 0x5A
        for content in (whole[:position], bytes(flipped)):
            path.write_bytes(content)
            with contextlib.suppress(UserError):  # a flipped weight is still a valid file
                proto = load_onnx(path)
                require_dynamic_batch(proto, path)
                input_spec_of(proto, path)


def test_truncated_in_the_middle_of_the_weights(tmp_path: Path) -> None:
    whole = two_gemms().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(whole[: len(whole) // 2])
    assert "not a valid ONNX file" in refused(tmp_path / "m.onnx")


def test_two_inputs(tmp_path: Path) -> None:
    proto = two_gemms()
    proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", 5]))
    text = refused(saved(proto, tmp_path / "m.onnx"))
    assert "one input of shape (N, C, H, W)" in text
    assert "input, mask" in text


def test_an_input_that_is_no_image(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["ids"], ["out"])],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.FLOAT, ["N", 5])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 5])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert "its inputs: ids" in refused(saved(proto, tmp_path / "m.onnx"))


def test_weights_listed_as_inputs_are_not_inputs(tmp_path: Path) -> None:
    proto = two_gemms()
    proto.graph.input.append(
        helper.make_tensor_value_info("c.weight", TensorProto.FLOAT, [3, 1, 3, 3])
    )
    loaded = load_onnx(saved(proto, tmp_path / "m.onnx"))
    assert [value.name for value in real_inputs(loaded)] == ["input"]


def test_fixed_batch_names_the_file_and_the_number(tmp_path: Path) -> None:
    path = tmp_path / "fixed.onnx"
    with pytest.raises(UserError, match="takes only batches of 7") as caught:
        require_dynamic_batch(two_gemms(batch=7), path)
    assert str(path) in caught.value.message
    require_dynamic_batch(two_gemms(batch=None), path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not say how its input is made"),
        ("{", "not JSON"),
        ("[]", "not a table"),
        ("{}", "lacks"),
        (json.dumps({"size": [4, 4], "mean": [0.5]}), "lacks std"),
        (json.dumps({"size": "ab", "mean": [0.5], "std": [1]}), "input size must be"),
        (json.dumps({"size": [4, 4], "mean": [0.5], "std": [1], "sise": 1}), '"size"'),
        ("1" * 5000, "damaged"),
    ],
)
def test_input_spec_missing_or_damaged(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(UserError) as caught:
        input_spec_of(two_gemms(metadata={} if text is None else {METADATA_KEY: text}), path)
    assert words in str(caught.value)
    assert str(path) in caught.value.message


def test_require_nodes_suggests_the_nearest() -> None:
    proto = two_gemms()
    require_nodes(proto, ["c", "a/relu"])
    with pytest.raises(UserError, match='Did you mean "a/relu"'):
        require_nodes(proto, ["c", "a/rely"])


def outside(tensor: onnx.TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def test_weights_in_another_file_are_refused_and_the_hint_helps(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    options = {"save_as_external_data": True, "location": "m.data", "size_threshold": 0}
    onnx.save(two_gemms(), str(path), **options)
    assert (tmp_path / "m.data").is_file()
    text = refused(path)
    assert "external data" in text
    hint = f'onnx.save(onnx.load("{path}"), "{path}")'
    assert hint in text
    onnx.save(onnx.load(str(path)), str(path))
    found, expected = load_onnx(path).graph.initializer, two_gemms().graph.initializer
    assert [t.raw_data for t in found] == [t.raw_data for t in expected]


@pytest.mark.parametrize("location", ["../secret", "none.data"])
def test_another_file_is_not_even_read(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_args: object, **_options: object) -> None:
        raise AssertionError("external data was read")

    monkeypatch.setattr("onnx.external_data_helper.load_external_data_for_tensor", read)
    (tmp_path / "secret").write_bytes(b"\x00" * 108)
    proto = two_gemms()
    outside(proto.graph.initializer[0], location)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    assert '"c.weight" is external data' in refused(path)


def in_a_constant(proto: onnx.ModelProto) -> onnx.TensorProto:
    node = helper.make_node("Constant", [], ["k"], value=weight("k", 2))
    proto.graph.node.append(node)
    return proto.graph.node[-1].attribute[0].t


def in_a_subgraph(proto: onnx.ModelProto) -> onnx.TensorProto:
    branch = helper.make_graph([], "branch", [], [], [weight("k", 2)])
    proto.graph.node.append(helper.make_node("If", ["c"], ["i"], then_branch=branch))
    return proto.graph.node[-1].attribute[0].g.initializer[0]


def in_a_sparse_weight(proto: onnx.ModelProto) -> onnx.TensorProto:
    proto.graph.sparse_initializer.add().values.CopyFrom(weight("k", 2))
    return proto.graph.sparse_initializer[0].values


def in_a_function(proto: onnx.ModelProto) -> onnx.TensorProto:
    node = helper.make_node("Constant", [], ["k"], value=weight("k", 2))
    proto.functions.add(name="f").node.append(node)
    return proto.functions[0].node[0].attribute[0].t


@pytest.mark.parametrize("place", [in_a_constant, in_a_subgraph, in_a_sparse_weight, in_a_function])
def test_external_data_is_found_wherever_it_is(
    place: Callable[[onnx.ModelProto], onnx.TensorProto], tmp_path: Path
) -> None:
    proto = two_gemms()
    outside(place(proto), "m.data")
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    assert "external data" in refused(path)


def test_the_hint_for_a_missing_spec_is_export(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        input_spec_of(two_gemms(metadata={}), tmp_path / "m.onnx")
    assert "deploy-tools export" in caught.value.hint
    assert "recipe" not in caught.value.hint
