"""Variants that take uint8 pixels: the last change to their file."""

from __future__ import annotations

from pathlib import Path

from deploy_tools.artifacts import Artifact
from deploy_tools.pipeline.stages import StageRunner
from deploy_tools.pipeline.variants import Variant
from deploy_tools.rewrite.forms import default_form
from deploy_tools.rewrite.uint8_input import uint8_input_from_onnx


def pixels_variant(runner: StageRunner, variant: Variant, model: Artifact) -> Artifact:
    """Return the variant's file with a uint8 input, in the form that its target runs faster."""
    source = runner.directory.path(model.file)
    # In a dry run the file may not be there yet; its hash is not known then either.
    form = default_form(variant.target, source) if source.is_file() else ""
    name = f"{variant.id}-uint8.onnx"

    def make(path: Path) -> None:
        uint8_input_from_onnx(source, path, form)

    settings = {"input": "uint8", "form": form}
    return runner.run("rewrite", name, name, settings, {"model": model.sha256}, make)
