"""From a recipe's [model] and [input] to a module with its weights and its input spec."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_tools.artifacts import sha256_of_file
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError, require
from deploy_tools.models import build_model, find_source
from deploy_tools.recipe import InputTable, ModelTable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from deploy_tools.fuse import FoldReport

FUSED = "fused"
"""Key in a checkpoint's metadata: its BatchNorms are folded already."""


@dataclass(frozen=True)
class LoadedModel:
    """A module in eval mode with its weights, and how its input is made."""

    module: nn.Module
    arch: str
    spec: InputSpec
    fused: bool = False

    @cached_property
    def classes(self) -> int:
        """The length of the logits, found by running the module on one empty image."""
        import torch

        with torch.inference_mode():
            return int(self.module(torch.zeros(self.spec.shape(1))).shape[-1])

    @property
    def metadata(self) -> dict[str, str]:
        """What goes into files made from it."""
        return {"deploy_tools.arch": self.arch}


def model_parents(model: ModelTable) -> dict[str, str]:
    """Return what the module comes from: its weights, and its code where it is not ours.

    Of a callable's code the file that holds it counts, not the modules that it imports.
    """
    code = _code_of(model.arch)
    if model.checkpoint:
        path = Path(model.checkpoint)
        if not path.is_file():
            raise UserError(f"the checkpoint {path} does not exist.")
        return code | {"checkpoint": sha256_of_file(path)}
    return code | {"weights": model.weights or "random, seed 0"}


def _code_of(arch: str) -> dict[str, str]:
    library, colon, _ = arch.partition(":")
    if not colon:
        return {}
    if library in ("torchvision", "timm"):
        try:
            return {"code": f"{library} {metadata.version(library)}"}
        except metadata.PackageNotFoundError:
            return {}
    found = find_source(library)
    return {"code": sha256_of_file(found)} if found else {}


def load_model(model: ModelTable, given: InputTable, classes: tuple[str, ...] = ()) -> LoadedModel:
    """Build the module and load its weights.

    classes: the data's class names, used as labels where nothing else names them and their
    number fits. Raises UserError where the weights do not fit or the input is not known.
    """
    require("torch", "torch", f"Loading {model.arch}")
    if not model.checkpoint:
        return _without_checkpoint(model, given, classes)
    from deploy_tools.models.checkpoint import load_into, load_state, spec_from_metadata

    path = Path(model.checkpoint)
    state, notes = load_state(path)
    spec = _spec(spec_from_metadata(notes), given)
    count = model.num_classes or _count(notes) or (len(classes) or None)
    built = build_model(model.arch, count, spec.channels)
    module = built.module
    fused = notes.get(FUSED) == "true"
    if fused:
        module = _folded_structure(module, spec)
    load_into(module, state, model.arch, str(path))
    return LoadedModel(module.eval(), model.arch, _labelled(spec, built.labels, classes), fused)


def _without_checkpoint(
    model: ModelTable, given: InputTable, classes: tuple[str, ...]
) -> LoadedModel:
    import torch

    torch.manual_seed(0)
    channels = len(given.mean) if given.mean else 3
    count = model.num_classes or (None if model.weights else len(classes) or None)
    built = build_model(model.arch, count, channels, model.weights or None)
    spec = _spec(built.spec, given)
    return LoadedModel(built.module.eval(), model.arch, _labelled(spec, built.labels, classes))


def _spec(known: InputSpec | None, given: InputTable) -> InputSpec:
    values: dict[str, Any] = known.to_dict() if known else {}
    values |= given.given()
    missing = [key for key in ("size", "mean", "std") if key not in values]
    if missing:
        raise UserError(
            f"nothing says how the model's input is made ({', '.join(missing)}).",
            "Give an [input] table with size, mean and std (and resize, crop) in the recipe.",
        )
    return InputSpec.from_dict(values)


def _labelled(spec: InputSpec, known: tuple[str, ...], classes: tuple[str, ...]) -> InputSpec:
    return spec if spec.labels else spec.with_labels(known or classes)


def _count(notes: dict[str, str]) -> int | None:
    text = notes.get("num_classes", "")
    return int(text) if text.isdigit() else None


def fold_model(
    loaded: LoadedModel, real: NDArray[np.float32] | None = None
) -> tuple[nn.Module, FoldReport | None]:
    """Return the module with its BatchNorms folded and the proof; None where they were already.

    real: preprocessed images (N, C, H, W) for the proof, beside random inputs.
    """
    if loaded.fused:
        return loaded.module, None
    import torch

    from deploy_tools.fuse import FuseConfig, fold_batchnorm

    inputs = [] if real is None else [torch.from_numpy(real)]
    return fold_batchnorm(loaded.module, FuseConfig(), torch.zeros(loaded.spec.shape(2)), inputs)


def _folded_structure(module: nn.Module, spec: InputSpec) -> nn.Module:
    """Fold the fresh module, so that it takes the names of a checkpoint that is folded."""
    import torch

    from deploy_tools.fuse import FuseConfig, fold_batchnorm

    return fold_batchnorm(module.eval(), FuseConfig(), torch.zeros(spec.shape(2)))[0]
