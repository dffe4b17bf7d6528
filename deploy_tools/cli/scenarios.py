"""The options of bench speed that choose and shape scenarios, and its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from deploy_tools.cli.show import print_table

if TYPE_CHECKING:
    from benchmarks.energy import EnergyMeter
    from benchmarks.speed import SpeedConfig, SpeedRun
    from benchmarks.statistics import Interval

F = TypeVar("F", bound=Callable[..., Any])

SCENARIOS = ("single-stream", "multi-stream", "server", "offline")
_BELONGS = {
    "batch": "offline",
    "samples_per_query": "multi-stream",
    "latency_limit": "server",
    "target_rate": "server",
}
DASH = "-"


def scenario_options(function: F) -> F:
    """--scenario, --length, --batch and what else says how scenarios are measured."""
    for option in (
        click.option("--end-to-end", is_flag=True, help="Time from image file to label: decoding and preprocessing too."),
        click.option("--seconds", type=click.FloatRange(0.01), help="Of one file in one round. [default: the length's]"),
        click.option("--rounds", type=click.IntRange(3), help="Interleaved rounds. [default: the length's]"),
        click.option("--target-rate", type=click.FloatRange(0, min_open=True), metavar="RATE", help="Of the server scenario, images per second: measure there instead of searching for the largest."),
        click.option("--latency-limit", type=click.FloatRange(0, min_open=True), default=15.0, show_default=True, metavar="MS", help="Of the server scenario, on p99."),
        click.option("--samples-per-query", type=click.IntRange(1), default=8, show_default=True, help="Of the multi-stream scenario."),
        click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Of the offline scenario."),
        click.option("--length", type=click.Choice(["quick", "full"]), default="quick", show_default=True, help="quick: seconds a file and scenario; full: MLPerf's 600 s."),
        click.option("--scenario", "scenarios", multiple=True, type=click.Choice(SCENARIOS), help="Repeatable. Default: single-stream and offline."),
    ):  # fmt: skip
        function = option(function)
    return function


def chosen_config(
    length: str,
    scenarios: Sequence[str],
    batch: int,
    samples_per_query: int,
    latency_limit: float,
    target_rate: float | None,
    rounds: int | None,
    seconds: float | None,
    seed: int,
) -> SpeedConfig:
    """Return how to measure, as the options say; scenarios come in the order of `SCENARIOS`."""
    from benchmarks.lengths import speed_config
    from benchmarks.speed import DEFAULT_SCENARIOS

    wanted = scenarios or DEFAULT_SCENARIOS
    return speed_config(
        length, scenarios=[name for name in SCENARIOS if name in wanted], batch=batch,
        samples_per_query=samples_per_query, latency_limit_ms=latency_limit,
        target_rate=target_rate, rounds=rounds, seconds=seconds, seed=seed,
    )  # fmt: skip


def refuse_idle_scenario_options(scenarios: Sequence[str]) -> None:
    """Refuse an option of a scenario that is not measured: its user expects an effect."""
    context = click.get_current_context()
    for name, scenario in _BELONGS.items():
        given = context.get_parameter_source(name) == ParameterSource.COMMANDLINE
        if given and scenario not in scenarios:
            option = name.replace("_", "-")
            raise click.UsageError(
                f"--{option} has no effect here: it goes with --scenario {scenario}."
            )


def print_runs(runs: Sequence[SpeedRun], precisions: Mapping[str, str], meter: EnergyMeter) -> None:
    """Print one row a run, what to know about them, and the energy or why it is left out."""
    headers = ["model", "runs in", "scenario", "batch", "p50 ms", "p99 ms [95 %]", "images/s [95 %]", "speedup [95 %]"]  # fmt: skip
    rows = []
    for run in runs:
        p50, p99 = run.latency_ms["p50"], run.latency_ms["p99"]
        rate = run.images_per_s if run.has_rate else None
        end = ", end to end" if run.samples.end_to_end else ""
        rows.append(
            [run.variant, precisions[run.variant], f"{run.scenario}{end}", str(run.batch),
             f"{p50.estimate:.2f}", ratio_text(p99),
             DASH if rate is None else f"{rate.estimate:.0f} [{rate.low:.0f}, {rate.high:.0f}]",
             ratio_text(run.speedup) if run.has_speedup else DASH]
        )  # fmt: skip
        if meter.zones:
            joules = run.joules_per_image
            rows[-1].append(DASH if joules is None else f"{joules.estimate:.3g} [{joules.low:.3g}, {joules.high:.3g}]")  # fmt: skip
    print_table([*headers, *(["J/image [95 %]"] if meter.zones else [])], rows)
    for note in dict.fromkeys(run.note for run in runs if run.note):
        click.echo(note)
    click.echo(f"Energy {'from ' if meter.zones else ''}{meter}")


def ratio_text(value: Interval) -> str:
    """Return such as "3.03 [2.74, 3.26]"."""
    return f"{value.estimate:.2f} [{value.low:.2f}, {value.high:.2f}]"
