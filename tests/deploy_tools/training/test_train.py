"""Training: repeatable, judged on held-out training images, and never on the test split."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploy_tools.data import fashion_mnist
from deploy_tools.data.source import SubsetSource
from deploy_tools.data.splits import stratified_split
from deploy_tools.errors import OutputError, UserError
from deploy_tools.models import new_module
from deploy_tools.models.checkpoint import load_state
from deploy_tools.training import train
from deploy_tools.training.config import TrainConfig
from deploy_tools.training.train import Trained, train_model

CONFIG = TrainConfig(epochs=2, batch=60, validation_images=60, lr=0.05, ema=0.9, threads=1, seed=5)
IMAGES = 300


class Recorded(SubsetSource):
    """Some training images, and which of them were read."""

    def __init__(self, base: Any) -> None:
        super().__init__(base, range(0, 3 * IMAGES, 3), "train")
        self.read: list[int] = []

    def load(self, index: int) -> Any:
        self.read.append(index)
        return super().load(index)


def trained(
    source: Any, out: Path, config: TrainConfig = CONFIG, module: nn.Module | None = None
) -> Trained:
    if module is None:
        torch.manual_seed(config.seed)
        module = new_module("resnet20-cifar", 10, 1)
    threads = torch.get_num_threads()
    try:
        return train_model(module, source, fashion_mnist.SPEC, config, out, {"arch": "x"})
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(fashion_train: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Recorded]:
    source = Recorded(fashion_train)
    return trained(source, tmp_path_factory.mktemp("train")), source


def small() -> nn.Module:
    """Return a model that trains in no time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def test_the_same_seed_gives_the_same_weights_bit_for_bit(
    run: tuple[Trained, Recorded], fashion_train: Any, tmp_path: Path
) -> None:
    again = trained(Recorded(fashion_train), tmp_path)
    first, second = load_state(run[0].checkpoint), load_state(again.checkpoint)
    assert first[1] == second[1]
    assert list(first[0]) == list(second[0])
    assert all(torch.equal(value, second[0][name]) for name, value in first[0].items())
    assert [replace(e, seconds=0.0) for e in again.epochs] == [
        replace(e, seconds=0.0) for e in run[0].epochs
    ]


def test_another_seed_gives_another_result(fashion_train: Any, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=1)
    results = [
        trained(Recorded(fashion_train), tmp_path / str(seed), replace(config, seed=seed), small())
        for seed in (1, 2)
    ]
    assert results[0].checkpoint.read_bytes() != results[1].checkpoint.read_bytes()


def test_every_image_is_read_once_and_from_the_given_source_only(
    run: tuple[Trained, Recorded], fashion_train: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert sorted(run[1].read) == list(range(IMAGES))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("training opened a data set by itself")

    monkeypatch.setattr(fashion_mnist, "load", refuse)
    trained(Recorded(fashion_train), tmp_path, replace(CONFIG, epochs=1), small())


def test_held_out_images_are_judged_and_never_trained_on(
    fashion_train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[bytes]] = {"train": set(), "judge": set()}
    module = small()
    module.register_forward_pre_hook(
        lambda m, x: seen["train" if m.training else "judge"].update(
            i.numpy().tobytes() for i in x[0]
        )
    )
    config = replace(CONFIG, epochs=1, crop_padding=0, flip=False)
    source = Recorded(fashion_train)
    trained(source, tmp_path, config, module)
    kept, held = stratified_split(source.labels, 60, config.seed)
    assert (len(seen["train"]), len(seen["judge"])) == (len(kept), len(held))
    assert not seen["train"] & seen["judge"]


def test_the_log_has_one_line_an_epoch(run: tuple[Trained, Recorded]) -> None:
    result = run[0]
    lines = (result.checkpoint.parent / "train-log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    keys = {"epoch", "lr", "train_loss", "train_top1", "validation_top1", "validation_loss"}
    assert keys <= set(json.loads(lines[0]))
    assert {path.name for path in result.checkpoint.parent.iterdir()} == {
        "checkpoint.safetensors", "train-log.jsonl",
    }  # fmt: skip


def test_metadata_and_names_of_the_checkpoint(run: tuple[Trained, Recorded]) -> None:
    state, metadata = load_state(run[0].checkpoint)
    best = run[0].best
    assert metadata == {
        "arch": "x", "epoch": str(best.epoch), "validation_top1": str(best.validation_top1),
    }  # fmt: skip
    new_module("resnet20-cifar", 10, 1).load_state_dict(state)


@pytest.mark.parametrize(
    ("judged", "best"),
    [
        ([(0.5, 1.0), (0.8, 1.0), (0.7, 1.0)], 2),
        ([(0.5, 1.0), (0.5, 0.9), (0.5, 0.95)], 2),  # the loss decides between equals
        ([(0.5, 1.0), (0.5, 1.0), (0.5, 1.0)], 1),
    ],
)
def test_the_best_epoch_on_held_out_images_is_kept(
    fashion_train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    judged: list[tuple[float, float]], best: int,
) -> None:  # fmt: skip
    weights: list[torch.Tensor] = []

    def judge(self: Any, images: Any, labels: Any) -> tuple[float, float]:
        weights.append(self.averaged["1.weight"].clone())
        return judged[len(weights) - 1]

    monkeypatch.setattr(train._Run, "validate", judge)
    result = trained(Recorded(fashion_train), tmp_path, replace(CONFIG, epochs=3), small())
    state, metadata = load_state(result.checkpoint)
    assert (result.best.epoch, metadata["epoch"]) == (best, str(best))
    assert torch.equal(state["1.weight"], weights[best - 1])
    assert not torch.equal(weights[0], weights[1])


def test_it_learns(fashion_train: Any, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=8, lr=0.01, crop_padding=0)
    result = trained(Recorded(fashion_train), tmp_path, config, small())
    assert result.best.validation_top1 > 0.6  # chance is 0.1


def rates(epochs: int, warmup: float, images: int = 600, batch: int = 60) -> list[float]:
    config = TrainConfig(epochs, batch=batch, lr=0.4, warmup_epochs=warmup)
    run = train._Run(small(), config, images)
    found = []
    for step in range(epochs * run.steps_per_epoch):
        run.step = step
        found.append(run._rate())
    return found


def test_the_learning_rate_at_warm_up_peak_and_end() -> None:
    found = rates(epochs=5, warmup=1.0)  # 10 steps of warm-up, 40 of cosine
    assert found[0] == pytest.approx(0.04)
    assert found[4] == pytest.approx(0.2)
    assert found[9] == pytest.approx(0.4)
    assert found[10] == pytest.approx(0.4)
    assert found[30] == pytest.approx(0.2)
    assert found[20] == pytest.approx(0.4 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert 0 < found[-1] < 0.001
    assert max(found) == pytest.approx(0.4)
    assert found[10:] == sorted(found[10:], reverse=True)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert rates(epochs=2, warmup=0.0)[0] == pytest.approx(0.4)


def test_only_warm_up() -> None:
    assert rates(epochs=1, warmup=1.0)[-1] == pytest.approx(0.4)


def test_weight_decay_spares_biases_and_norms() -> None:
    run = train._Run(new_module("resnet20-cifar", 10, 1), CONFIG, 300)
    decayed, others = run.optimizer.param_groups
    assert decayed["weight_decay"] == CONFIG.weight_decay
    assert others["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in others["params"])


def test_too_few_images(fashion_train: Any, tmp_path: Path) -> None:
    for held, batch in ((IMAGES, 1), (IMAGES - 10, 11)):
        config = replace(CONFIG, validation_images=held, batch=batch)
        with pytest.raises(UserError, match="fewer than one batch"):
            trained(Recorded(fashion_train), tmp_path, config, small())
    config = replace(CONFIG, validation_images=IMAGES + 1)
    with pytest.raises(UserError, match="301 images were asked for"):
        trained(Recorded(fashion_train), tmp_path, config, small())


def test_divergence_is_said_and_nothing_is_kept(fashion_train: Any, tmp_path: Path) -> None:
    config = replace(CONFIG, lr=1e30, epochs=5)
    with pytest.raises(UserError, match="diverged"):
        trained(Recorded(fashion_train), tmp_path, config, small())


def test_an_unwritable_folder(fashion_train: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        trained(Recorded(fashion_train), tmp_path / "file" / "out", CONFIG, small())


def test_progress_is_reported(fashion_train: Any, tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    config = replace(CONFIG, epochs=2, batch=10)
    train_model(
        small(), Recorded(fashion_train), fashion_mnist.SPEC, config, tmp_path, {},
        lambda *what: said.append(what),
    )  # fmt: skip
    assert [done for _, done, _ in said] == [20, 40]
    assert {total for *_, total in said} == {48}
