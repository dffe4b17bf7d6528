"""`run` through the command line: exit codes, --dry-run, --force, --json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy_tools.cli.main import main

RECIPE = """
[model]
arch = "resnet20-cifar"
checkpoint = "{checkpoint}"
[data]
source = "fashion-mnist"
calibration = {{ images = 32 }}
evaluation = {{ images = 200 }}
[[variant]]
precision = "int8"
method = "static"
[speed]
scenarios = []
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> tuple[str, str]:
    """A recipe and the folder of a finished run."""
    folder = tmp_path_factory.mktemp("codes")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(checkpoint=demo_checkpoint))
    assert main(["run", str(recipe), "-o", str(folder / "out"), "-q"]) == 0
    return str(recipe), str(folder / "out")


def test_the_table_and_where_the_report_is(
    done: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", done[0], "-o", done[1], "-q", "-v"]) == 0
    shown = capsys.readouterr().out
    assert "int8-static-ort" in shown
    assert "report.html" in shown
    assert "keep  fp32.onnx" in shown
    assert "make" not in shown


def test_dry_run_and_force(done: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    args = ["run", done[0], "-o", done[1], "-q", "--dry-run", "--json"]
    assert main(args) == 0
    assert json.loads(capsys.readouterr().out)["made"] == []
    assert main([*args, "--force", "quantize"]) == 0
    made = json.loads(capsys.readouterr().out)["made"]
    assert "int8-static-ort.onnx" in made
    assert "fp32.onnx" not in made
    assert main([*args, "--force", "quantise"]) == 2


def test_over_the_budget_is_exit_4(
    done: tuple[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    change = ["--set", "variant.0.exclude=[]", "--set", "budget.max_drop_pp=0.0"]
    # Bias: calibrate on one image with clipping ranges, so that accuracy is really lost.
    worse = [
        "--set",
        "data.calibration.images=1",
        "--set",
        "variant.0.ranges=percentile",
        "--set",
        "variant.0.percentile=60.0",
        *("--set", "variant.0.equalize=false", "--set", "variant.0.rounding=nearest"),
        *("--set", "variant.0.bias_correction=false"),
    ]
    code = main(["run", done[0], "-o", str(tmp_path / "out"), "-q", *change, *worse])
    shown = capsys.readouterr()
    assert code == 4, shown.out
    assert "over the budget of 0.0" in shown.err
    assert "int8-static-ort" in shown.err
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_failed_variant_is_exit_9(
    done: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        ["run", done[0], "-o", done[1], "-q", "--set", "variant.0.exclude=['no-such-node']"]
    )
    assert code == 9
    assert "no-such-node" in capsys.readouterr().err


def test_json_is_the_report(done: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", done[0], "-o", done[1], "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(
        (Path(done[1]) / "report.json").read_text()
    )
