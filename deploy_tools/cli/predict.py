"""deploy-tools predict: classes of image files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from deploy_tools.cli.common import PathType, output_options, progress_bar
from deploy_tools.cli.model import engine_options, opened_model, refuse_idle_options
from deploy_tools.cli.predict_lines import CsvLines, Lines, StdoutLines
from deploy_tools.cli.show import say_session
from deploy_tools.cli.tuned import config_of, tuned_batch, tuned_option, tuned_settings
from deploy_tools.data.decode import DECODERS
from deploy_tools.data.names import STDIN, image_paths
from deploy_tools.errors import PartialError, UserError
from deploy_tools.pipeline.predict import PredictConfig, predict_files
from deploy_tools.runtimes import RUNTIMES, RuntimeConfig


@click.command("predict")
@click.argument("file", type=PathType)
@click.argument("images", nargs=-1, type=PathType)
@click.option(
    "--list",
    "list_file",
    type=PathType,
    metavar="FILE",
    help='More images: one name a line, or JSON lines with "file"; - reads standard input.',
)
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, help="How many classes to name."
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Images a call, unless tuned. A dynamic INT8 file scales the images of a call together.",
)
@click.option(
    "--decoder",
    type=click.Choice(list(DECODERS)),
    default="scaled",
    show_default=True,
    help="scaled: large JPEGs at a fraction of their size; reference: as bench accuracy does it.",
)
@click.option(
    "--workers", type=click.IntRange(0), default=0, help="Decoding threads; 0 takes every core."
)
@click.option(
    "--csv", "csv_file", type=PathType, metavar="FILE", help="Write a table instead of lines."
)
@click.option("--stop-on-error", is_flag=True, help="End at the first image that cannot be read.")
@click.option(
    "--provider",
    type=click.Choice(list(RUNTIMES)),
    default="onnxruntime",
    show_default=True,
    help="Runtime of an ONNX file; an engine has its own.",
)
@click.option("--threads", type=click.IntRange(0), default=0, help="0 takes every core.")
@tuned_option("provider", "threads")
@engine_options
@output_options
def command(
    file: Path,
    images: tuple[Path, ...],
    list_file: Path | None,
    top: int,
    batch: int,
    decoder: str,
    workers: int,
    csv_file: Path | None,
    stop_on_error: bool,
    provider: str,
    threads: int,
    no_tuned: bool,
    memory: str,
    cuda_graph: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Classify IMAGES with FILE, an ONNX file or an engine; it says how its input is made.

    IMAGES are files and folders, which are searched for images. Results keep their order and
    appear as batches are done; an image that cannot be read is named in its place, and the exit
    code is then 9, or 2 where none could be read. With --json one JSON object an image, one a
    line.

    \b
    Examples:
      deploy-tools predict out/int8-static-ort.onnx photo.jpg
      deploy-tools predict out/int8-static-ort.onnx photos/ --csv classes.csv
    """  # fmt: skip
    if not images and list_file is None:
        raise click.UsageError("no images: name files or folders, or give --list FILE.")
    if csv_file is not None and as_json:
        raise click.UsageError("--csv and --json exclude each other.")
    refuse_idle_options([file])
    total = _count(images, list_file)
    config = RuntimeConfig(provider, threads, memory=memory, cuda_graph=cuda_graph)
    tuned = tuned_settings([file], no_tuned, not quiet)
    with opened_model(file, config_of(file, tuned, config)) as opened:
        say_session(file, opened.session, verbose)
        size = opened.batch(tuned_batch(tuned, batch))
        settings = PredictConfig(top, size, decoder, workers)
        paths = image_paths(images, list_file)
        results = predict_files(opened.session, opened.spec, paths, settings)
        with contextlib.closing(results), _lines(csv_file, as_json, top) as lines:
            drawn = quiet or not sys.stderr.isatty() or (lines.on_stdout and sys.stdout.isatty())
            with progress_bar(drawn) as progress:
                done = broken = 0
                for result in results:
                    if result.error is not None and stop_on_error:
                        raise result.error
                    lines.write(result)
                    done += 1
                    broken += result.error is not None
                    if progress is not None:
                        progress(f"images, {broken} broken", done, total)
    _report_broken(broken, done)


@contextlib.contextmanager
def _lines(csv_file: Path | None, as_json: bool, top: int) -> Iterator[Lines]:
    if csv_file is None:
        yield StdoutLines(as_json)
        return
    with CsvLines.opened(csv_file, top) as lines:
        yield lines


def _count(images: tuple[Path, ...], list_file: Path | None) -> int:
    """Return how many images there are, 0 where only reading them tells.

    It also finds what is wrong with the list and the folders before any work is done.
    """
    if list_file == STDIN:
        return 0
    return sum(1 for _ in image_paths(images, list_file))


def _report_broken(broken: int, done: int) -> None:
    """Raise where images could not be read: UserError where none could, else PartialError."""
    if broken:
        kind = UserError if broken == done else PartialError
        raise kind(f"{broken} of {done} images could not be read; each is named in its place.")
