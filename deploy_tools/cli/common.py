"""Options and output that mean the same in every command."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from deploy_tools.data.spec import DTYPES

F = TypeVar("F", bound=Callable[..., Any])
ProgressCallback = Callable[[str, int, int], None]

PathType = click.Path(path_type=Path)


def out_option() -> Callable[[F], F]:
    """-o/--out DIR: the artifact directory."""
    return click.option(
        "-o", "--out", type=PathType, required=True, metavar="DIR", help="Folder for what is made."
    )


def output_options(function: F) -> F:
    """--json, -q and -v."""
    function = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(
        function
    )
    function = click.option("-q", "--quiet", is_flag=True, help="No progress.")(function)
    return click.option("-v", "--verbose", is_flag=True, help="Say what each stage did.")(function)


def model_options(function: F) -> F:
    """--arch, --checkpoint, --weights and --num-classes."""
    for option in (
        click.option("--num-classes", type=click.IntRange(1), help="Classes of the head."),
        click.option("--weights", default="", metavar="NAME", help="Published weights, such as IMAGENET1K_V2."),
        click.option("--checkpoint", type=PathType, metavar="FILE", help="Your weights: safetensors or a state_dict."),
        click.option("--arch", required=True, help="resnet18, resnet20-cifar, torchvision:NAME, timm:NAME or package.module:callable."),
    ):  # fmt: skip
        function = option(function)
    return function


def input_options(function: F) -> F:
    """--size, --mean, --std, --resize and --crop: only where the weights' metadata lack them."""
    for option in (
        click.option(
            "--crop", type=click.Choice(["center", "none"]), help="Cut the middle out, or not."
        ),
        click.option("--resize", type=int, help="Scale the short side to this many pixels."),
        click.option("--std", help="One number a channel, comma separated."),
        click.option("--mean", help="One number a channel, comma separated."),
        click.option("--size", help="Input size: PIXELS or HEIGHTxWIDTH."),
    ):
        function = option(function)
    return function


def input_option(function: F) -> F:
    """--input float32 | uint8: what the file takes."""
    return click.option(
        "--input", "input_dtype", type=click.Choice(list(DTYPES)), default="float32",
        show_default=True,
        help="uint8: pixels (N, H, W, C), normalized in the graph; in a file of its own, -uint8.",
    )(function)  # fmt: skip


def data_options(split: str, required: bool = True) -> Callable[[F], F]:
    """--source, --data and --split. required: whether --source must be given."""

    def decorate(function: F) -> F:
        for option in (
            click.option("--split", default=split, show_default=True, help="Split of the data."),
            click.option("--data", type=PathType, metavar="DIR", help="Where the images are."),
            click.option(
                "--source", required=required,
                help="imagefolder, imagenet, jsonl, npz, cifar10 or fashion-mnist.",
            ),
        ):  # fmt: skip
            function = option(function)
        return function

    return decorate


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[ProgressCallback | None]:
    """Yield a progress callback that draws on stderr; None where the user wants quiet."""
    if quiet:
        yield None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_progress()
        return
    columns = (TextColumn("{task.description:<42}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as drawn:
        task = drawn.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            drawn.update(task, description=what, completed=done, total=total or None)

        yield show


def _plain_progress() -> ProgressCallback:
    """One line a step where nobody watches a terminal, such as in CI."""
    last = [""]

    def show(what: str, done: int, total: int) -> None:
        if what.partition(",")[0] != last[0]:
            last[0] = what.partition(",")[0]
            click.echo(f"  {what}", err=True)

    return show


def print_json(value: object) -> None:
    """Print one JSON object on one line."""
    click.echo(json.dumps(value, sort_keys=True, allow_nan=False))


def command_line() -> str:
    """Return what the user typed, as text that a shell reads back."""
    return shlex.join(["deploy-tools", *sys.argv[1:]])


def numbers(text: str | None, name: str) -> tuple[float, ...] | None:
    """Read "0.1,0.2" as numbers; a UsageError names the option."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.UsageError(f'{name} "{text}" is not a list of numbers.') from error


def size_of(text: str | None) -> tuple[int, int] | None:
    """Read "224" or "224x320" as (height, width)."""
    if text is None:
        return None
    try:
        parts = [int(part) for part in text.lower().split("x")]
    except ValueError as error:
        raise click.UsageError(f'--size "{text}" is not PIXELS or HEIGHTxWIDTH.') from error
    if len(parts) not in (1, 2):
        raise click.UsageError(f'--size "{text}" is not PIXELS or HEIGHTxWIDTH.')
    return parts[0], parts[-1]
