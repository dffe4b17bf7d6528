"""Environments of tools whose pins do not fit beside ours.

    python -m benchmarks.peers.environment modelopt [--folder .venv-modelopt]

The environment lies on top of the one that runs this: what both can share, torch above all,
is taken from there and not installed twice.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import click

from deploy_tools.errors import DeployToolsError, MissingDependencyError, UserError, nearest

# Its extra [onnx] also names cupy and onnxruntime-gpu, which need CUDA and are not used here:
# calibration runs on the CPU, so onnxruntime takes the place of the latter.
_MODELOPT = ("nvidia-modelopt==0.47.0",)
_MODELOPT_NEEDS = (
    "onnx~=1.21.0",
    "onnxruntime~=1.24.2",
    "onnx-graphsurgeon>=0.6.1",
    "onnxconverter-common~=1.16.0",
    "onnxslim>=0.1.76",
    "onnxscript",
    "polygraphy>=0.53.4",
    "cppimport",
    "lief",
    "ninja",
    "nvidia-ml-py>=12",
    "omegaconf>=2.3.0",
    "pulp<4.0",
    "pydantic>=2.0",
    "PyYAML>=6.0",
    "regex",
    "scipy",
    "setuptools>=80",
)
ENVIRONMENTS = {"modelopt": (_MODELOPT, _MODELOPT_NEEDS)}
"""By tool: what is installed alone, and what with all that it needs."""


def default_folder(tool: str) -> Path:
    """Return the folder of a tool's environment in the project's root."""
    return Path(__file__).resolve().parents[2] / f".venv-{tool}"


def python_of(tool: str, folder: Path | None = None) -> Path:
    """Return the interpreter of a tool's environment.

    Raises MissingDependencyError where the environment has not been made.
    """
    python = _interpreter(folder or default_folder(tool))
    if not python.is_file():
        raise MissingDependencyError(
            f"{tool} has no environment.",
            f"Make it with: python -m benchmarks.peers.environment {tool}",
        )
    return python


def make_environment(tool: str, folder: Path) -> Path:
    """Make a tool's environment in `folder` and return its interpreter.

    Raises UserError for an unknown tool and MissingDependencyError where pip cannot install it.
    """
    if tool not in ENVIRONMENTS:
        raise UserError(f'there is no environment for "{tool}".', nearest(tool, ENVIRONMENTS))
    venv.create(folder, with_pip=True, symlinks=True)
    python = _interpreter(folder)
    _share_packages(folder)
    alone, rest = ENVIRONMENTS[tool]
    _pip(python, tool, ["--no-deps", *alone])
    _pip(python, tool, list(rest))
    return python


def _share_packages(folder: Path) -> None:
    """Let the environment see this one's packages, after its own."""
    paths = {"base": str(folder), "platbase": str(folder)}
    own = Path(sysconfig.get_path("purelib", vars=paths))
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "zz-shared.pth").write_text("".join(f"{path}\n" for path in shared), "utf-8")


def _pip(python: Path, tool: str, packages: list[str]) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise MissingDependencyError(
            f"pip could not install {tool}: {(lines or ['it said nothing'])[-1]}"
        )


def _interpreter(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@click.command()
@click.argument("tool", type=click.Choice(sorted(ENVIRONMENTS)))
@click.option("--folder", type=click.Path(path_type=Path), help="Default: .venv-TOOL here.")
def command(tool: str, folder: Path | None) -> None:
    """Make the environment of TOOL."""
    try:
        python = make_environment(tool, folder or default_folder(tool))
    except DeployToolsError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(f"{tool} is ready: {python}")


if __name__ == "__main__":
    command()
