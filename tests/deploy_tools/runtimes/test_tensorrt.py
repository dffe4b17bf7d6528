"""Opening engines: what is refused, in which order, and with which exit code.

The engines are real ones, built here without a GPU. What needs one is in tests/gpu; where these
tests claim that there is a GPU, TensorRT itself refuses the engine, as there is none.
"""

from __future__ import annotations

import gc
import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from host_memory import AddingContext, HostMemory

from deploy_tools.artifacts import sha256_of_file
from deploy_tools.engine_files import read_sidecar, sidecar_path
from deploy_tools.errors import ArtifactError, MissingDependencyError, UserError
from deploy_tools.runtimes import RuntimeConfig, open_session, tensorrt
from deploy_tools.runtimes.engine_runner import EngineIO, EngineRunner
from deploy_tools.runtimes.flavours import Flavour, find_flavour
from deploy_tools.runtimes.gpu import Gpu, find_gpu

CONFIG = RuntimeConfig("tensorrt-rtx")
L4 = Gpu("NVIDIA L4", "8.9", "13.0", "13.0", 24 << 30)


@pytest.fixture
def engine(demo_engine: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    for path in (demo_engine, sidecar_path(demo_engine)):
        shutil.copy(path, tmp_path / path.name)
    return tmp_path / demo_engine.name


def change(engine: Path, **values: Any) -> None:
    path = sidecar_path(engine)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> HostMemory:
    """Claim that there is a GPU; its memory is on the host."""
    memory = HostMemory()
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: L4)
    monkeypatch.setattr(tensorrt, "memory_named", lambda name: memory)
    return memory


@pytest.fixture
def no_gpu() -> None:
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")


def test_what_is_no_engine(demo_onnx: Path, tmp_path: Path) -> None:
    for runtime in ("tensorrt", "tensorrt-rtx"):
        with pytest.raises(UserError, match=f"deploy-tools build {demo_onnx}"):
            open_session(demo_onnx, RuntimeConfig(runtime))
    with pytest.raises(UserError, match="from its file"):
        open_session(b"engine", CONFIG)
    with pytest.raises(UserError, match="does not exist"):
        open_session(tmp_path / "none.engine", CONFIG)


def test_a_missing_sidecar_and_a_changed_engine_come_first(engine: Path) -> None:
    engine.write_bytes(engine.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match="engine_sha256"):
        open_session(engine, CONFIG)
    sidecar_path(engine).unlink()
    with pytest.raises(ArtifactError, match="no sidecar"):
        open_session(engine, CONFIG)


def test_another_flavour_or_version_is_refused_before_a_gpu_is_looked_for(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never() -> Any:
        raise AssertionError("the GPU is not asked for")

    monkeypatch.setattr(tensorrt, "find_gpu", never)
    with pytest.raises(ArtifactError, match="flavour is tensorrt-rtx in its sidecar and tensorrt"):
        open_session(engine, RuntimeConfig("tensorrt"))
    change(engine, tensorrt_version="1.6.0.1")
    with pytest.raises(ArtifactError, match=r"tensorrt_version is 1\.6\.0\.1 in its sidecar"):
        open_session(engine, CONFIG)
    with pytest.raises(ArtifactError, match="tensorrt_version"):
        tensorrt.inspector_json(engine)


def test_settings_that_an_engine_cannot_take(engine: Path) -> None:
    with pytest.raises(UserError, match="built for fp32 and cannot run in bf16"):
        open_session(engine, RuntimeConfig("tensorrt-rtx", precision="bf16"))
    with pytest.raises(UserError, match="fused when it was built"):
        open_session(engine, RuntimeConfig("tensorrt-rtx", fusions=False))


@pytest.mark.usefixtures("no_gpu")
def test_no_gpu_is_exit_3_with_the_reason(engine: Path) -> None:
    for use in (lambda: open_session(engine, CONFIG), lambda: tensorrt.inspector_json(engine)):
        with pytest.raises(MissingDependencyError) as caught:
            use()
        assert caught.value.exit_code == 3
        assert str(engine) in caught.value.message
        assert tensorrt.why_no_gpu() in caught.value.message
        assert "ONNX file runs here" in caught.value.hint


def test_a_gpu_that_the_flavour_does_not_run_on(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopper = Gpu("NVIDIA H100", "9.0", "13.0", "13.0", 80 << 30)
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: hopper)
    with pytest.raises(MissingDependencyError, match=r"RTX .*H100 \(compute capability 9\.0\)"):
        open_session(engine, CONFIG)


def test_what_tensorrt_refuses_is_told_in_its_own_words(engine: Path, gpu: HostMemory) -> None:
    """TensorRT for RTX gets the file for real, and says why it does not take it."""
    engine.write_bytes(b"no engine at all, but a sidecar that says so" * 100)
    change(engine, engine_sha256=sha256_of_file(engine))
    with pytest.raises(ArtifactError, match=r"NVIDIA L4: .*magicTag") as caught:
        open_session(engine, CONFIG)
    assert "deploy-tools build" in caught.value.hint
    assert gpu.closed == 1


@pytest.mark.usefixtures("no_gpu")
def test_a_good_engine_reaches_tensorrt_and_only_cuda_is_missing(
    engine: Path, gpu: HostMemory
) -> None:
    for use in (lambda: open_session(engine, CONFIG), lambda: tensorrt.inspector_json(engine)):
        with pytest.raises(ArtifactError, match=r"CUDA|Cuda"):
            use()
    assert gpu.closed == 2
    assert gpu.live == {}


def session_over(memory: HostMemory, engine: Path) -> tensorrt.TensorRtSession:
    io = EngineIO(str(engine), "input", ("logits",), (1, 1, 3, 3), (4, 1, 3, 3))
    runner = EngineRunner(memory, lambda: AddingContext(memory), io)
    with ExitStack() as kept:
        kept.callback(memory.close)
        kept.callback(runner.close)
        errors = tensorrt._Errors(find_flavour("tensorrt-rtx"))
        return tensorrt.TensorRtSession(runner, read_sidecar(engine), L4, kept.pop_all(), errors)


def test_what_a_session_says_and_gives_back(engine: Path) -> None:
    change(engine, precision="int8+fp16")
    memory = HostMemory()
    session = session_over(memory, engine)
    assert (session.runtime, session.provider, session.precision) == (
        "tensorrt-rtx", "NVIDIA L4", "int8+fp16",
    )  # fmt: skip
    assert (session.threads, session.streams, session.cuda_graph) == (1, 1, False)
    assert (session.smallest_batch, session.largest_batch) == (1, 32)
    assert (session.input_name, session.output_names) == ("input", ("logits",))
    inputs = np.ones((3, 1, 3, 3), np.float32)
    np.testing.assert_array_equal(session.run(inputs)[0], [[9, 18]] * 3)
    session.close()
    session.close()
    assert (memory.live, memory.closed) == ({}, 1)
    with pytest.raises(RuntimeError, match="closed"):
        session.run(inputs)
    with pytest.raises(RuntimeError, match="closed"):
        session.time_batches(inputs)


def test_a_session_that_is_forgotten_gives_everything_back(engine: Path) -> None:
    memory = HostMemory()
    session = session_over(memory, engine)
    session.run(np.ones((1, 1, 3, 3), np.float32))
    assert memory.live
    del session
    gc.collect()
    assert (memory.live, memory.closed) == ({}, 1)


def test_a_batch_that_cannot_be_timed_is_refused(engine: Path) -> None:
    session = session_over(HostMemory(), engine)
    session.require_batch(4)
    with pytest.raises(UserError, match="batches of 1 to 4"):
        session.require_batch(5)


def test_a_runtime_that_tensorrt_does_not_give_is_exit_3(
    engine: Path, gpu: HostMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pybind11 raises TypeError where createInferRuntime returns a null pointer."""

    def null(logger: Any) -> Any:
        logger.log(trt.ILogger.ERROR, "CUDA initialization failure with error: 35.")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt = find_flavour("tensorrt-rtx").module
    monkeypatch.setattr(trt, "Runtime", null)
    with pytest.raises(MissingDependencyError) as caught:
        open_session(engine, CONFIG)
    assert caught.value.exit_code == 3
    assert "NVIDIA L4: CUDA initialization failure with error: 35. " in str(caught.value)
    assert gpu.closed == 1


def test_times_carry_the_state_of_the_gpu(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter([{"temperature.gpu": 40.0}, {"temperature.gpu": 55.0}])
    monkeypatch.setattr(tensorrt, "gpu_state", lambda: next(states))
    session = session_over(HostMemory(), engine)
    inputs = np.ones((2, 1, 3, 3), np.float32)
    times = session.time_batches(inputs, repeats=4, warmup=3)
    assert (times.batch, times.warmup, len(times.compute_ms)) == (2, 3, 4)
    assert (times.with_copies_ms >= times.compute_ms).all()
    assert (times.before, times.after) == ({"temperature.gpu": 40.0}, {"temperature.gpu": 55.0})
    quiet = session.time_batches(inputs, 1, 0, read_state=False)  # the states are used up
    assert (quiet.before, quiet.after) == ({}, {})


def loaded(flavour: Flavour, engine: Any) -> Any:
    errors = SimpleNamespace(take=lambda: "")
    return tensorrt._Loaded(flavour, L4, HostMemory(), errors, None, engine)


def test_contexts_of_rtx_compile_eagerly_and_capture_graphs_themselves() -> None:
    pytest.importorskip("tensorrt_rtx")
    flavour = find_flavour("tensorrt-rtx")
    trt = flavour.module
    asked: list[Any] = []
    engine = SimpleNamespace(
        create_runtime_config=SimpleNamespace, create_execution_context=asked.append
    )
    for graph, strategy in ((True, "WHOLE_GRAPH_CAPTURE"), (False, "DISABLED")):
        loaded(flavour, engine).new_context(graph)()
        settings = asked.pop()
        assert settings.cuda_graph_strategy == getattr(trt.CudaGraphStrategy, strategy)
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        assert settings.dynamic_shapes_kernel_specialization_strategy == eager


def test_contexts_of_the_full_tensorrt_need_no_settings() -> None:
    engine = SimpleNamespace(create_execution_context=lambda: "context")
    module: Any = SimpleNamespace()
    kept = loaded(Flavour("tensorrt", module, "10.16.1"), engine)
    assert kept.new_context(True)() == "context"
    kept.drop()
    assert (kept.engine, kept.runtime) == (None, None)


def test_floats_or_pixels_go_in() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    dtypes = {"input": trt.uint8}
    kept = loaded(
        find_flavour("tensorrt-rtx"), SimpleNamespace(get_tensor_dtype=dtypes.__getitem__)
    )
    assert kept.input_dtype(Path("x.engine"), "input") == np.uint8
    dtypes["input"] = trt.float32
    assert kept.input_dtype(Path("x.engine"), "input") == np.float32
    dtypes["input"] = trt.float16
    with pytest.raises(UserError, match=r'"input" is HALF; .*float32 or uint8'):
        kept.input_dtype(Path("x.engine"), "input")


def test_only_float32_comes_out() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    io = EngineIO("x.engine", "input", ("logits",), (1, 1, 3, 3), (4, 1, 3, 3))
    dtypes = {"input": trt.float32, "logits": trt.float16}
    engine = SimpleNamespace(get_tensor_dtype=dtypes.__getitem__)
    with pytest.raises(UserError, match=r'x\.engine: "logits" is HALF; .* float32.* cast fp16'):
        loaded(find_flavour("tensorrt-rtx"), engine).require_float_outputs(io)
    dtypes["logits"] = trt.int64
    with pytest.raises(UserError, match=r'"logits" is INT64; .*no ArgMax') as caught:
        loaded(find_flavour("tensorrt-rtx"), engine).require_float_outputs(io)
    assert "cast fp16" not in caught.value.hint
    dtypes["logits"] = trt.float32
    loaded(find_flavour("tensorrt-rtx"), engine).require_float_outputs(io)
