from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.energy import EnergyMeter, find_energy_meter
from benchmarks.server import ServerConfig
from benchmarks.speed import SpeedConfig, measure_speed


def zone(root, folder, name, energy, most=1_000_000):
    path = root / folder
    path.mkdir(parents=True)
    for file, value in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", most)):
        (path / file).write_text(f"{value}\n")
    return path


@pytest.fixture
def powercap(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 400_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 77)
    zone(tmp_path, "intel-rapl:0:1", "dram", 50_000, 60_000)
    zone(tmp_path, "intel-rapl:1", "psys", 99)
    zone(tmp_path, "dtpm", "something", 1)
    return tmp_path


def test_packages_and_memory_are_counted_once(powercap):
    meter = find_energy_meter(powercap)
    assert [found.name for found in meter.zones] == ["package-0", "dram"]
    assert meter.read() == (400_000, 50_000)
    assert str(meter) == "RAPL counters of package-0, dram"


def test_joules_are_the_difference_and_a_counter_may_start_again(powercap):
    meter = find_energy_meter(powercap)
    assert meter.joules((0, 0), (2_000_000, 500_000)) == pytest.approx(2.5)
    assert meter.joules((900_000, 0), (100_000, 0)) == pytest.approx(0.2)
    before = meter.read()
    (powercap / "intel-rapl:0:1" / "energy_uj").write_text("10000\n")  # wrapped at 60000
    assert meter.joules(before, meter.read()) == pytest.approx(0.02)


def test_without_counters_the_reason_is_said(tmp_path):
    meter = find_energy_meter(tmp_path / "none")
    assert meter.joules(meter.read(), meter.read()) is None
    assert str(meter).startswith("not measured: no RAPL counters under")
    damaged = zone(tmp_path, "intel-rapl:0", "package-0", "many")
    assert "cannot be read" in find_energy_meter(tmp_path).reason
    assert not find_energy_meter(tmp_path).zones
    (damaged / "energy_uj").unlink()
    assert "cannot be read" in find_energy_meter(tmp_path).reason


def test_counters_that_only_root_reads_are_left_out_with_the_reason(powercap, monkeypatch):
    read = Path.read_text

    def refuse(self, *args, **kwargs):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert "root only" in find_energy_meter(powercap).reason


def measured(scenario, meter, counter=None):
    """2 ms and 20 mJ an image, on a clock that moves only meanwhile and while workers sleep."""
    state = SimpleNamespace(now=0)

    def run(inputs):
        state.now += 2_000_000 * len(inputs)
        if counter is not None:
            counter.write_text(str(int(counter.read_text()) + 20_000 * len(inputs)))
        return (inputs,)

    def sleep(seconds):
        state.now += max(round(seconds * 1e9), 1000)

    config = SpeedConfig(
        (scenario,), batch=4, rounds=3, seconds_per_round=0.05, warmup=2, settle=3,
        server=ServerConfig(target_rate=100.0, rounds=3),
    )  # fmt: skip
    (found,) = measure_speed(
        {"a": SimpleNamespace(run=run, threads=1)}, lambda n: np.zeros((n, 1, 4, 4), np.float32),
        "a", config, clock=lambda: state.now, wait=lambda: None, sleep=sleep, meter=meter,
    )  # fmt: skip
    return found


@pytest.mark.parametrize("scenario", ["offline", "server"])
def test_joules_an_image_count_only_the_timed_calls(tmp_path, scenario):
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 5, 10**12)
    run = measured(scenario, find_energy_meter(tmp_path), folder / "energy_uj")
    assert run.joules_per_image.estimate == pytest.approx(0.02)
    assert run.to_dict()["joules_per_image_ci95"] == pytest.approx([0.02, 0.02])


def test_no_counters_no_joules():
    run = measured("offline", EnergyMeter(reason="none here"))
    assert run.joules_per_image is None
    assert run.to_dict()["joules_per_image"] is None
