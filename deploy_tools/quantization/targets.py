"""What each target wants of a quantized file. The user names it; the build host never does."""

from __future__ import annotations

from dataclasses import dataclass

from deploy_tools.errors import UserError, nearest


@dataclass(frozen=True)
class Target:
    """The Q/DQ layout of one target.

    activations: "uint8" or "int8", where the layout says nothing else. grid: which of the range table's grids they use: "u8" is
        affine (int8 too: the same grid, shifted), "s8" symmetric with zero-point 0.
    layout: which tensors get Q/DQ, a name in `layouts.LAYOUTS`.
    reduce_range: weights in 7 bits, for CPUs whose 8-bit multiply-add saturates 16-bit sums.
    runtime: the runtime that the target is measured in on this kind of machine, "" for none.
    """

    name: str
    activations: str
    reduce_range: bool
    runtime: str
    about: str
    grid: str = "u8"
    layout: str = "cpu"


TARGETS = {
    target.name: target
    for target in (
        Target("ort-cpu", "uint8", False, "onnxruntime", "onnxruntime on x86 with VNNI or AMX"),
        Target(
            "openvino",
            "uint8",
            False,
            "openvino",
            "OpenVINO on x86; residual branches in float, shortcuts without zero-points",
            layout="openvino",
        ),
        Target("arm", "int8", False, "onnxruntime", "onnxruntime on 64-bit Arm"),
        Target("x86-no-vnni", "uint8", True, "onnxruntime", "onnxruntime on x86 without VNNI"),
        Target(
            "tensorrt", "int8", False, "tensorrt", "TensorRT and TensorRT for RTX", "s8", "tensorrt"
        ),
    )
}


def target_named(name: str) -> Target:
    """Return a target; UserError with the nearest name where there is none."""
    if name not in TARGETS:
        raise UserError(f'target "{name}" is not known.', nearest(name, TARGETS))
    return TARGETS[name]
