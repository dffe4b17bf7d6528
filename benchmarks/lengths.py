"""How long a measurement takes: quick, for a look, or full, as long as MLPerf asks for."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.server import ServerConfig
from benchmarks.speed import DEFAULT_SCENARIOS, SpeedConfig
from deploy_tools.errors import UserError, nearest

# MLPerf Inference Rules, section "Scenarios": 600 s a scenario, 24,576 samples offline; "Early
# Stopping": a p99 estimate needs 662 queries at least. Here the 600 s are cut into interleaved
# rounds; the server's are those at the rates that the searches find.
LENGTHS: dict[str, SpeedConfig] = {
    "quick": SpeedConfig(
        rounds=12, seconds_per_round=0.25, server=ServerConfig(rounds=5, steps=6, queries=100)
    ),
    "full": SpeedConfig(
        rounds=40,
        seconds_per_round=15.0,
        min_calls=17,
        min_images=24_576,
        server=ServerConfig(rounds=10, steps=8, queries=662, seconds=60.0),
    ),
}


def speed_config(
    length: str = "quick",
    *,
    scenarios: Sequence[str] = DEFAULT_SCENARIOS,
    batch: int = 8,
    samples_per_query: int = 8,
    latency_limit_ms: float = 15.0,
    target_rate: float | None = None,
    rounds: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
) -> SpeedConfig:
    """Return how to measure at a length of `LENGTHS`.

    rounds, seconds: of every scenario, in place of the length's own; in the server scenario
    seconds are the least of one slot of its search. The others: `SpeedConfig`, `ServerConfig`.
    """
    if length not in LENGTHS:
        raise UserError(f'length "{length}" is not known.', nearest(length, LENGTHS))
    base = LENGTHS[length]
    return SpeedConfig(
        tuple(scenarios),
        batch=batch,
        samples_per_query=samples_per_query,
        rounds=base.rounds if rounds is None else rounds,
        seconds_per_round=base.seconds_per_round if seconds is None else seconds,
        min_calls=base.min_calls if seconds is None else 2,
        min_images=base.min_images if seconds is None else 0,
        seed=seed,
        server=ServerConfig(
            latency_limit_ms=latency_limit_ms,
            target_rate=target_rate,
            rounds=base.server.rounds if rounds is None else rounds,
            steps=base.server.steps,
            queries=base.server.queries,
            seconds=base.server.seconds if seconds is None else seconds,
        ),
    )
