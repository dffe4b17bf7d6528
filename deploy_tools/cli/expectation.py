"""What to expect from INT8 on a CPU, in plain words, each with where that is known from.

Figures are those of the kept reports in benchmarks/results; a test compares them. Where nothing
was measured it says so, and names the vendor's documentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RESNET50 = "benchmarks/results/report-resnet50-speed.json"
_INTEL = "Intel, Introduction to Intel Deep Learning Boost on Second Generation Xeon Scalable"
_ARM = "Arm Architecture Reference Manual, FEAT_DotProd and FEAT_I8MM"


@dataclass(frozen=True)
class Expectation:
    """One line on INT8, one on bf16 ("" where there is none), and the source of each claim."""

    int8: str
    bf16: str
    source: str


def expectation_of(architecture: str, flags: Sequence[str]) -> Expectation:
    """Return what INT8 and bf16 bring on a CPU.

    architecture: as `platform.machine()` says; flags: `benchmarks.environment.FLAGS` it has.
    """
    has = set(flags)
    if architecture.lower() in ("aarch64", "arm64"):
        return _on_arm(has)
    if "amx_int8" in has:
        return Expectation(
            "INT8 pays: this CPU has AMX, which multiplies tiles of 8-bit numbers. On 2 cores with "
            "AMX, ResNet-50 at batch 8 ran 3.03x [2.74, 3.26] as fast as FP32 with onnxruntime "
            "and 9.60x [8.62, 10.39] with OpenVINO; small networks gain less.",
            "bf16 pays without calibration: 6.43x [5.42, 6.72] with OpenVINO there."
            if "amx_bf16" in has
            else "",
            RESNET50,
        )
    if has & {"avx512_vnni", "avx_vnni"}:
        return Expectation(
            "INT8 should pay: this CPU has VNNI, which does in one instruction what 8-bit "
            "convolutions need three for without it. Not measured by us without AMX: bench it.",
            "bf16 should pay with OpenVINO (AVX512_BF16); not measured by us without AMX."
            if "avx512_bf16" in has
            else "",
            _INTEL,
        )
    return Expectation(
        "INT8 may not pay: without VNNI an 8-bit multiply-add takes three instructions, and its "
        "16-bit sums can saturate (hence the target x86-no-vnni). Not measured by us: bench it.",
        "",
        _INTEL,
    )


def _on_arm(has: set[str]) -> Expectation:
    if has & {"asimddp", "i8mm"}:
        return Expectation(
            "INT8 should pay: this CPU has 8-bit dot products. Not measured by us on Arm: bench it.",
            "",
            _ARM,
        )
    return Expectation(
        "INT8 may not pay: this CPU has no 8-bit dot products. Not measured by us on Arm: bench it.",
        "",
        _ARM,
    )
