"""What `peers_accuracy` claims: our default row against the best of the other tools.

Ours is the default, chosen before; theirs is the best of all their rows, chosen on the
evaluation images. That comparison favours them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.accuracy import Accuracy
from benchmarks.peers.base import PeerFile
from benchmarks.studies.base import Results
from benchmarks.studies.ours import DEFAULT, FREE
from benchmarks.studies.peers_rows import HARD, PLAIN, Row
from benchmarks.studies.subject import paired_difference

GAIN_DB = 1.5
"""How far ahead of the best tool full INT8 shall be, at full speed."""
AGREEMENT = 0.9935
"""Agreement with FP32 that full INT8 shall reach."""
FREE_GAIN_DB, FREE_AGREEMENT = 3.0, 0.995
"""The same with the main branch of every residual Add in float."""


@dataclass
class Found:
    """What a row gave in one runtime: by seed, what the file cost and how good it is.

    reason: why it did not run, "" where it did.
    """

    row: Row
    runtime: str
    accuracies: dict[int, Accuracy] = field(default_factory=dict)
    files: list[PeerFile] = field(default_factory=list)
    reason: str = ""

    @property
    def sqnr(self) -> float:
        """Mean logit SQNR over the seeds, dB."""
        return statistics.fmean([a.logit_sqnr_db for a in self.accuracies.values()])

    @property
    def agreement(self) -> float:
        """Mean agreement with FP32 over the seeds, a fraction."""
        return statistics.fmean([a.agreement for a in self.accuracies.values()])

    def __str__(self) -> str:
        return f"{self.row.tool} {self.row.method} in {self.runtime}"


def claim_all(results: Results, model: str, everything: Sequence[Found]) -> None:
    """State for each setting how far our default is ahead, in dB and in agreement.

    A setting without a row of ours or without another tool's has no claim.
    """
    leads: dict[str, float] = {}
    for setting in (PLAIN, *HARD):
        here = [
            found
            for found in everything
            if found.accuracies
            and not found.reason  # not of all seeds
            and setting in (found.row.setting, *found.row.also)
        ]
        ours = [found for found in here if _is_default(found.row)]
        others = [found for found in here if not found.row.ours and found.row.whole]
        peers = [found for found in others if not found.row.free]
        if not ours or not peers:
            continue
        where = f"{model}, {setting}"
        gain, agreement = (GAIN_DB, AGREEMENT) if setting == PLAIN else (0.0, 0.0)
        leads[setting] = _claim_lead(results, f"{where}, any runtime", ours, peers, gain)
        for runtime in sorted({found.runtime for found in peers}):
            mine, theirs = ([f for f in each if f.runtime == runtime] for each in (ours, peers))
            if mine:
                _claim_lead(results, f"{where}, both in {runtime}", mine, theirs, 0.0)
        _claim_agreement(results, where, ours, peers, agreement)
        free = [found for found in here if found.row.ours and found.row.method == FREE]
        if free:
            where = f"{where}, {FREE}"
            _claim_lead(results, f"{where}, any runtime", free, others, FREE_GAIN_DB)
            _claim_agreement(results, where, free, others, FREE_AGREEMENT)
    for setting in leads:
        if setting != PLAIN and PLAIN in leads:
            name = f"{model}: lead with {setting}, dB, at least that of the default setting"
            results.claim(name, leads[setting], ">=", leads[PLAIN])


def _is_default(row: Row) -> bool:
    """Whether it is a row of ours with the default ranges, for whatever target."""
    return row.ours and row.method.split(",")[0] == DEFAULT


def _claim_lead(
    results: Results, where: str, ours: Sequence[Found], peers: Sequence[Found], target: float
) -> float:
    """Claim the mean difference of the SQNR, both from the same images at each seed."""
    mine, best = (max(each, key=lambda found: found.sqnr) for each in (ours, peers))
    seeds = sorted(set(mine.accuracies) & set(best.accuracies))
    mean, low, high = paired_difference(
        [mine.accuracies[seed] for seed in seeds], [best.accuracies[seed] for seed in seeds]
    )
    spread = f"[{low:.2f}, {high:.2f}]" if math.isfinite(low) else "[one seed]"
    results.claim(f"{where}: SQNR of {mine} over {best}, dB {spread}", mean, ">=", target)
    return mean


def _claim_agreement(
    results: Results, where: str, ours: Sequence[Found], peers: Sequence[Found], target: float
) -> None:
    """target: 0.0 for none beside the best of the peers."""
    mine, best = (max(each, key=lambda found: found.agreement) for each in (ours, peers))
    name = f"{where}: agreement of {mine} with FP32"
    results.claim(f"{name}, beside {best}", mine.agreement, ">=", best.agreement)
    if target:
        results.claim(name, mine.agreement, ">=", target)
