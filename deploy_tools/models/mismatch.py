"""Why a state_dict does not fit a module, and which architecture of the zoo it fits."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from deploy_tools.errors import UserError
from deploy_tools.models import ARCHITECTURES, new_module

Shapes = Mapping[str, tuple[int, ...]]
_SHOWN = 3
_COUNTER = "num_batches_tracked"


def describe_mismatch(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], arch: str, source: str
) -> UserError | None:
    """Compare names and shapes; returns None where they fit, else the error to raise.

    BatchNorm's batch counter may be missing: files from before torch 0.4.1 have none.
    """
    wanted = {name: tuple(value.shape) for name, value in own.items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    missing = [n for n in wanted if n not in given and not n.endswith(_COUNTER)]
    unexpected = [n for n in given if n not in wanted]
    reshaped = [n for n in wanted if n in given and wanted[n] != given[n]]
    if not (missing or unexpected or reshaped):
        return None
    if not (missing or unexpected):
        special = _one_size_differs(wanted, given, reshaped, arch, source)
        if special is not None:
            return special
    parts = [
        _listed(missing, "missing"),
        _listed(unexpected, "unexpected"),
        _listed(
            [
                f"{n}: {_shape(given[n])} in the file, {_shape(wanted[n])} in the model"
                for n in reshaped
            ],
            "wrongly shaped",
        ),
    ]
    return UserError(
        f"{source} does not fit {arch}: {'; '.join(part for part in parts if part)}.",
        _advice(given, arch),
    )


def nearest_architecture(shapes: Shapes) -> tuple[str, float]:
    """Return the architecture of the zoo whose names and shapes match best, and the share.

    shapes: name -> shape. The share is matching tensors over all tensors of either side.
    """
    in_channels = next((s[1] for s in shapes.values() if len(s) == 4), 3)
    num_classes = next((s[0] for s in reversed(list(shapes.values())) if len(s) == 2), 1)
    given = {item for item in shapes.items() if not item[0].endswith(_COUNTER)}
    best = ("", 0.0)
    for arch in ARCHITECTURES:
        # Thousands of layers take seconds to build, so only for files with as many tensors.
        if "1202" in arch and len(given) < 3000:
            continue
        own = _zoo_shapes(arch, num_classes, in_channels)
        share = len(given & own) / len(given | own)
        if share > best[1]:
            best = (arch, share)
    return best


@functools.lru_cache(maxsize=64)
def _zoo_shapes(
    arch: str, num_classes: int, in_channels: int
) -> frozenset[tuple[str, tuple[int, ...]]]:
    with torch.device("meta"):
        state = new_module(arch, num_classes, in_channels).state_dict()
    return frozenset(
        (name, tuple(value.shape)) for name, value in state.items() if not name.endswith(_COUNTER)
    )


def _one_size_differs(
    wanted: Shapes, given: Shapes, reshaped: list[str], arch: str, source: str
) -> UserError | None:
    """Recognise a wrong number of classes or of input channels."""
    layers = {name.rpartition(".")[0] for name in reshaped}
    last_layer = list(wanted)[-1].rpartition(".")[0]
    weight = next((n for n in reshaped if len(wanted[n]) > 1), reshaped[0])
    old, new = given[weight], wanted[weight]
    if layers == {last_layer} and old[1:] == new[1:]:
        return UserError(
            f"{source}: the checkpoint has {old[0]} classes, --num-classes says {new[0]}.",
            f"Use --num-classes {old[0]}.",
        )
    first_weight = next(name for name, shape in wanted.items() if len(shape) > 1)
    if reshaped == [first_weight] and old[:1] + old[2:] == new[:1] + new[2:]:
        return UserError(
            f"{source}: {weight} takes {old[1]} channels and {arch} was built for {new[1]}.",
            "The input spec's mean and std have one value a channel: correct them.",
        )
    return None


def _advice(given: Shapes, arch: str) -> str:
    name, share = nearest_architecture(given)
    if share < 0.1 or name == arch:
        return "No other architecture of the zoo is nearer."
    return f"Its tensors fit {name} best ({share:.0%} of names and shapes): --arch {name}."


def _listed(names: list[str], what: str) -> str:
    if not names:
        return ""
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape) or "scalar"
