import json

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
    assert sorted(values) == ["claims", "environment", "rows", "study"]
    assert values["study"] == "some"
    assert values["rows"] == [{"model": "resnet20", "top1": 0.9173, "quick": True}]
    assert values["claims"][1] == {
        "name": "memory, GB",
        "value": 2.5,
        "target": "< 2",
        "met": False,
    }
    assert values["environment"]["packages"]["deploy-tools"]
    assert json.loads(out.read_text()) == values
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
