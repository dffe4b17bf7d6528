"""The job that every tool gets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.base import Job
from deploy_tools.errors import UserError
from deploy_tools.runtimes import open_session


def test_a_job_survives_json(demo_job: Job) -> None:
    assert Job.from_dict(json.loads(json.dumps(demo_job.to_dict()))) == demo_job
    given = replace(demo_job, root=Path("photos"), origin=None)
    assert Job.from_dict(json.loads(json.dumps(given.to_dict()))) == given


def test_images_come_in_batches_and_again(demo_job: Job) -> None:
    images = demo_job.images(20)
    sizes = [len(inputs) for inputs in images]
    assert sizes == [20, 20, 8]
    assert len(images) == 3
    first, again = (np.concatenate(list(images)) for _ in range(2))
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    alone = np.concatenate(list(demo_job.images()))
    np.testing.assert_array_equal(first, alone)


def test_held_out_images_are_not_calibration_images(demo_job: Job) -> None:
    with pytest.raises(UserError, match="held-out"):
        replace(demo_job, held_out=(5000, 3))
    with pytest.raises(UserError, match="without calibration images"):
        replace(demo_job, indices=())


def test_the_module_is_the_one_behind_the_onnx_file(demo_job: Job) -> None:
    torch = pytest.importorskip("torch")
    inputs = next(iter(demo_job.images(16)))
    with torch.no_grad():
        logits = demo_job.module()(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(logits, open_session(demo_job.model).run(inputs)[0], atol=1e-4)
    with pytest.raises(UserError, match="names no checkpoint"):
        replace(demo_job, origin=None).module()
