"""Which module calls which in a forward pass, by torch.fx or torch.export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deploy_tools.errors import UserError

LINEAR = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear,
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One operation of the traced forward pass.

    path: the name of the module that it is a call of; None for anything else.
    source: position of the step whose output is its first input; None for the model's input.
    uses: how many steps (or outputs) take its output.
    what: for messages, such as "relu".
    """

    path: str | None
    source: int | None
    uses: int
    what: str


class _Tracer(fx.Tracer):
    """Keeps layers and BatchNorms whole, subclasses of the user included."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (*LINEAR, _BatchNorm)):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def trace_steps(module: nn.Module, example: tuple[Tensor, ...]) -> tuple[list[Step], str]:
    """Trace the forward pass by torch.fx, or by torch.export where fx cannot.

    Raises UserError with both reasons where neither can.
    """
    # What a model's forward raises under a tracer can be anything.
    try:
        return _fx_steps(_Tracer().trace(module)), "torch.fx"
    except Exception as error:
        first = error
    try:
        program = torch.export.export(module, example, strict=False)
    except Exception as error:
        raise UserError(
            f"the model cannot be traced. torch.fx: {brief(first)}. torch.export: {brief(error)}.",
            "Take control flow that depends on tensor values out of forward.",
        ) from error
    return _export_steps(program, module), "torch.export"


def _fx_steps(graph: fx.Graph) -> list[Step]:
    order = {node: position for position, node in enumerate(graph.nodes)}
    steps = []
    for node in graph.nodes:
        inputs = node.all_input_nodes
        source = order[inputs[0]] if inputs and inputs[0].op != "placeholder" else None
        path = str(node.target) if node.op == "call_module" else None
        steps.append(Step(path, source, len(node.users), _label(node)))
    return steps


def _export_steps(program: Any, module: nn.Module) -> list[Step]:
    """Find the module of each convolution and BatchNorm by the names of its parameters."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    first_name = {id(m): name for name, m in module.named_modules()}
    order = {node: position for position, node in enumerate(program.graph.nodes)}
    steps = []
    for node in program.graph.nodes:
        owners = {names[a.name].rpartition(".")[0] for a in node.all_input_nodes if a.name in names}
        path = None
        if len(owners) == 1:
            owner = module.get_submodule(owners.pop())
            if isinstance(owner, (*LINEAR, _BatchNorm)) and _is_call_of(node, owner):
                path = first_name[id(owner)]
        inputs = node.all_input_nodes
        source = order[inputs[0]] if inputs and inputs[0].op != "placeholder" else None
        steps.append(Step(path, source, len(node.users), _label(node)))
    return steps


def _is_call_of(node: fx.Node, owner: nn.Module) -> bool:
    operator = str(node.target)
    if isinstance(owner, _BatchNorm):
        return "batch_norm" in operator
    return "linear" in operator if isinstance(owner, nn.Linear) else "conv" in operator


def _label(node: fx.Node) -> str:
    return node.name.rstrip("0123456789").rstrip("_") if node.op != "placeholder" else "input"


def brief(error: Exception) -> str:
    """Return the first line of an error's message."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".")
