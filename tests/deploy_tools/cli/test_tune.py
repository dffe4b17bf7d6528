"""deploy-tools tune on a small model, and the commands that read what it wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import predictions
from deploy_tools.artifacts import ArtifactDirectory, read_manifest, sha256_of_file
from deploy_tools.cli.main import main
from deploy_tools.data.source import ImageSource
from deploy_tools.pipeline import tuned
from deploy_tools.pipeline.tuned import machine_facts
from deploy_tools.quantization.dynamic import dynamic_from_onnx
from deploy_tools.tuning.files import Tuning, read_tuning, tuning_path, write_tuning
from deploy_tools.tuning.settings import Settings

Capture = pytest.CaptureFixture[str]
DATA = ["--source", "fashion-mnist", "--split", "test"]  # fewer images to read
QUICK = [*DATA, "--seconds", "0.5", "--provider", "onnxruntime", "-q"]


@pytest.fixture
def model(demo_onnx: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(demo_onnx, tmp_path / "fp32.onnx"))


def tune_by_hand(model: Path, settings: Settings, **changes: Any) -> None:
    """Write a tuning without measuring one."""
    facts = {"machine": machine_facts()[0]} | changes
    tuning = Tuning(
        sha256_of_file(model), facts["machine"], None, settings, False, Settings(), {"chosen": {}}
    )
    write_tuning(model, tuning, None)


SHAPED = Settings(threads=2, streams=2, batch=4)


def test_it_measures_and_writes(model: Path, capsys: Capture) -> None:
    assert main(["tune", str(model), *QUICK, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["file"]) == tuning_path(model)
    tuning = read_tuning(model)
    assert tuning is not None
    assert tuning.settings.to_dict() == found["settings"]
    assert tuning.machine == machine_facts()[0]
    assert tuning.is_default == (found["settings"] == found["default"])
    assert all(
        row["settings"]["runtime"] == "onnxruntime" for rung in found["rungs"] for row in rung
    )
    assert all(any(row["settings"] == found["default"] for row in rung) for rung in found["rungs"])
    if not tuning.is_default:
        assert tuning.measured["chosen"]["speedup_ci95"][0] > 1
        assert tuning.measured["default"]["batch"] == 8
    assert main(["inspect", str(model)]) == 0
    assert "\ntuned for throughput: onnxruntime" in capsys.readouterr().out


def test_another_provider_is_compared_with_what_commands_do(model: Path, capsys: Capture) -> None:
    pytest.importorskip("onnxruntime_ep_openvino")
    args = [*DATA, "--seconds", "0.5", "--provider", "openvino", "-q"]
    assert main(["tune", str(model), *args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["default"] == Settings().to_dict()
    tried = [row["settings"] for rung in found["rungs"] for row in rung]
    assert {settings["runtime"] for settings in tried} == {"onnxruntime", "openvino"}
    # What was not asked for is measured as it is, and never at another batch.
    assert all(s == found["default"] for s in tried if s["runtime"] == "onnxruntime")
    assert found["is_default"] == (found["settings"]["runtime"] == "onnxruntime")
    tuning = read_tuning(model)
    assert tuning is not None
    assert tuning.compared_with == Settings()
    if main(["tune", str(model), *args, "--precision", "bf16"]) == 3:
        assert "bfloat16" in capsys.readouterr().err
        pytest.skip("this CPU has no bf16")
    tuning = read_tuning(model)
    assert tuning is not None
    assert tuning.settings.precision == "bf16"
    assert not tuning.is_default  # it is not what commands do, even where nothing was faster
    assert tuning.compared_with == Settings("openvino", precision="bf16")
    said = capsys.readouterr().out
    assert (
        '"the default" is openvino, every core, bf16, batch 8 here: nothing was run in fp32' in said
    )


def test_people_see_what_was_tried_and_the_manifest_lists_it(model: Path, capsys: Capture) -> None:
    with ArtifactDirectory(model.parent) as directory:
        directory.add("fp32", "fp32.onnx", "export", {}, {})
    assert main(["tune", str(model), *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "onnxruntime, every core, batch 8" in shown
    assert "chosen: " in shown or "the default stays: " in shown
    assert f"Written to {tuning_path(model)}" in shown
    listed = read_manifest(model.parent)["fp32.onnx.tune.json"]
    assert listed.parents == {"fp32": sha256_of_file(model)}


def test_a_folder_that_is_held_is_told_before_anything_is_timed(
    model: Path, capsys: Capture
) -> None:
    with ArtifactDirectory(model.parent) as directory:
        directory.add("fp32", "fp32.onnx", "export", {}, {})
        assert main(["tune", str(model), *DATA, "--seconds", "9999", "-q"]) == 8
    assert not tuning_path(model).exists()


def test_a_limit_that_cannot_be_kept_is_exit_4_and_writes_nothing(
    model: Path, capsys: Capture
) -> None:
    args = ["--latency-ms", "0.001", *QUICK]
    assert main(["tune", str(model), *args]) == 4
    shown = capsys.readouterr().err
    assert "no setting keeps p99 within 0.001 ms; the nearest (onnxruntime" in shown
    assert not tuning_path(model).exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--throughput", "--latency-ms", "5"], "exclude each other"),
        (["--latency-ms", "0"], "latency-ms"),
        (["--latency-ms", "100", "--seconds", "5"], "Give --seconds 600"),
        (["--seconds", "0"], "seconds"),
        (["--provider", "tensorrt"], "provider"),
        (
            ["--precision", "bf16", "--provider", "onnxruntime"],
            "bf16 runs with --provider openvino",
        ),
        (["--precision", "int4"], "precision"),
        (["--split", "nothing"], "split"),
    ],
)
def test_wrong_arguments(model: Path, args: list[str], said: str, capsys: Capture) -> None:
    assert main(["tune", str(model), *DATA, *args]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


def test_files_that_cannot_be_tuned(tmp_path: Path, capsys: Capture) -> None:
    assert main(["tune", str(tmp_path / "none.onnx"), *DATA]) == 2
    (tmp_path / "x.engine").write_bytes(b"x")
    assert main(["tune", str(tmp_path / "x.engine"), *DATA]) == 2
    assert "is an engine" in capsys.readouterr().err


@pytest.fixture
def photo(tmp_path: Path, fashion_test: ImageSource) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(fashion_test.load(0)[..., 0]).save(path)
    return str(path)


def predicted(model: Path, photo: str, *args: str) -> int:
    return main(["predict", str(model), photo, "--json", *args])


def test_predict_runs_as_tuned(model: Path, photo: str, capsys: Capture) -> None:
    assert predicted(model, photo) == 0
    before = capsys.readouterr()
    tune_by_hand(model, SHAPED)
    assert predicted(model, photo, "-v") == 0
    after = capsys.readouterr()
    wanted, found = (json.loads(text)["classes"] for text in (before.out, after.out))
    assert [c["class"] for c in found] == [c["class"] for c in wanted]
    assert "tuned for throughput: onnxruntime, 2 threads, 2 streams, batch 4" in after.err
    assert "2 threads" in after.err.splitlines()[-1]


def test_predict_says_so_in_one_line(model: Path, photo: str, capsys: Capture) -> None:
    """It may run in another runtime than the user knows of."""
    tune_by_hand(model, SHAPED)
    assert predicted(model, photo) == 0
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"{model}: tuned for throughput: {SHAPED}"
    assert predicted(model, photo, "-q") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["predict"], "tune found; --provider and --threads do so too."),
        (["bench", "speed"], "tune found; --provider, --threads and --precision do so too."),
    ],
)
def test_the_help_names_options_that_the_command_has(
    command: list[str], said: str, capsys: Capture
) -> None:
    assert main([*command, "--help"]) == 0
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "args", [["--threads", "1"], ["--provider", "onnxruntime"], ["--no-tuned"]]
)
def test_what_the_user_says_wins(model: Path, photo: str, args: list[str], capsys: Capture) -> None:
    tune_by_hand(model, SHAPED)
    assert predicted(model, photo, "-v", *args) == 0
    assert "tuned" not in capsys.readouterr().err


def test_a_tuning_of_other_contents_is_exit_7(model: Path, photo: str, capsys: Capture) -> None:
    tune_by_hand(model, SHAPED)
    dynamic_from_onnx(model, model.parent / "other.onnx")
    (model.parent / "other.onnx").replace(model)
    assert predicted(model, photo) == 7
    assert "made for another file" in capsys.readouterr().err
    assert predicted(model, photo, "--no-tuned") == 0
    capsys.readouterr()
    assert main(["inspect", str(model)]) == 0
    assert "tuned (not usable: " in capsys.readouterr().out


def test_a_tuning_of_another_machine_is_named_once_and_the_default_used(
    model: Path, photo: str, capsys: Capture
) -> None:
    machine = machine_facts()[0]
    machine["cpu"] = machine["cpu"] | {"cores_usable": 999}
    tune_by_hand(model, SHAPED, machine=machine)
    assert predicted(model, photo) == 0
    shown = capsys.readouterr().err
    assert shown.count("not used here: cores_usable was 999 and is") == 1
    args = ["bench", "accuracy", str(model), *DATA, "--images", "20", "--json", "-q"]
    assert main(args) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["tuned"] == {}
    assert "the default is used" in said.err
    assert main(["inspect", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tuning"]["holds"] is False


def test_another_version_of_the_runtime_is_another_machine(
    model: Path, photo: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune_by_hand(model, SHAPED)
    facts, machine = machine_facts()
    newer = facts | {"packages": facts["packages"] | {"onnxruntime": "99"}}
    monkeypatch.setattr(tuned, "machine_facts", lambda: (newer, machine))
    assert predicted(model, photo) == 0
    assert "and is 99" in capsys.readouterr().err


def test_bench_speed_runs_as_tuned(model: Path, capsys: Capture) -> None:
    tune_by_hand(model, SHAPED)
    other = Path(shutil.copy(model, model.parent / "other.onnx"))
    args = [*DATA, "--rounds", "3", "--seconds", "0.01", "--scenario", "offline", "--json"]
    assert main(["bench", "speed", str(other), str(model), *args]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["tuned"] == {str(model): SHAPED.to_dict()}
    assert [run["streams"] for run in found["runs"]] == [1, 2]
    assert {run["batch"] for run in found["runs"]} == {4}
    assert "tuned for throughput" in said.err
    assert main(["bench", "speed", str(other), str(model), *args, "--batch", "2", "-q"]) == 0
    said = capsys.readouterr()
    assert {run["batch"] for run in json.loads(said.out)["runs"]} == {2}
    assert said.err == ""
    tune_by_hand(other, Settings(batch=16))
    assert main(["bench", "speed", str(other), str(model), *args]) == 0
    said = capsys.readouterr()
    assert {run["batch"] for run in json.loads(said.out)["runs"]} == {8}
    assert "tuned for batches of 4, 16: 8 is used" in said.err


def test_bench_accuracy_runs_as_tuned(model: Path, capsys: Capture) -> None:
    args = ["bench", "accuracy", str(model), *DATA, "--images", "50", "--json", "-q"]
    assert main(args) == 0
    before = json.loads(capsys.readouterr().out)
    tune_by_hand(model, SHAPED)
    assert main(args) == 0
    after = json.loads(capsys.readouterr().out)
    assert (before["tuned"], after["tuned"]) == ({}, {str(model): SHAPED.to_dict()})
    assert after["models"][str(model)]["top1"] == before["models"][str(model)]["top1"]


def test_bench_accuracy_takes_the_tuned_batch(
    model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = predictions.predictions_from_images

    def seen(session: Any, source: Any, spec: Any, batch: int, *rest: Any) -> Any:
        sizes.append(batch)
        return real(session, source, spec, batch, *rest)

    monkeypatch.setattr(predictions, "predictions_from_images", seen)
    other = Path(shutil.copy(model, model.parent / "other.onnx"))
    tune_by_hand(model, SHAPED)
    args = ["bench", "accuracy", str(model), str(other), *DATA, "--images", "20", "-q"]
    assert main(args) == 0
    assert sizes == [4, 64]
    tune_by_hand(model, Settings(batch=None))
    assert main(args) == 0
    assert sizes[2:] == [64, 64]
