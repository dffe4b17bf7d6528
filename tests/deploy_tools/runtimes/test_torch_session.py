"""A torch module behind the interface of the runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy_tools.runtimes.base import usable_cores
from deploy_tools.runtimes.torch import TorchSession


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 5))


def test_it_runs_in_eval_mode_without_gradients(small_inputs: Any) -> None:
    session = TorchSession(module().train(), threads=1)
    outputs = session.run(small_inputs)
    assert isinstance(outputs, tuple)
    assert outputs[0].dtype == np.float32
    np.testing.assert_array_equal(outputs[0], session.run(small_inputs)[0])
    with torch.no_grad():
        expected = module().eval()(torch.from_numpy(small_inputs)).numpy()
    np.testing.assert_allclose(outputs[0], expected, atol=1e-6)


def test_threads(small_inputs: Any) -> None:
    session = TorchSession(module(), threads=1)
    session.run(small_inputs)
    assert torch.get_num_threads() == session.threads == 1
    assert TorchSession(module()).threads == usable_cores()


def test_what_it_says() -> None:
    session = TorchSession(module(), 1, "picture")
    assert (session.runtime, session.provider, session.precision) == ("torch", "cpu", "fp32")
    assert (session.input_name, session.output_names) == ("picture", ("logits",))


def test_a_closed_session_does_not_run(small_inputs: Any) -> None:
    session = TorchSession(module(), 1)
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run(small_inputs)
