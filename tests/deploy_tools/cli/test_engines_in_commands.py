"""`bench` and `predict` with engines, as far as a machine without a GPU goes.

The tests in tests/gpu run the same commands where there is one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy_tools.artifacts import sha256_of_file
from deploy_tools.cli import model as opening
from deploy_tools.cli.main import main
from deploy_tools.engine_files import sidecar_path
from deploy_tools.pipeline.tuned import machine_facts
from deploy_tools.runtimes import RuntimeConfig, open_session
from deploy_tools.runtimes.gpu import find_gpu, why_no_gpu
from deploy_tools.tuning.files import Tuning, write_tuning
from deploy_tools.tuning.settings import Settings

Capture = pytest.CaptureFixture[str]
SOURCE = ["--source", "fashion-mnist", "-q"]


@pytest.fixture
def engine(demo_engine: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    for path in (demo_engine, sidecar_path(demo_engine)):
        shutil.copy(path, tmp_path / path.name)
    return tmp_path / demo_engine.name


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("L", (28, 28)).save(path)
    return path


def commands(engine: Path, image: Path, *before: Path) -> list[list[str]]:
    files = [*map(str, before), str(engine)]
    return [
        ["bench", "speed", *files, *SOURCE],
        ["bench", "accuracy", *files, "--images", "8", *SOURCE],
        ["predict", str(engine), str(image)],
    ]


def change(engine: Path, **values: Any) -> None:
    path = sidecar_path(engine)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_without_a_gpu_they_end_with_3_and_the_reason(
    engine: Path, demo_onnx: Path, image: Path, capsys: Capture
) -> None:
    if find_gpu() is not None:
        pytest.skip("there is a GPU here")
    for command in (*commands(engine, image), *commands(engine, image, demo_onnx)):
        assert main(command) == 3, command
        said = capsys.readouterr()
        assert f"{engine} runs on a GPU, and there is none to use: {why_no_gpu()}." in said.err
        assert "Traceback" not in said.err
        assert said.out == ""


@pytest.mark.parametrize(
    ("field", "value"),
    [("tensorrt_version", "1.6.0.5"), ("engine_sha256", "0" * 64)],
)
def test_an_engine_that_does_not_fit_ends_with_7_and_the_field(
    engine: Path, image: Path, field: str, value: str, capsys: Capture
) -> None:
    change(engine, **{field: value})
    for command in commands(engine, image):
        assert main(command) == 7, command
        assert field in capsys.readouterr().err


def test_an_engine_of_a_flavour_that_is_not_installed_ends_with_3(
    engine: Path, image: Path, capsys: Capture
) -> None:
    from deploy_tools.runtimes.flavours import installed_flavours

    if "tensorrt" in installed_flavours():
        pytest.skip("TensorRT is installed")
    change(engine, flavour="tensorrt", versions={"tensorrt": "10.16.1.11"})
    for command in commands(engine, image):
        assert main(command) == 3
        assert "deploy-tools[tensorrt]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"),
    [("flavour", "tensorrt"), ("flavour", "foo"), ("build_seconds", float("nan"))],
)
def test_an_edited_sidecar_ends_with_7_and_its_name(
    engine: Path, image: Path, field: str, value: Any, capsys: Capture
) -> None:
    change(engine, **{field: value})
    inspected = ["inspect", str(engine)]
    for command in (*commands(engine, image), inspected, [*inspected, "--json"]):
        assert main(command) == 7, command
        said = capsys.readouterr().err
        assert f"{sidecar_path(engine)} is damaged" in said
        assert field in said or "JSON" in said


def test_a_damaged_or_missing_sidecar_ends_with_7(
    engine: Path, image: Path, capsys: Capture
) -> None:
    change(engine, input_spec={"size": "large"})
    for command in commands(engine, image):
        assert main(command) == 7
        assert "input spec" in capsys.readouterr().err
    sidecar_path(engine).unlink()
    for command in commands(engine, image):
        assert main(command) == 7
        assert "no sidecar" in capsys.readouterr().err


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_an_onnx_file_is_to_be_built_first(
    runtime: str, demo_onnx: Path, image: Path, capsys: Capture
) -> None:
    for command in commands(demo_onnx, image):
        assert main([*command, "--provider", runtime]) == 2
        assert f"deploy-tools build {demo_onnx}" in capsys.readouterr().err


class Clocked:
    """An onnxruntime session that also gives event timings, as an engine's session does."""

    def __init__(self, session: Any, ms: float) -> None:
        self._session, self._ms = session, ms
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def time_batches(self, inputs: Any, repeats: int, warmup: int, read_state: bool) -> Any:
        times = np.full(repeats, self._ms * len(inputs))
        return SimpleNamespace(compute_ms=times, with_copies_ms=2 * times)

    cuda_graph = False

    def require_batch(self, batch: int) -> None:
        """It takes every one; what the sidecar says is held to before."""

    def close(self) -> None:
        self.closed = True
        self._session.close()


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch, demo_onnx: Path) -> list[tuple[Any, Clocked]]:
    """Let onnxruntime answer for engines, so that the way through the commands can be followed."""
    opened: list[tuple[Any, Clocked]] = []

    def open_either(path: Path, config: RuntimeConfig) -> Any:
        if path.suffix != ".engine":
            return open_session(path, config)
        session = Clocked(
            open_session(demo_onnx, RuntimeConfig(threads=1)), 0.5 / (len(opened) + 1)
        )
        opened.append((config, session))
        return session

    monkeypatch.setattr(opening, "open_session", open_either)
    return opened


def second_engine(engine: Path) -> Path:
    other = engine.with_name("other.engine")
    shutil.copy(engine, other)
    shutil.copy(sidecar_path(engine), sidecar_path(other))
    change(other, engine_sha256=sha256_of_file(other))
    return other


def test_speed_times_engines_with_events_too_and_keeps_the_samples(
    engine: Path,
    demo_onnx: Path,
    tmp_path: Path,
    on_a_gpu: list[tuple[Any, Clocked]],
    capsys: Capture,
) -> None:
    files = [str(demo_onnx), str(engine), str(second_engine(engine))]
    quick = ["--rounds", "3", "--seconds", "0.01", "--batch", "4"]
    kept = ["-o", str(tmp_path / "kept")]
    options = ["--memory", "pycuda", "--cuda-graph", "--threads", "1"]
    assert main(["bench", "speed", *files, *SOURCE, *quick, *kept, *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["baseline"] == files[0]
    assert [(run["model"], run["batch"]) for run in found["runs"]] == [
        (name, batch) for batch in (1, 4) for name in files
    ]
    assert found["gpu_baseline"] == files[1]
    assert {run["cuda_graph"] for run in found["gpu_runs"]} == {False}
    runs = {(run["model"], run["batch"]): run for run in found["gpu_runs"]}
    assert list(runs) == [(name, batch) for batch in (1, 4) for name in files[1:]]
    assert runs[files[1], 4]["compute_p50_ms"] == 2.0
    assert runs[files[1], 4]["with_copies_p50_ms"] == 4.0
    assert runs[files[2], 1]["compute_speedup"] == 2.0
    for run in (*found["runs"], *found["gpu_runs"]):
        assert Path(run["samples"]).is_file()
    assert sorted(path.name for path in (tmp_path / "kept" / "samples").iterdir()) == [
        "fp32.engine.gpu.jsonl", "fp32.engine.jsonl", "fp32.onnx.jsonl",
        "other.engine.gpu.jsonl", "other.engine.jsonl",
    ]  # fmt: skip
    for config, session in on_a_gpu:
        assert config == RuntimeConfig("tensorrt-rtx", 0, "", True, "pycuda", True)
        assert session.closed


def test_speed_prints_a_second_table_for_engines_only(
    engine: Path, demo_onnx: Path, on_a_gpu: Any, capsys: Capture
) -> None:
    quick = ["--rounds", "3", "--seconds", "0.01"]
    assert main(["bench", "speed", str(demo_onnx), str(engine), *SOURCE, *quick]) == 0
    said = capsys.readouterr().out
    assert "CUDA events" in said
    assert "0.5000" in said
    assert "of the computation alone" in said
    assert said.count("without --cuda-graph: the compute time holds the gaps") == 1
    assert main(["bench", "speed", str(demo_onnx), *SOURCE, *quick]) == 0
    assert "CUDA events" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("profile", "options", "words"),
    [
        ((1, 8, 32), ["--batch", "33"], "--batch 1:32:33. Or leave offline out: --scenario single-stream."),
        ((8, 8, 8), [], "--batch 1:8:8. Or leave single-stream out: --scenario offline."),
        ((8, 8, 8), ["--scenario", "single-stream"], "--batch 1:8:8.\n"),
        ((8, 8, 8), ["--scenario", "offline", "--batch", "4"], "none of 4 can be timed"),
    ],
)  # fmt: skip
def test_a_batch_outside_the_profile_is_refused_before_anything_is_timed(
    profile: tuple[int, ...], options: list[str], words: str, engine: Path, demo_onnx: Path,
    on_a_gpu: list[tuple[Any, Clocked]], monkeypatch: pytest.MonkeyPatch, capsys: Capture,
) -> None:  # fmt: skip
    def never(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it is run")

    monkeypatch.setattr(Clocked, "run", never, raising=False)
    sizes = zip(("min", "opt", "max"), profile, strict=True)
    change(engine, profile={key: [size, 1, 28, 28] for key, size in sizes})
    assert main(["bench", "speed", str(demo_onnx), str(engine), *SOURCE, *options]) == 2
    assert words in capsys.readouterr().err
    assert all(session.closed for _, session in on_a_gpu)


def test_a_tuned_batch_outside_the_profile_is_not_used(
    engine: Path, demo_onnx: Path, on_a_gpu: Any, tmp_path: Path, capsys: Capture
) -> None:
    model = Path(shutil.copy(demo_onnx, tmp_path / "tuned.onnx"))
    settings = Settings(batch=16)
    facts, sha256 = machine_facts()[0], sha256_of_file(model)
    write_tuning(model, Tuning(sha256, facts, None, settings, False, Settings(), {}), None)
    change(engine, profile={key: [size, 1, 28, 28] for key, size in zip(("min", "opt", "max"), (1, 8, 8), strict=True)})  # fmt: skip
    quick = [*SOURCE[:-1], "--rounds", "3", "--seconds", "0.01", "--json"]
    assert main(["bench", "speed", str(model), str(engine), *quick]) == 0
    said = capsys.readouterr()
    assert {run["batch"] for run in json.loads(said.out)["runs"]} == {1, 8}
    assert f"{engine} takes no batch of 16, for which the others are tuned: 8 is used" in said.err
    assert main(["bench", "speed", str(model), str(engine), *quick, "--batch", "16"]) == 2
    assert "none of 16 can be timed" in capsys.readouterr().err


def test_one_scenario_can_be_left_out(
    engine: Path, demo_onnx: Path, on_a_gpu: Any, capsys: Capture
) -> None:
    change(engine, profile={key: [8, 1, 28, 28] for key in ("min", "opt", "max")})
    quick = ["--rounds", "3", "--seconds", "0.01", "--scenario", "offline", "--json"]
    assert main(["bench", "speed", str(engine), *SOURCE, *quick]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["scenario"] for run in found["runs"]] == ["offline"]
    assert [run["batch"] for run in found["gpu_runs"]] == [8]
    one = ["--scenario", "single-stream", "--batch", "8"]
    assert main(["bench", "speed", str(demo_onnx), *SOURCE, *one]) == 2
    assert "--batch has no effect here" in capsys.readouterr().err


def test_options_that_no_file_uses_are_refused(
    engine: Path, demo_onnx: Path, image: Path, on_a_gpu: Any, capsys: Capture
) -> None:
    def refused(command: list[str], *option: str) -> None:
        assert main([*command, *option]) == 2, (command, option)
        assert f"{option[0]} has no effect here" in capsys.readouterr().err

    for command in commands(engine, image):
        refused(command, "--provider", "onnxruntime")
        refused(command, "--threads", "1")
        if command[0] == "bench":
            refused(command, "--precision", "fp32")
    for command in commands(demo_onnx, image):
        refused(command, "--memory", "cuda-python")
        refused(command, "--cuda-graph")
    assert on_a_gpu == []  # before any file is opened
    assert main(["predict", str(engine), str(image), "--cuda-graph", "--memory", "pycuda"]) == 0
    assert main(["predict", str(demo_onnx), str(image), "--threads", "1"]) == 0


def test_accuracy_keeps_within_the_largest_batch_and_reads_the_sidecars_spec(
    engine: Path, demo_onnx: Path, on_a_gpu: Any, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(
        Clocked,
        "run",
        lambda self, inputs: (sizes.append(len(inputs)), self._session.run(inputs))[1],
        raising=False,
    )
    files = [str(demo_onnx), str(engine)]
    assert main(["bench", "accuracy", *files, "--images", "70", *SOURCE, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["models"]
    assert found[files[1]]["agreement"] == 1.0
    assert max(sizes) == 32  # the engine's; ONNX files take 64
    assert sum(sizes) == 70


def test_predict_reads_the_sidecars_spec(
    engine: Path, demo_onnx: Path, image: Path, on_a_gpu: Any, capsys: Capture
) -> None:
    assert main(["predict", str(demo_onnx), str(image)]) == 0
    wanted = capsys.readouterr().out
    assert main(["predict", str(engine), str(image)]) == 0
    assert capsys.readouterr().out == wanted
    change(engine, input_spec=None)
    assert main(["predict", str(engine), str(image)]) == 2
    assert "no input spec in its sidecar" in capsys.readouterr().err


def test_files_of_timings_are_told_apart() -> None:
    from deploy_tools.cli.bench import _file_names

    assert _file_names(["a/x.onnx", "y.onnx"]) == {"a/x.onnx": "x.onnx", "y.onnx": "y.onnx"}
    assert _file_names(["a/x.onnx", "/b/x.onnx", "y.onnx", "y.onnx"]) == {
        "a/x.onnx": "a_x.onnx", "/b/x.onnx": "b_x.onnx", "y.onnx": "y.onnx",
    }  # fmt: skip
