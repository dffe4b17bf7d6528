import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks.studies.base import Claim, run_study
from deploy_tools.errors import MissingDependencyError, UserError


def study(results):
    """Measure two things."""
    results.row(model="resnet20", top1=0.9173, quick=results.quick)
    results.claim("top-1", 0.9173, ">=", 0.9)
    results.claim("memory, GB", 2.5, "<", 2)


def test_people_read_rows_and_claims_met_or_not():
    done = CliRunner().invoke(run_study("some", study), [])
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        "model resnet20  top1 0.9173  quick False",
        "met      top-1: 0.9173 (target >= 0.9)",
        "NOT MET  memory, GB: 2.5 (target < 2)",
        "some: 1 of 2 claims met.",
    ]


def test_json_is_the_last_line_and_the_only_one_on_stdout(tmp_path):
    out = tmp_path / "sub" / "some.json"
    done = CliRunner().invoke(run_study("some", study), ["--quick", "--json", "-o", str(out)])
    assert done.exit_code == 0
    (line,) = done.stdout.splitlines()
    values = json.loads(line)
    assert sorted(values) == ["claims", "command", "environment", "rows", "study"]
    assert values["study"] == "some"
    assert values["command"] == "python -m benchmarks.studies.some --quick"
    assert values["rows"] == [{"model": "resnet20", "top1": 0.9173, "quick": True}]
    assert values["claims"][1] == {
        "name": "memory, GB",
        "value": 2.5,
        "target": "< 2",
        "met": False,
    }
    assert values["environment"]["packages"]["deploy-tools"]
    assert json.loads(out.read_text()) == values
    assert [path.name for path in out.parent.iterdir()] == ["some.json"]
    assert "NOT MET" in done.stderr


def test_user_errors_give_their_exit_code():
    def broken(results):
        raise MissingDependencyError("no runtime.", "Install one.")

    done = CliRunner().invoke(run_study("some", broken), [])
    assert done.exit_code == 3
    assert done.stderr == "error: no runtime. Install one.\n"


def test_a_value_that_could_not_be_measured_is_not_met():
    claim = Claim.that("speed", None, ">=", 1)
    assert (claim.met, claim.value, claim.target) == (False, None, ">= 1")
    assert Claim.that("x", 1.0, "==", 1).met
    assert not Claim.that("x", 1.0, ">", 1).met
    with pytest.raises(UserError):
        Claim.that("x", 1.0, "=>", 1)


def test_help_comes_from_the_study():
    done = CliRunner().invoke(run_study("some", study), ["--help"])
    assert "Measure two things." in done.stdout


def test_rows_are_kept_as_they_come(tmp_path):
    def broken(results):
        results.row(number=1)
        own = results.own()
        own.row(number=2)
        results.add(own)
        results.claim("some", 1.0, ">=", 2.0)
        raise RuntimeError("the power is out")

    out = tmp_path / "some.json"
    done = CliRunner().invoke(run_study("some", broken), ["-o", str(out)])
    assert isinstance(done.exception, RuntimeError)
    assert not out.exists()
    kept = json.loads((tmp_path / "some.json.part").read_text("utf-8"))
    assert kept["rows"] == [{"number": 1}, {"number": 2}]
    assert [claim["met"] for claim in kept["claims"]] == [False]
    assert kept["environment"]["cpu"]["model"]


def test_the_command_names_no_path_and_what_was_not_given(tmp_path):
    path = click.Path(path_type=Path)
    options = [
        click.Option(["--data"], type=path, required=True),
        click.Option(["--weights"], type=path, metavar="FILE"),
        click.Option(["--keep"], type=path),
        click.Option(["--model", "models"], multiple=True),
        click.Option(["--seeds"], type=int, default=3),
        click.Option(["--depth"], type=int, default=3),
    ]
    found = []

    def some(results, **own):
        found.append(results.command)

    arguments = ["--model", "a b", "--data", str(tmp_path), "--model", "c", "--seeds", "3"]
    arguments += ["--keep", str(tmp_path), "--json", "--weights", str(tmp_path / "x"), "--quick"]
    assert CliRunner().invoke(run_study("some", some, options), arguments).exit_code == 0
    assert found == [
        "python -m benchmarks.studies.some --quick --data DIR --weights FILE "
        "--model 'a b' --model c --seeds 3"
    ]
