"""Stratified choices: exact shares, the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy_tools.data.splits import stratified_choice, stratified_split
from deploy_tools.errors import UserError

LABELS = np.repeat([0, 1, 2], [50, 30, 20])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.data())
def test_each_class_has_its_share_to_within_one(labels: list[int], data: st.DataObject) -> None:
    array = np.array(labels)
    count = data.draw(st.integers(1, len(labels)))
    chosen = stratified_choice(array, count, seed=3)
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    for cls in set(labels):
        share = count * labels.count(cls) / len(labels)
        assert abs((array[chosen] == cls).sum() - share) < 1 + 1e-9


def test_the_choice_is_fixed_by_the_seed() -> None:
    # A choice that changed with a release would make cached ranges and splits stale.
    assert stratified_choice(LABELS, 10, seed=0).tolist() == [2, 4, 18, 23, 36, 55, 57, 78, 85, 92]  # fmt: skip
    assert stratified_choice(LABELS, 10, 0).tolist() != stratified_choice(LABELS, 10, 1).tolist()


def test_a_split_is_a_partition() -> None:
    kept, held = stratified_split(LABELS, 30, seed=1)
    assert sorted([*kept, *held]) == list(range(100))
    assert np.bincount(LABELS[held]).tolist() == [15, 9, 6]


@pytest.mark.parametrize("count", [0, 101])
def test_too_few_or_too_many(count: int) -> None:
    with pytest.raises(UserError, match=f"{count} images were asked for and the split has 100"):
        stratified_choice(LABELS, count, 0)
