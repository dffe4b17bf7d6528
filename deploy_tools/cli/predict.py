"""deploy-tools predict: classes of image files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from deploy_tools.cli.common import PathType, output_options, print_json
from deploy_tools.cli.model import OpenedModel, engine_options, opened_model, refuse_idle_options
from deploy_tools.cli.show import say_session
from deploy_tools.data.files import decode_image
from deploy_tools.data.preprocess import preprocess
from deploy_tools.runtimes import RUNTIMES, RuntimeConfig


@click.command("predict")
@click.argument("file", type=PathType)
@click.argument("images", nargs=-1, required=True, type=PathType)
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, help="How many classes to name."
)
@click.option(
    "--provider",
    type=click.Choice(list(RUNTIMES)),
    default="onnxruntime",
    show_default=True,
    help="Runtime of an ONNX file; an engine has its own.",
)
@click.option("--threads", type=click.IntRange(0), default=0, help="0 takes every core.")
@engine_options
@output_options
def command(
    file: Path,
    images: tuple[Path, ...],
    top: int,
    provider: str,
    threads: int,
    memory: str,
    cuda_graph: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Classify IMAGES with FILE, an ONNX file or an engine; it says how its input is made.

    With --json one JSON object an image, one a line.

    \b
    Example:
      deploy-tools predict out/int8-static-ort.onnx photo.jpg
    """  # fmt: skip
    refuse_idle_options([file])
    config = RuntimeConfig(provider, threads, memory=memory, cuda_graph=cuda_graph)
    with opened_model(file, config) as opened:
        say_session(file, opened.session, verbose)
        for image in images:
            classes = _classes(opened, image, top)
            if as_json:
                print_json({"image": str(image), "classes": classes})
            else:
                named = ", ".join(f"{c['label']} {c['probability']:.1%}" for c in classes)
                click.echo(f"{image}: {named}")


def _classes(opened: OpenedModel, image: Path, top: int) -> list[dict[str, Any]]:
    """Return the most probable classes of an image, the first one first."""
    spec, session = opened.spec, opened.session
    names = session.output_names
    output = names.index(spec.output_name) if spec.output_name in names else 0
    inputs = preprocess(decode_image(image), spec, str(image))[None]
    logits = session.run(inputs)[output][0].astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return [
        {
            "class": int(i),
            "label": spec.labels[i] if i < len(spec.labels) else str(i),
            "probability": round(float(shares[i]), 6),
        }
        for i in np.argsort(-logits, kind="stable")[:top]
    ]
