"""Deterministic splits by class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deploy_tools.errors import UserError


def stratified_choice(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Choose `count` indices so that each class has its share of them, to within one image.

    Shares are rounded by largest remainder (ties by class index). Returns sorted indices,
    the same for the same labels, count and seed on every machine.
    """
    total = len(labels)
    if not 1 <= count <= total:
        raise UserError(f"{count} images were asked for and the split has {total}.")
    generator = np.random.Generator(np.random.PCG64(seed))
    classes, sizes = np.unique(labels, return_counts=True)
    shares = sizes * (count / total)
    quota = np.floor(shares).astype(np.int64)
    order = np.argsort(-(shares - quota), kind="stable")
    quota[order[: count - int(quota.sum())]] += 1
    chosen = [
        generator.permutation(np.flatnonzero(labels == cls))[:n]
        for cls, n in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def stratified_split(
    labels: NDArray[np.int64], held: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (kept, held out) indices; `held` images are held out, stratified by class."""
    chosen = stratified_choice(labels, held, seed)
    mask = np.ones(len(labels), bool)
    mask[chosen] = False
    return np.flatnonzero(mask).astype(np.int64), chosen
