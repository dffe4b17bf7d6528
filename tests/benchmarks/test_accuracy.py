import json
import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.accuracy import accuracy_from_predictions, confusion_matrix, top_k
from benchmarks.predictions import Predictions
from benchmarks.statistics import mcnemar_exact, paired_drop_interval, wilson_interval
from deploy_tools.errors import UserError


def of_classes(predicted, labels, classes=3):
    logits = np.eye(classes, dtype=np.float32)[predicted]
    return Predictions(
        tuple(str(i) for i in range(len(labels))), np.array(labels, np.int64), logits, "d"
    )


LABELS = [0, 0, 1, 1, 2, 2, 2, 0, 1, 2]
BASE = of_classes([0, 0, 1, 1, 2, 2, 1, 1, 1, 0], LABELS)  # 7 of 10
OTHER = of_classes([0, 1, 2, 1, 2, 2, 2, 2, 1, 0], LABELS)  # loses images 1 and 2, gains image 6


def test_accuracy_counts_by_hand():
    found = accuracy_from_predictions(OTHER, BASE)
    assert (found.images, found.top1, found.top5) == (10, 0.6, None)
    assert found.drop_pp == pytest.approx(10.0)  # positive: the candidate is worse
    drop = paired_drop_interval(2, 1, 10)
    assert found.drop_ci95_pp == (drop.low, drop.high)
    assert found.mcnemar_p == mcnemar_exact(2, 1)
    assert found.agreement == 0.6  # both are wrong on image 7, and differently
    same = wilson_interval(6, 10)
    assert found.agreement_ci95 == (same.low, same.high)


def test_a_model_against_itself_has_no_drop_and_infinite_sqnr():
    found = accuracy_from_predictions(BASE, BASE)
    assert (found.drop_pp, found.agreement, found.mcnemar_p) == (0.0, 1.0, 1.0)
    assert found.logit_sqnr_db == math.inf
    values = found.to_dict()
    assert values["logit_sqnr_db"] is None
    assert values["logits_identical"] is True
    json.dumps(values, allow_nan=False)


def test_sqnr_takes_the_baseline_as_the_signal():
    louder = replace(BASE, logits=BASE.logits * 3)
    assert accuracy_from_predictions(louder, BASE).logit_sqnr_db == pytest.approx(
        -20 * math.log10(2)
    )
    assert accuracy_from_predictions(BASE, louder).logit_sqnr_db == pytest.approx(
        20 * math.log10(1.5)
    )


def test_the_dict_has_the_names_of_the_report(predictions):
    values = accuracy_from_predictions(predictions(0.2), predictions()).to_dict()
    assert {
        "images", "top1", "top1_ci95", "top5", "drop_pp", "drop_ci95_pp", "mcnemar_p", "agreement",
        "agreement_ci95", "logit_sqnr_db",
    } <= set(values)  # fmt: skip
    low, high = values["logit_sqnr_db_ci95"]
    assert low < values["logit_sqnr_db"] < high
    assert values["logits_identical"] is False


def test_top_k_breaks_ties_as_argmax_does():
    logits = np.zeros((6, 6), np.float32)
    tied = Predictions(tuple("abcdef"), np.arange(6), logits, "d")
    assert top_k(tied, 5) == pytest.approx(5 / 6)
    assert top_k(tied, 1) == tied.correct.mean() == pytest.approx(1 / 6)


def test_top_k_equals_sorting(predictions):
    found = predictions(images=500)
    order = np.argsort(-found.logits, axis=1, kind="stable")
    for k in (1, 2, 5, 6):
        assert top_k(found, k) == (order[:, :k] == found.labels[:, None]).any(axis=1).mean()
    assert top_k(found, 7) is None


def test_confusion_matrix_has_labels_as_rows():
    matrix = confusion_matrix(OTHER)
    assert matrix.tolist() == [[1, 1, 1], [0, 2, 1], [1, 0, 3]]
    assert matrix.dtype == np.int64
    assert np.trace(matrix) == OTHER.correct.sum()


def test_predictions_about_other_images_are_refused():
    renamed = replace(BASE, ids=(*BASE.ids[:4], "x", *BASE.ids[5:]))
    with pytest.raises(UserError, match="different from image 4"):
        accuracy_from_predictions(renamed, BASE)
    shorter = Predictions(BASE.ids[:3], BASE.labels[:3], BASE.logits[:3], BASE.data)
    with pytest.raises(UserError, match="3 and 10, different from image 3"):
        accuracy_from_predictions(shorter, BASE)
    with pytest.raises(UserError, match="different images"):
        accuracy_from_predictions(replace(BASE, data="other"), BASE)
    wider = replace(BASE, logits=np.pad(BASE.logits, ((0, 0), (0, 1))))
    with pytest.raises(UserError, match="4 classes"):
        accuracy_from_predictions(wider, BASE)
