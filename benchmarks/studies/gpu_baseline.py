"""What torch alone reaches on this GPU: FP32, TF32, AMP, FP16, channels_last and CUDA graphs.

    python -m benchmarks.studies.gpu_baseline

ResNets with random weights on random images at 224x224 (speed does not depend on them), in
inference mode, without a compiler. The modes are interleaved: every round gives each one a turn,
in an order drawn anew, timed call by call with CUDA events; copies are not part of it. What a
mode needs (autocast, TF32) is set once a turn, so autocast casts the weights before the timed
calls. The modes but the last are eager: their time holds the gaps in which the GPU waits for the
host to launch the next kernel, most of all in small batches. The last one replays a CUDA graph
and has no such gaps; hold an engine with --cuda-graph against that one. A mode counts only where
its logits are still those of FP32, so that is the claim. Ends with exit 3 where there is no GPU,
or a torch that cannot use it. Not yet run on a GPU.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.statistics import (
    logit_sqnr,
    median_interval,
    paired_ratio_interval,
    percentile_intervals,
)
from benchmarks.studies.base import Results, run_study
from deploy_tools.errors import MissingDependencyError, require
from deploy_tools.models import build_model
from deploy_tools.runtimes.gpu import find_gpu, gpu_state, why_no_gpu

SIZE = 224
LEAST_SQNR_DB = 30.0
"""FP16 and BF16 keep 11 and 8 bits; a wrong layout or a broken cast gives next to 0 dB."""

Call = Callable[[], Any]
TimeCalls = Callable[[Call, int], Sequence[float]]
"""(call, repeats) -> milliseconds of each call."""


@dataclass(frozen=True)
class Mode:
    """A way to run the same module.

    autocast: the type of torch.autocast, "" without. tf32: let FP32 convolutions and products
    round their inputs to TF32. channels_last: memory format of weights and inputs. half: weights
    and inputs are FP16. graph: each call replays a CUDA graph.
    """

    name: str
    autocast: str = ""
    tf32: bool = False
    channels_last: bool = False
    half: bool = False
    graph: bool = False


MODES = (
    Mode("fp32"),
    Mode("fp32-channels-last", channels_last=True),
    Mode("tf32", tf32=True),
    Mode("tf32-channels-last", tf32=True, channels_last=True),
    Mode("amp-fp16", "float16"),
    Mode("amp-fp16-channels-last", "float16", channels_last=True),
    Mode("amp-bf16-channels-last", "bfloat16", channels_last=True),
    Mode("fp16-channels-last", channels_last=True, half=True),
    Mode("fp16-channels-last-graph", channels_last=True, half=True, graph=True),
)
"""The first is what the others are compared with."""


@dataclass(frozen=True)
class Plan:
    """What to measure. warmup: untimed calls before the first round; settle: of each turn."""

    models: tuple[str, ...] = ("resnet18", "resnet50")
    batches: tuple[int, ...] = (1, 8, 32, 128)
    size: int = SIZE
    rounds: int = 12
    repeats: int = 30
    warmup: int = 30
    settle: int = 3
    seed: int = 0
    device: str = "cuda"


QUICK = Plan(models=("resnet18",), batches=(1, 32), rounds=6, repeats=20)


def main(results: Results) -> None:
    """Time torch on this GPU: FP32, TF32, AMP, FP16, channels_last and CUDA graphs."""
    torch: Any = require("torch", "torch", "The torch baseline")
    gpu = find_gpu()
    if gpu is None or not torch.cuda.is_available():
        reason = why_no_gpu() or f"torch {torch.__version__} cannot use it"
        raise MissingDependencyError(
            f"no GPU to use: {reason}.", "Run it on a machine with an NVIDIA GPU, with its torch."
        )
    torch.backends.cudnn.benchmark = True  # let cuDNN try its algorithms while warming up
    plan = QUICK if results.quick else Plan()
    results.row(**asdict(gpu), torch_cuda=torch.version.cuda, state=gpu_state())
    for name in plan.models:
        for batch in plan.batches:
            measure(results, plan, name, batch, MODES, event_times)
    results.row(state=gpu_state())


def measure(
    results: Results,
    plan: Plan,
    name: str,
    batch: int,
    modes: Sequence[Mode],
    time_calls: TimeCalls,
    capture: Callable[[Call], Call] | None = None,
) -> None:
    """Time one model at one batch size in every mode; a row and a claim for each mode.

    capture: makes a call that replays a graph (default: a CUDA graph).
    """
    calls = _prepared(plan, name, batch, modes, capture or captured)
    logits = {}
    for mode in modes:
        with _as(mode, plan.device):
            for _ in range(plan.warmup):
                calls[mode.name]()
            logits[mode.name] = calls[mode.name]().float().cpu().numpy()
    generator = np.random.Generator(np.random.PCG64(plan.seed))
    rounds: dict[str, list[np.ndarray[Any, Any]]] = {mode: [] for mode in calls}
    for _ in range(plan.rounds):
        for place in generator.permutation(len(modes)):
            mode = modes[place]
            with _as(mode, plan.device):
                for _ in range(plan.settle):
                    calls[mode.name]()
                times = time_calls(calls[mode.name], plan.repeats)
            rounds[mode.name].append(np.array(times, np.float64))
    _report(results, plan, name, batch, modes, rounds, logits)


def _report(
    results: Results,
    plan: Plan,
    model: str,
    batch: int,
    modes: Sequence[Mode],
    rounds: Mapping[str, Sequence[np.ndarray[Any, Any]]],
    logits: Mapping[str, Any],
) -> None:
    first = modes[0].name
    rates = {m: [batch * 1e3 / float(t.mean()) for t in times] for m, times in rounds.items()}
    for mode, times in rounds.items():
        p50, p99 = percentile_intervals(times, (50, 99), plan.seed)
        rate = median_interval(rates[mode], plan.seed)
        ratio = paired_ratio_interval(rates[mode], rates[first], plan.seed)
        results.row(
            model=model, mode=mode, batch=batch, p50_ms=p50.estimate, p50_ms_ci95=p50.ends(),
            p99_ms=p99.estimate, p99_ms_ci95=p99.ends(), images_per_s=rate.estimate,
            images_per_s_ci95=rate.ends(), speedup=ratio.estimate, speedup_ci95=ratio.ends(),
            rounds_ms=[round(float(t.mean()), 5) for t in times],
        )  # fmt: skip
        if mode != first:
            sqnr = min(logit_sqnr(logits[first], logits[mode]), 200.0)  # inf where nothing differs
            results.claim(
                f"{model} batch {batch} {mode}: logit SQNR against {first}, dB",
                sqnr, ">=", LEAST_SQNR_DB,
            )  # fmt: skip


def event_times(call: Call, repeats: int) -> list[float]:
    """Return the milliseconds of each call on the GPU's clock."""
    import torch

    events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]  # type: ignore[no-untyped-call]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [float(a.elapsed_time(b)) for a, b in itertools.pairwise(events)]


def captured(call: Call) -> Call:
    """Return a call that replays what `call` does as a CUDA graph; it returns the same tensor."""
    import torch

    # As torch's notes on CUDA graphs want it: a few calls on a side stream, then the capture.
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()

    def replay() -> Any:
        graph.replay()
        return output

    replay.keeps = call  # type: ignore[attr-defined]  # the graph reads its weights and inputs
    return replay


def _prepared(
    plan: Plan, name: str, batch: int, modes: Sequence[Mode], capture: Callable[[Call], Call]
) -> dict[str, Call]:
    """Return by mode a call of the model, for inside `_as`, on inputs that are on the device."""
    import torch

    torch.manual_seed(plan.seed)
    state = build_model(name, None, 3).module.eval().state_dict()
    inputs = torch.randn(batch, 3, plan.size, plan.size).to(plan.device)

    def prepare(mode: Mode) -> Call:
        layout = torch.channels_last if mode.channels_last else torch.contiguous_format
        dtype = torch.float16 if mode.half else torch.float32
        module = build_model(name, None, 3).module.eval()
        module.load_state_dict(state)
        placed = module.to(plan.device, dtype, memory_format=layout)  # type: ignore[call-overload]
        own = inputs.to(dtype).contiguous(memory_format=layout)

        def call() -> Any:
            return placed(own)

        if not mode.graph:
            return call
        with _as(mode, plan.device):
            return capture(call)

    return {mode.name: prepare(mode) for mode in modes}


@contextlib.contextmanager
def _as(mode: Mode, device: str) -> Iterator[None]:
    """Inference in what a mode says, for the calls inside."""
    import torch

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = mode.tf32
    dtype = getattr(torch, mode.autocast) if mode.autocast else torch.bfloat16
    try:
        with (
            torch.inference_mode(),
            torch.autocast(device, dtype=dtype, enabled=bool(mode.autocast)),
        ):
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


if __name__ == "__main__":
    run_study("gpu_baseline", main)()
