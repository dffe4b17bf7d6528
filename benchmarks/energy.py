"""Joules of the CPU packages, from the RAPL counters that Linux shows under powercap.

The counters hold all that runs on the machine, not this process alone. Interface: Linux,
Documentation/power/powercap/powercap.rst: energy_uj counts microjoules and starts again after
max_energy_range_uj. Since Linux 5.10 only root reads them by default (CVE-2020-8694).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Zone:
    """One counter: its name, such as "package-0" or "dram", its file, and where it starts again."""

    name: str
    file: Path
    range_uj: int


@dataclass(frozen=True)
class EnergyMeter:
    """The counters of this machine. reason: why there are none, "" where there are some."""

    zones: tuple[Zone, ...] = ()
    reason: str = ""

    def read(self) -> tuple[int, ...]:
        """Return microjoules of each zone."""
        return tuple(int(zone.file.read_text("ascii")) for zone in self.zones)

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float | None:
        """Return the joules between two readings, None without counters.

        A counter that started again once in between is put right.
        """
        if not self.zones:
            return None
        used = [
            end - start if end >= start else end - start + zone.range_uj
            for zone, start, end in zip(self.zones, before, after, strict=True)
        ]
        return sum(used) / 1e6

    def __str__(self) -> str:
        names = ", ".join(zone.name for zone in self.zones)
        return f"RAPL counters of {names}" if self.zones else f"not measured: {self.reason}"


def find_energy_meter(root: Path = POWERCAP) -> EnergyMeter:
    """Return the packages' and the memory's counters; without them a meter with the reason.

    The counters of parts of a package (core, uncore) and of the whole platform (psys) are left
    out: they would count the same energy twice.
    """
    zones: list[Zone] = []
    for folder in sorted(root.glob("intel-rapl:*")):  # AMD's processors use this name too
        try:
            name = (folder / "name").read_text("ascii").strip()
            if not name.startswith("package") and name != "dram":
                continue
            zone = Zone(
                name, folder / "energy_uj", int((folder / "max_energy_range_uj").read_text("ascii"))
            )
            int(zone.file.read_text("ascii"))
        except PermissionError:
            return EnergyMeter(reason=f"{folder / 'energy_uj'} is readable by root only")
        except (OSError, ValueError) as error:
            return EnergyMeter(reason=f"the RAPL counter {folder} cannot be read: {error}")
        zones.append(zone)
    if not zones:
        return EnergyMeter(reason=f"no RAPL counters under {root} (none in most virtual machines)")
    return EnergyMeter(tuple(zones))
