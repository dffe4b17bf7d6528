"""What --input uint8 adds to a command: the same file once more, taking pixels."""

from __future__ import annotations

from pathlib import Path

from deploy_tools.artifacts import ArtifactDirectory, sha256_of_file


def add_uint8_file(directory: ArtifactDirectory, model: Path, target: str) -> Path:
    """Write NAME-uint8.onnx beside `model` and record it; returns its path."""
    from deploy_tools.rewrite.forms import default_form
    from deploy_tools.rewrite.uint8_input import uint8_input_from_onnx

    path = model.with_name(f"{model.stem}-uint8.onnx")
    form = default_form(target, model)
    uint8_input_from_onnx(model, path, form)
    parents = {model.name: sha256_of_file(model)}
    directory.add(path.name, path.name, "rewrite", {"input": "uint8", "form": form}, parents)
    return path
