"""Environments of tools: made, found, and on top of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.peers import environment
from deploy_tools.errors import MissingDependencyError, UserError


def test_an_environment_shares_our_packages_after_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(environment, "_pip", lambda python, tool, what: asked.append(what))
    create = environment.venv.create
    monkeypatch.setattr(
        environment.venv, "create", lambda folder, **options: create(folder, symlinks=True)
    )
    folder = tmp_path / "env"
    python = environment.make_environment("modelopt", folder)
    assert asked[0] == ["--no-deps", "nvidia-modelopt==0.47.0"]
    assert "onnx~=1.21.0" in asked[1]
    assert not any(name.startswith("torch") for name in asked[1])
    assert environment.python_of("modelopt", folder) == python
    own = next(folder.glob("lib*/python*/site-packages"))
    (own / "own_module.py").write_text("where = 'own'")
    code = "import sys, numpy, own_module; print(numpy.__version__, sys.prefix); print(sys.path)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    first, path = done.stdout.splitlines()
    assert first == f"{np.__version__} {folder}"
    entries = eval(path)  # the list that Python printed
    ours = next(entry for entry in sys.path if entry.endswith("site-packages"))
    assert entries.index(str(own)) < entries.index(ours)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="environment modelopt"):
        environment.python_of("modelopt", tmp_path / "none")
    with pytest.raises(UserError, match='Did you mean "modelopt"'):
        environment.make_environment("modelop", tmp_path / "env")
    done = CliRunner().invoke(environment.command, ["torch"])
    assert done.exit_code == 2


def test_pips_own_reason_is_kept(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'ERROR: No matching distribution' >&2\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(MissingDependencyError, match="No matching distribution"):
        environment._pip(fake, "modelopt", ["some"])
