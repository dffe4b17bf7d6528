"""Exit codes are a contract with the programs that call the tool."""

from __future__ import annotations

import sys

import pytest

from deploy_tools import errors


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UserError, 2),
        (errors.MissingDependencyError, 3),
        (errors.BudgetError, 4),
        (errors.ArtifactError, 7),
        (errors.OutputError, 8),
        (errors.PartialError, 9),
    ],
)
def test_exit_codes(kind: type[errors.DeployToolsError], code: int) -> None:
    assert kind("x").exit_code == code
    assert issubclass(kind, errors.DeployToolsError)


def test_message_and_hint_print_as_one_line() -> None:
    assert str(errors.UserError("wrong.", "Do this.")) == "wrong. Do this."
    assert str(errors.UserError("wrong.")) == "wrong."


def test_nearest_suggests_or_lists() -> None:
    assert errors.nearest("ort-cpo", ["openvino", "ort-cpu"]) == 'Did you mean "ort-cpu"?'
    assert errors.nearest("zzz", ["b", "a"]) == "Known: a, b."


def test_require_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "some_runtime", None)
    with pytest.raises(errors.MissingDependencyError) as caught:
        errors.require("some_runtime", "openvino", "The openvino runtime")
    assert "The openvino runtime needs some_runtime" in caught.value.message
    assert "'deploy-tools[openvino]'" in caught.value.hint


def test_require_of_a_base_dependency_names_no_empty_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "some_runtime", None)
    with pytest.raises(errors.MissingDependencyError) as caught:
        errors.require("some_runtime", "", "Running")
    assert "'deploy-tools'" in caught.value.hint


def test_require_returns_the_module() -> None:
    assert errors.require("json", "", "x") is sys.modules["json"]
