"""deploy-tools predict: classes of image files."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from deploy_tools.cli.common import PathType, output_options, print_json
from deploy_tools.cli.show import say_session
from deploy_tools.data.files import decode_image
from deploy_tools.data.preprocess import preprocess
from deploy_tools.onnx_files import input_spec_of, load_onnx, require_dynamic_batch
from deploy_tools.runtimes import RUNTIMES, RuntimeConfig, open_session


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
    help="Runtime.",
)
@click.option("--threads", type=click.IntRange(0), default=0, help="0 takes every core.")
@output_options
def command(
    file: Path,
    images: tuple[Path, ...],
    top: int,
    provider: str,
    threads: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Classify IMAGES with the ONNX file FILE; preprocessing comes from its metadata.

    With --json one JSON object an image, one a line.

    \b
    Example:
      deploy-tools predict out/int8-static-ort.onnx photo.jpg
    """  # fmt: skip
    proto = load_onnx(file)
    require_dynamic_batch(proto, file)
    spec = input_spec_of(proto, file)
    session = open_session(file, RuntimeConfig(provider, threads))
    say_session(file, session, verbose)
    names = session.output_names
    output = names.index(spec.output_name) if spec.output_name in names else 0
    for image in images:
        inputs = preprocess(decode_image(image), spec, str(image))[None]
        logits = session.run(inputs)[output][0].astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = np.argsort(-logits, kind="stable")[:top]
        classes = [
            {"class": int(i), "label": spec.labels[i] if i < len(spec.labels) else str(i), "probability": round(float(shares[i]), 6)}
            for i in best
        ]  # fmt: skip
        if as_json:
            print_json({"image": str(image), "classes": classes})
        else:
            named = ", ".join(f"{c['label']} {c['probability']:.1%}" for c in classes)
            click.echo(f"{image}: {named}")
    session.close()
