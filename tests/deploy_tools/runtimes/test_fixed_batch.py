"""A session for one batch size: the same results, any other size too, and errors that say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from correction_samples import normal_images, quantized, resnet18, two_convs
from onnx_samples import saved

from deploy_tools.errors import UserError
from deploy_tools.quantization.static import StaticConfig
from deploy_tools.runtimes import RuntimeConfig, open_session, openvino
from deploy_tools.runtimes.fixed_batch import FixedBatchSession, batch_axis, open_fixed

CPU = pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])


def opened(model: Path | bytes, runtime: str, **more: Any) -> Any:
    if runtime == "openvino":
        pytest.importorskip("onnxruntime_ep_openvino")
    return open_session(model, RuntimeConfig(runtime, threads=1, precision="fp32", **more))


@CPU
def test_every_size_gives_what_a_session_for_any_gives(
    small_onnx: Path, small_inputs: Any, runtime: str
) -> None:
    fixed, free = opened(small_onnx, runtime, fixed_batch=2), opened(small_onnx, runtime)
    assert (fixed.precision, fixed.threads) == (free.precision, free.threads)
    for count in (2, 1, 3, 2):
        inputs = np.resize(small_inputs, (count, *small_inputs.shape[1:]))
        np.testing.assert_allclose(fixed.run(inputs)[0], free.run(inputs)[0], rtol=1e-5, atol=1e-6)


@CPU
def test_the_runtime_knows_the_batch(small_onnx: Path, runtime: str) -> None:
    fixed = opened(small_onnx, runtime, fixed_batch=2)
    assert fixed._fixed._session.get_inputs()[0].shape[0] == 2
    assert fixed._any is None
    assert opened(small_onnx.read_bytes(), runtime, fixed_batch=2).batch == 2


def test_openvino_adds_float_branches_in_the_convolution(tmp_path: Path) -> None:
    """Whether the batch is fixed or not: kernels that add elsewhere round the branch."""
    pytest.importorskip("onnxruntime_ep_openvino")
    model, images = saved(resnet18(), tmp_path / "m.onnx"), normal_images(4, 3, 32, 32)
    path = quantized(model, tmp_path / "q.onnx", images, StaticConfig("openvino"))
    if "bf16" not in (free := open_session(path, RuntimeConfig("openvino", threads=1))).precision:
        pytest.skip("without bfloat16 they round the same")
    fixed = open_session(path, RuntimeConfig("openvino", threads=1, fixed_batch=4))
    np.testing.assert_array_equal(fixed.run(images)[0], free.run(images)[0])


def test_a_plugin_that_does_not_know_the_property_loads_the_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime_ep_openvino")
    images = normal_images(2, 3, 8, 8)
    path = quantized(saved(two_convs(), tmp_path / "m.onnx"), tmp_path / "q.onnx", images)
    wanted = opened(path, "openvino", fixed_batch=2).run(images)[0]
    monkeypatch.setattr(openvino, "_WHOLE_KERNELS", {"NO_SUCH_PROPERTY": "1"})
    np.testing.assert_allclose(opened(path, "openvino", fixed_batch=2).run(images)[0], wanted)


@CPU
def test_streams_get_their_part_of_a_batch(
    small_onnx: Path, small_inputs: Any, runtime: str
) -> None:
    config = RuntimeConfig(runtime, 2, "fp32", streams=2, fixed_batch=2)
    if runtime == "openvino":
        pytest.importorskip("onnxruntime_ep_openvino")
    session: Any = open_session(small_onnx, config)
    inputs = np.resize(small_inputs, (6, *small_inputs.shape[1:]))
    found = session.run(inputs)[0]
    np.testing.assert_allclose(
        found, opened(small_onnx, runtime).run(inputs)[0], rtol=1e-5, atol=1e-6
    )
    assert all(each._any is None for each in session._sessions)


class Counted:
    """A session that remembers how many images it got; a real one would refuse other sizes."""

    runtime = provider = "fake"
    precision, threads, input_name = "fp32", 1, "x"
    output_names: tuple[str, ...] = ("y",)

    def __init__(self, batch: int) -> None:
        self.batch, self.closed = batch, False

    def run(self, inputs: Any) -> Any:
        assert self.batch in (0, len(inputs))
        return (inputs,)

    def close(self) -> None:
        self.closed = True


def test_the_second_session_is_opened_once_and_only_when_needed() -> None:
    made: list[Counted] = []

    def open_for(batch: int) -> Any:
        made.append(Counted(batch))
        return made[-1]

    session: Any = open_fixed(open_for, 4)
    assert isinstance(session, FixedBatchSession)
    session.run(np.zeros((4, 1)))
    assert [one.batch for one in made] == [4]
    session.run(np.zeros((1, 1)))
    session.run(np.zeros((3, 1)))
    assert [one.batch for one in made] == [4, 0]
    session.close()
    assert all(one.closed for one in made)
    with pytest.raises(RuntimeError, match="closed"):
        session.run(np.zeros((4, 1)))
    assert open_fixed(open_for, 0) is made[-1]


def test_a_dimension_without_a_name_is_refused(small_onnx: Path, tmp_path: Path) -> None:
    proto = onnx.load(str(small_onnx))
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    name = dims[0].dim_param
    assert batch_axis(small_onnx) == batch_axis(small_onnx.read_bytes()) == name
    dims[2].dim_param = name
    shared = saved(proto, tmp_path / "shared.onnx")
    dims[0].Clear()
    nameless = saved(proto, tmp_path / "nameless.onnx")
    for path in (shared, nameless):
        with pytest.raises(UserError, match=f"{path.name} cannot be fixed"):
            open_session(path, RuntimeConfig(fixed_batch=2))
    with pytest.raises(UserError, match="0 or more, got -1"):
        open_session(small_onnx, RuntimeConfig(fixed_batch=-1))
    with pytest.raises(UserError, match="there is one stream"):
        open_session(small_onnx, RuntimeConfig(part=2))
    with pytest.raises(UserError, match="parts of 3 images do not fit sessions for 2"):
        open_session(small_onnx, RuntimeConfig(threads=2, streams=2, part=3, fixed_batch=2))
    with pytest.raises(UserError, match="fixed batch"):
        open_session(small_onnx, RuntimeConfig("tensorrt", fixed_batch=2))
