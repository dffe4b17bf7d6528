import pytest

from benchmarks.lengths import LENGTHS, speed_config
from deploy_tools.errors import UserError


def test_full_is_as_long_as_mlperf_asks_for():
    """600 s a scenario, 24,576 samples offline, 662 queries for an estimate of p99."""
    full = LENGTHS["full"]
    assert full.rounds * full.seconds_per_round >= 600
    assert full.rounds * full.least_calls("multi-stream") >= 662
    assert full.rounds * full.least_calls("offline") * full.batch >= 24_576
    assert full.server.rounds * full.server.seconds >= 600
    assert full.server.queries >= 662
    assert speed_config("full", batch=1).least_calls("offline") * full.rounds >= 24_576


def test_quick_is_short_and_what_is_given_wins():
    quick = speed_config()
    assert quick.rounds * quick.seconds_per_round <= 3
    mine = speed_config(
        "full", scenarios=["server"], rounds=4, seconds=0.5, latency_limit_ms=30, target_rate=9.0
    )
    assert (mine.scenarios, mine.rounds, mine.seconds_per_round) == (("server",), 4, 0.5)
    assert (mine.server.rounds, mine.server.seconds) == (4, 0.5)
    assert (mine.server.latency_limit_ms, mine.server.target_rate) == (30, 9.0)
    assert mine.least_calls("offline") == 2
    with pytest.raises(UserError, match='Did you mean "full"'):
        speed_config("ful")


def test_calls_hold_as_many_images_as_the_scenario_says():
    config = speed_config(batch=16, samples_per_query=3)
    sizes = [config.batch_of(s) for s in ("single-stream", "multi-stream", "server", "offline")]
    assert sizes == [1, 3, 1, 16]
