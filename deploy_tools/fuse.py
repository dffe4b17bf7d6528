"""Fold BatchNorm into the convolution or Linear before it, and prove that nothing changed.

In eval mode BatchNorm is y = (x - mean) / sqrt(var + eps) * gamma + beta (Ioffe and Szegedy,
2015, section 3.1), one affine map a channel; where x is the output of a layer that is linear
in its weights, that map goes into the layer's weights and bias.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils import _pytree

from deploy_tools.errors import DeployToolsError, UserError
from deploy_tools.fuse_trace import LINEAR, Step, brief, trace_steps

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# They change nothing in eval mode, so a fold may reach across them.
_TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

Inputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class FuseConfig:
    """tolerance: largest allowed relative difference of the outputs in float64.

    random_inputs: how many random inputs, shaped like the example, the proof uses.
    """

    tolerance: float = 1e-9
    random_inputs: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Difference:
    """Largest difference of two outputs: absolute, and relative to the largest output."""

    max_abs: float
    max_rel: float


@dataclass(frozen=True)
class FoldReport:
    """What was folded, what was left and why, and how far the outputs moved.

    folded: (layer, BatchNorm) names. left: (BatchNorm, reason).
    max_abs_*, max_rel_*: over all random and real inputs, in that arithmetic; relative means
        relative to the largest output.
    """

    folded: tuple[tuple[str, str], ...]
    left: tuple[tuple[str, str], ...]
    max_abs_float64: float
    max_rel_float64: float
    max_abs_float32: float
    max_rel_float32: float
    random_inputs: int
    real_inputs: int
    traced_by: str

    def __str__(self) -> str:
        lines = [
            f"folded {len(self.folded)} of {len(self.folded) + len(self.left)} BatchNorm layers "
            f"(traced by {self.traced_by})",
            f"proved on {self.random_inputs} random and {self.real_inputs} real batches: "
            f"max difference {self.max_abs_float64:.1e} ({self.max_rel_float64:.1e} relative) in "
            f"float64, {self.max_abs_float32:.1e} ({self.max_rel_float32:.1e}) in float32",
        ]
        lines += [f"left {name}: {reason}" for name, reason in self.left]
        return "\n".join(lines)


def fold_batchnorm(
    module: nn.Module,
    config: FuseConfig,
    example: Inputs,
    inputs: Sequence[Inputs] = (),
) -> tuple[nn.Module, FoldReport]:
    """Return a copy of `module` with every foldable BatchNorm folded, and the proof.

    module: in eval mode; it is not changed. In the copy a folded BatchNorm is an nn.Identity,
        and every other name stays.
    example: what `module` takes, such as (N, C, H, W) float32; it decides the shapes.
    inputs: real inputs for the proof, beside random ones.
    Raises UserError where the module is in training mode, does not run or cannot be traced,
    and FoldError where the outputs differ by more than `config.tolerance` in float64.
    """
    if module.training:
        raise UserError("the module is in training mode.", "Call module.eval() before folding.")
    # Folding the float64 copy and rounding once keeps the proof about the very weights that
    # the returned module has.
    exact = _in_float64(module)
    steps, traced_by = trace_steps(exact, _as(_tuple(example), torch.float64))
    ranks = _output_ranks(exact, _as(_tuple(example), torch.float64))
    folded, left = plan_folds(exact, steps, ranks)
    fold_pairs(exact, folded)
    result = _like(exact, module)
    samples = [*_random_like(_tuple(example), config), *(_tuple(x) for x in inputs)]
    in64 = prove_fold(_in_float64(module), exact, [_as(x, torch.float64) for x in samples])
    in32 = prove_fold(module, result, samples)
    if not (in64.max_rel <= config.tolerance and math.isfinite(in32.max_abs)):
        raise FoldError(
            f"folding BatchNorm changed the outputs by {in64.max_rel:.1e} (relative, float64; "
            f"allowed {config.tolerance:.1e}).",
            "The folded module is not used. Please report the model's class as a bug.",
        )
    return result, FoldReport(
        tuple(folded), tuple(left), in64.max_abs, in64.max_rel, in32.max_abs, in32.max_rel,
        config.random_inputs, len(inputs), traced_by,
    )  # fmt: skip


class FoldError(DeployToolsError):
    """The proof failed: the folded module does not compute what the original does."""

    exit_code = 1


def prove_fold(original: nn.Module, folded: nn.Module, inputs: Sequence[Inputs]) -> Difference:
    """Run both modules on every input and return the largest difference of their outputs.

    Raises UserError where the original itself gives NaN or infinity, since that proves nothing.
    """
    before, after = _unchanging(original), _unchanging(folded)
    largest = Difference(0.0, 0.0)
    for sample in inputs:
        for a, b in zip(_outputs(before, sample), _outputs(after, sample), strict=True):
            if not bool(torch.isfinite(a).all()):
                raise UserError("the model's output holds NaN or infinity, so no fold is proved.")
            found = _difference(a, b)
            largest = Difference(
                _larger(largest.max_abs, found.max_abs), _larger(largest.max_rel, found.max_rel)
            )
    return largest


def plan_folds(
    module: nn.Module, steps: Sequence[Step], ranks: Mapping[str, int]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Decide which BatchNorms to fold; returns ((layer, BatchNorm) pairs, (BatchNorm, reason)s).

    ranks: number of dimensions of each layer's output, by the layer's name.
    """
    folded, left = [], []
    calls: dict[str, list[Step]] = {}
    for step in steps:
        if step.path is not None:
            calls.setdefault(step.path, []).append(step)
    for name, norm in module.named_modules():
        if not isinstance(norm, _BatchNorm):
            continue
        found = calls.get(name, [])
        reason = _norm_problem(norm, len(found))
        layer = ""
        if reason is None:
            layer, reason = _layer_before(module, steps, found[0], calls, ranks)
        if reason is None:
            folded.append((layer, name))
        else:
            left.append((name, reason))
    left += [
        (step.what, "it is a function call in forward, not a module")
        for step in steps
        if step.path is None and "batch_norm" in step.what
    ]
    return folded, left


def _norm_problem(norm: _BatchNorm, calls: int) -> str | None:
    if norm.running_mean is None or norm.running_var is None:
        return "it normalizes with the statistics of the batch (track_running_stats=False)"
    if norm.training:
        return "it is in training mode"
    if calls != 1:
        return f"it is called {calls} times" if calls else "the forward pass does not use it"
    own_forward = type(norm).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    if own_forward and _activation_within(norm) is None:
        return f"{type(norm).__name__} has a forward of its own"
    if _is_altered(norm):
        return "it has hooks or a parametrization"
    if bool((norm.running_var + norm.eps <= 0).any()):
        return "a variance plus eps is not positive"
    return None


def _layer_before(
    module: nn.Module,
    steps: Sequence[Step],
    call: Step,
    calls: Mapping[str, list[Step]],
    ranks: Mapping[str, int],
) -> tuple[str, str | None]:
    """Return the name of the layer to fold into, or a reason not to."""
    source = call.source
    while source is not None and steps[source].uses == 1 and _is_transparent(module, steps[source]):
        source = steps[source].source
    if source is None:
        return "", "it comes first: its input is the model's input"
    step = steps[source]
    layer = module.get_submodule(step.path) if step.path else None
    if step.path is None or not isinstance(layer, LINEAR):
        what = f"{step.path} ({type(layer).__name__})" if step.path else step.what
        return "", f"its input comes from {what}, not from a convolution or Linear"
    name = f"{step.path} before it"
    if step.uses != 1:
        return "", f"the output of {name} is used {step.uses} times"
    if len(calls[step.path]) != 1:
        return "", f"{name} is called {len(calls[step.path])} times"
    if _has_own_forward(layer) or _is_altered(layer):
        return "", f"{name} ({type(layer).__name__}) does not use its weights as they are"
    if ranks.get(step.path) != layer.weight.ndim:
        return "", f"the channels of {name} are not in dimension 1 of its output"
    return step.path, None


def _is_transparent(module: nn.Module, step: Step) -> bool:
    if step.path is None:
        return False
    found = module.get_submodule(step.path)
    return type(found) in _TRANSPARENT and not found.training and not _is_altered(found)


def _has_own_forward(layer: nn.Module) -> bool:
    base = next(cls for cls in LINEAR if isinstance(layer, cls))
    return any(
        getattr(type(layer), method, None) is not getattr(base, method, None)
        for method in ("forward", "_conv_forward")
    )


def _is_altered(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return any(hooks) or parametrize.is_parametrized(module) or "forward" in vars(module)


def _activation_within(norm: nn.Module) -> nn.Module | None:
    """Return what timm's BatchNormAct2d does after normalizing; None for other classes."""
    drop, act = getattr(norm, "drop", None), getattr(norm, "act", None)
    known = type(norm).__name__ in ("BatchNormAct2d", "SyncBatchNormAct")
    if known and isinstance(drop, nn.Module) and isinstance(act, nn.Module):
        return nn.Sequential(drop, act)
    return None


def fold_pairs(module: nn.Module, pairs: Sequence[tuple[str, str]]) -> None:
    """Fold BatchNorms into their layers, in place; each BatchNorm becomes an nn.Identity.

    pairs: (layer, BatchNorm) names. The arithmetic is in float64, and the layers' dtypes are kept.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    for layer, name in pairs:
        norm = module.get_submodule(name)
        _fold_pair(module.get_submodule(layer), norm)
        replaced[norm] = _activation_within(norm) or nn.Identity()
    _replace(module, replaced)


def _fold_pair(layer: Any, norm: Any) -> None:
    scale, shift = channel_affine(norm)
    weight = layer.weight.detach().double()
    if isinstance(layer, _TRANSPOSED):
        # (in, out / groups, ...): output channel g * (out / groups) + j lies in group g's rows.
        grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
        factor = scale.reshape(layer.groups, 1, -1, *([1] * (weight.ndim - 2)))
        folded = (grouped * factor).reshape(weight.shape)
    else:
        folded = weight * scale.reshape(-1, *([1] * (weight.ndim - 1)))
    bias = shift if layer.bias is None else layer.bias.detach().double() * scale + shift
    dtype, device = layer.weight.dtype, layer.weight.device
    trained = layer.weight.requires_grad
    layer.weight = nn.Parameter(folded.to(dtype), requires_grad=trained)
    layer.bias = nn.Parameter(bias.to(device, dtype), requires_grad=trained)


def channel_affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return (scale, shift), float64 of shape (channels,), with BatchNorm(x) = x*scale + shift."""
    scale: Tensor = torch.rsqrt(norm.running_var.detach().double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift: Tensor = -norm.running_mean.detach().double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


def _replace(module: nn.Module, replaced: Mapping[nn.Module, nn.Module]) -> None:
    """Put the new module wherever an old one is registered, which may be under several names."""
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replaced:
                setattr(parent, name, replaced[child].eval())


def _output_ranks(module: nn.Module, example: tuple[Tensor, ...]) -> dict[str, int]:
    """Run the example once; returns the number of dimensions of each layer's output."""
    ranks: dict[str, int] = {}
    probe = _unchanging(module)
    hooks = [
        layer.register_forward_hook(
            lambda _layer, _inputs, output, name=name: ranks.__setitem__(name, output.ndim)
        )
        for name, layer in probe.named_modules()
        if isinstance(layer, LINEAR)
    ]
    _outputs(probe, example)
    for hook in hooks:
        hook.remove()
    return ranks


def _outputs(module: nn.Module, sample: Inputs) -> list[Tensor]:
    try:
        with torch.no_grad():
            # Some models work in place; the next module must get the same input.
            result = module(*(x.clone() for x in _tuple(sample)))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shapes = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in _tuple(sample))
        raise UserError(
            f"the model does not run on an input of {shapes}: {brief(error)}."
        ) from error
    found: list[Tensor] = [
        leaf
        for leaf in _pytree.tree_leaves(result)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
    if not found:
        raise UserError("the model gives no floating point tensor, so a fold cannot be proved.")
    return found


def _difference(a: Tensor, b: Tensor) -> Difference:
    largest = float((a.double() - b.double()).abs().max())
    size = float(a.double().abs().max())
    if largest == 0:
        return Difference(0.0, 0.0)
    return Difference(largest, largest / size if size else float("inf"))


def _larger(a: float, b: float) -> float:
    # Unlike max, this never loses a NaN.
    return a if math.isnan(a) or b <= a else b


def _unchanging(module: nn.Module) -> nn.Module:
    """Return a copy where a forward pass may change the module: a BatchNorm in training mode."""
    return copy.deepcopy(module) if any(m.training for m in module.modules()) else module


def _in_float64(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double()


def _like(exact: nn.Module, original: nn.Module) -> nn.Module:
    """Round the float64 module to the dtypes of the original; a new bias follows its weight."""
    result = copy.deepcopy(exact)
    dtypes = {name: value.dtype for name, value in _tensors(original)}
    for name, value in _tensors(result):
        fallback = dtypes.get(f"{name.rpartition('.')[0]}.weight".lstrip("."), torch.float32)
        value.data = value.data.to(dtypes.get(name, fallback))
    return result


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _random_like(example: tuple[Tensor, ...], config: FuseConfig) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(config.seed)

    def like(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return torch.randn(x.shape, generator=generator).to(x)

    return [tuple(like(x) for x in example) for _ in range(config.random_inputs)]


def _as(sample: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in sample)


def _tuple(sample: Inputs) -> tuple[Tensor, ...]:
    return (sample,) if isinstance(sample, Tensor) else tuple(sample)
