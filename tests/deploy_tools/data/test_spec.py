"""The input spec: every value is checked where it enters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from deploy_tools.cli.main import main
from deploy_tools.data.spec import METADATA_KEY, InputSpec
from deploy_tools.errors import UserError

GOOD: dict[str, Any] = {"size": [8, 8], "mean": [0.5], "std": [0.25]}


@pytest.mark.parametrize("resize", [None, 1, 256, [8, 9]])
def test_good_values(resize: Any) -> None:
    spec = InputSpec.from_dict(GOOD | {"resize": resize})
    assert InputSpec.from_metadata({METADATA_KEY: spec.to_json()}) == spec
    assert InputSpec.from_dict(GOOD | {"mean": [0], "std": [1]}).mean == (0,)


@pytest.mark.parametrize("pixels", [0, -1, 8.0, "8", True, None])
def test_pixels_are_whole_numbers_above_zero(pixels: Any) -> None:
    for size in ([pixels, 8], [8, pixels]):
        with pytest.raises(UserError, match="input size must be"):
            InputSpec.from_dict(GOOD | {"size": size})
        with pytest.raises(UserError, match="input resize must be"):
            InputSpec.from_dict(GOOD | {"resize": size})
    if pixels is not None:
        with pytest.raises(UserError, match="input resize must be"):
            InputSpec.from_dict(GOOD | {"resize": pixels})


@pytest.mark.parametrize("pair", [[], [8], [8, 8, 8], "ab", 8])
def test_sizes_are_pairs(pair: Any) -> None:
    with pytest.raises(UserError, match="input size must be"):
        InputSpec.from_dict(GOOD | {"size": pair})
    if pair != 8:
        with pytest.raises(UserError, match="input resize must be"):
            InputSpec.from_dict(GOOD | {"resize": pair})


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, pytest.param(10**400, id="huge"), True, "1", None],
)
def test_mean_and_std_are_finite(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"input {key} must hold finite numbers"):
        InputSpec.from_dict(GOOD | {key: [value]})


@pytest.mark.parametrize(
    "text",
    ["1" * 5000, "[" * 100_000, "{", '{"size": [8, 8], "mean": [NaN], "std": [1]}'],
    ids=["huge", "deep", "cut", "nan"],
)
def test_metadata_that_is_no_spec(text: str) -> None:
    with pytest.raises(UserError):
        InputSpec.from_metadata({METADATA_KEY: text})


@pytest.mark.parametrize(
    ("option", "value"), [("--mean", "nan"), ("--std", "inf"), ("--resize", "0"), ("--size", "-3")]
)
def test_the_command_line_refuses_them(
    option: str, value: str, tmp_path: Path, demo_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = ["--arch", "resnet20-cifar", "--checkpoint", str(demo_checkpoint)]
    assert main(["fuse", *model, option, value, "-o", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert f"input {option.removeprefix('--')} must" in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()
