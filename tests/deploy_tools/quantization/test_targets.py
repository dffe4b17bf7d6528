"""Targets by name."""

from __future__ import annotations

import pytest

from deploy_tools.errors import UserError
from deploy_tools.quantization.targets import TARGETS, target_named
from deploy_tools.runtimes import RUNTIMES


def test_the_targets_of_the_design() -> None:
    layouts = {
        name: (t.activations, t.reduce_range, t.grid, t.layout) for name, t in TARGETS.items()
    }
    assert layouts == {
        "ort-cpu": ("uint8", False, "u8", "cpu"),
        "openvino": ("uint8", False, "u8", "openvino"),
        "arm": ("int8", False, "u8", "cpu"),
        "x86-no-vnni": ("uint8", True, "u8", "cpu"),
        "tensorrt": ("int8", False, "s8", "tensorrt"),
    }


def test_every_target_is_measured_in_a_known_runtime() -> None:
    assert all(target.runtime in RUNTIMES for target in TARGETS.values())


def test_unknown_target() -> None:
    assert target_named("arm").name == "arm"
    with pytest.raises(UserError, match='"x86" is not known'):
        target_named("x86")
    with pytest.raises(UserError, match='Did you mean "openvino"'):
        target_named("openvno")
