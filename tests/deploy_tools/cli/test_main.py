from __future__ import annotations

import click
import pytest

from deploy_tools.cli import main as entry
from deploy_tools.cli.main import COMMANDS, main
from deploy_tools.version import __version__


def verbs() -> list[list[str]]:
    groups = {
        "quantize": ["dynamic", "static", "qat"],
        "cast": ["fp16"],
        "bench": ["accuracy", "speed"],
    }
    return [
        [verb, *rest] for verb in COMMANDS for rest in ([[s] for s in groups.get(verb, [])] or [[]])
    ]


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_every_command_has_help_with_an_example(
    verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example:" in text or "Examples:" in text
    assert f"deploy-tools {' '.join(verb)}" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["quantise"], 'Did you mean "quantize"?'),
        (["demo", "--ouut", "x"], "--out"),
        (["bench", "accuracy"], "Missing argument"),
        (["export", "--arch", "resnet18"], "Missing option"),
        (["calibrate", "x.onnx", "--source", "npz", "-o", "x", "--method", "best"], "minmax"),
        (["run", "no-such-recipe.toml"], "does not exist"),
        (["inspect", "no-such.onnx"], "does not exist"),
    ],
)
def test_bad_usage_is_one_clear_message_and_exit_2(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device", "x"), 8),
        (PermissionError(13, "Permission denied", "x"), 8),
        (RuntimeError("surprise"), 1),
    ],
)
def test_what_escapes_a_command_has_its_exit_code(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @click.command()
    def broken() -> None:
        raise error

    monkeypatch.setattr(entry.Commands, "get_command", lambda *_: broken)
    assert main(["doctor"]) == code
    assert ("Traceback" in capsys.readouterr().err) == (code == 1)
