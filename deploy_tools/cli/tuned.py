"""Commands that run a file as `deploy-tools tune` found it to be fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from deploy_tools.cli.model import OpenedModel, is_engine
from deploy_tools.errors import UserError
from deploy_tools.pipeline.tuned import tuned_of
from deploy_tools.runtimes import RuntimeConfig
from deploy_tools.tuning.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])
RUN_OPTIONS = ("provider", "threads", "precision")
"""Each of them says how a file is run, so that its tuning is not used."""


def tuned_option(*options: str) -> Callable[[F], F]:
    """--no-tuned, of a command with these of the options that say how a file is run."""
    names = [f"--{name}" for name in options]
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return click.option(
        "--no-tuned", is_flag=True,
        help=f"Ignore what deploy-tools tune found; {listed} do so too.",
    )  # fmt: skip


def tuned_settings(models: Iterable[Path], no_tuned: bool, said: bool) -> dict[Path, Settings]:
    """Return the settings of those ONNX files that were tuned, and hold here.

    None are used where the user says how to run the files: half of a tuning was never measured.
    On stderr it names a tuning that does not hold here, and with `said` those that are used.
    Raises ArtifactError where a tuning was made for other contents of its file.
    """
    if no_tuned or any(is_given(name) for name in RUN_OPTIONS):
        return {}
    found: dict[Path, Settings] = {}
    for model in models:
        if is_engine(model) or (tuned := tuned_of(model)) is None:
            continue
        if tuned.stale or said:
            click.echo(f"{model}: tuned {tuned}", err=True)
        if tuned.stale:
            click.echo("  the default is used; tune it again here", err=True)
        else:
            found[model] = tuned.tuning.settings
    return found


def config_of(
    model: Path, tuned: Mapping[Path, Settings], otherwise: RuntimeConfig
) -> RuntimeConfig:
    """Return how a file is opened: as it was tuned, or as the options say."""
    return tuned[model].config() if model in tuned else otherwise


def batch_of(model: Path, tuned: Mapping[Path, Settings], otherwise: int) -> int:
    """Return the batch that a file is tuned for, where it is for one."""
    return (tuned[model].batch if model in tuned else None) or otherwise


def tuned_batch(tuned: Mapping[Path, Settings], otherwise: int) -> int:
    """Return the batch that all tuned files share, unless the user gives one.

    Files that were tuned for different batches are measured at the option's, and stderr says so:
    what is compared is one and the same work.
    """
    sizes = {settings.batch for settings in tuned.values() if settings.batch is not None}
    if is_given("batch") or not sizes:
        return otherwise
    if len(sizes) > 1:
        each = ", ".join(map(str, sorted(sizes)))
        click.echo(f"the files are tuned for batches of {each}: {otherwise} is used", err=True)
        return otherwise
    return sizes.pop()


def batch_for_all(tuned: int, otherwise: int, opened: Iterable[OpenedModel]) -> int:
    """Return a tuned batch where every file takes it; else the option's, and stderr says so.

    An engine beside tuned ONNX files has a profile, which nobody tuned.
    """
    for model in opened if tuned != otherwise else ():
        try:
            model.require_batch(tuned)
        except UserError:
            said = f"{model.path} takes no batch of {tuned}, for which the others are tuned"
            click.echo(f"{said}: {otherwise} is used", err=True)
            return otherwise
    return tuned


def is_given(option: str) -> bool:
    """Whether the user typed an option of the running command."""
    source = click.get_current_context().get_parameter_source(option)
    return source == ParameterSource.COMMANDLINE
