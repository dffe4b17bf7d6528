"""torch's modes give the module's logits, each in its own precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.torch_modes import MODES, TorchMode, open_module, open_script, use_threads
from benchmarks.statistics import logit_sqnr
from deploy_tools.errors import UserError

torch = pytest.importorskip("torch")


@pytest.fixture
def module():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 5),
    ).eval()  # fmt: skip


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 3, 16, 16)).astype(np.float32)


def wanted_of(module, images) -> np.ndarray:
    with torch.inference_mode():
        return module(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("name", [name for name, mode in MODES.items() if not mode.compiled])
def test_a_mode_gives_the_module_s_logits(module, images, name) -> None:
    before = {key: value.clone() for key, value in module.state_dict().items()}
    wanted = wanted_of(module, images)
    session = open_module(module, name, 1)
    (found,) = session.run(images)
    assert found.dtype == np.float32
    sqnr = logit_sqnr(wanted, found)
    if MODES[name].precision == "bf16":
        # 8 bits of mantissa, and really used: FP32 would be far better.
        assert 20 < sqnr < 70
    else:
        assert sqnr > 90
    assert (session.precision, session.threads) == (MODES[name].precision, 1)
    # The module itself is still float32 and where it was.
    for key, value in module.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[key])
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run(images)


def test_threads_and_gradients(images) -> None:
    seen = {}

    def function(tensor):
        seen["threads"] = torch.get_num_threads()
        seen["gradients"] = torch.is_grad_enabled()
        return tensor.mean(dim=(2, 3))

    before = torch.get_num_threads()
    try:
        TorchMode(function, MODES["eager"], 2).run(images)
    finally:
        torch.set_num_threads(before)
    assert seen == {"threads": 2, "gradients": False}


def test_threads_are_set_only_where_they_differ(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    for count in (2, 1):
        use_threads(count)
    assert calls == [1]


def test_channels_last_reaches_weights_and_inputs(module, images) -> None:
    seen = []
    session = open_module(module, "eager, channels_last", 1)
    own = session._function
    assert own[0].weight.is_contiguous(memory_format=torch.channels_last)
    own[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    session.run(images)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert not seen[0].is_contiguous()


def test_a_quantized_script_runs(module, images, tmp_path: Path) -> None:
    path = tmp_path / "module.pt"
    torch.jit.trace(module, torch.from_numpy(images)).save(str(path))
    session = open_script(path, 1)
    assert session.precision == "int8+fp32"
    np.testing.assert_allclose(session.run(images)[0], wanted_of(module, images), rtol=1e-4, atol=1e-5)  # fmt: skip


def test_an_unknown_mode_is_named(module) -> None:
    with pytest.raises(UserError, match="eager"):
        open_module(module, "eage", 1)
