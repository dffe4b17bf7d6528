"""QAT: it recovers what a hard setting loses, loses nothing on the easy one, and says the truth."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from deploy_tools.data import fashion_mnist
from deploy_tools.data.source import SubsetSource, batches
from deploy_tools.data.splits import stratified_split
from deploy_tools.errors import ArtifactError, UserError
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx
from deploy_tools.runtimes import RuntimeConfig, open_session
from deploy_tools.training.onnx_module import OnnxModule, logits_of, with_weights
from deploy_tools.training.qat import qat_from_onnx
from deploy_tools.training.qat_config import QatConfig
from deploy_tools.training.qat_loss import agreement, qat_loss, relative_error, sqnr_db
from deploy_tools.training.qat_result import LearntRanges, QatResult

HARD = StaticConfig("ort-cpu", per_channel=False)
SHORT = QatConfig(epochs=3, batch=20, validation=0.25, weight_bits=4, learning_rate=0.1)
INDICES = tuple(range(0, 160, 2))


class Recorded(SubsetSource):
    """The first training images, and which of them were read."""

    def __init__(self, base: Any) -> None:
        super().__init__(base, range(600), "train")
        self.read: set[int] = set()

    def load(self, index: int) -> Any:
        self.read.add(index)
        return super().load(index)


@pytest.fixture(scope="module")
def source(fashion_train: Any) -> Recorded:
    return Recorded(fashion_train)


@pytest.fixture(scope="module")
def ranges(demo_onnx: Path, fashion_images: Any, seen_ranges: Any) -> Any:
    return seen_ranges(demo_onnx, fashion_images(0, 60))


@pytest.fixture(scope="module")
def hard(
    demo_onnx: Path, ranges: Any, source: Recorded, tmp_path_factory: pytest.TempPathFactory
) -> QatResult:
    """Weights of 4 bits, one scale a tensor: a few steps of QAT on 60 images."""
    path = tmp_path_factory.mktemp("qat") / "qat.onnx"
    torch.set_num_threads(1)
    return qat_from_onnx(demo_onnx, ranges, source, INDICES, fashion_mnist.SPEC, HARD, SHORT, path)


def test_it_recovers_what_a_hard_setting_loses(hard: QatResult) -> None:
    start = hard.curve[0]
    assert start.epoch == 0
    assert len(hard.curve) == SHORT.epochs + 1
    assert hard.best.validation_sqnr_db > start.validation_sqnr_db + 1.5
    assert hard.curve[-1].train_sqnr_db > start.train_sqnr_db + 0.5
    assert (hard.training_images, hard.validation_images) == (60, 20)
    assert "held-out training images SQNR" in str(hard)
    json.dumps(hard.to_dict(), allow_nan=False)


def test_only_the_given_images_are_read(hard: QatResult, source: Recorded) -> None:
    assert source.read == set(INDICES)


def test_what_it_reports_is_what_the_written_file_does(
    hard: QatResult, demo_onnx: Path, fashion_images: Any, tmp_path: Path
) -> None:
    """The gain holds in the Q/DQ file itself, on images that QAT has not seen."""
    images = fashion_images(300, 500)
    path = tmp_path / "q.onnx"
    qdq_from_onnx(hard.path, hard.ranges, path, HARD)
    teacher = open_session(demo_onnx).run(images.numpy())[0]
    session = open_session(path, RuntimeConfig(fusions=False, threads=1))
    found = torch.from_numpy(session.run(images.numpy())[0])
    gained = sqnr_db(found, torch.from_numpy(teacher)) - hard.curve[0].validation_sqnr_db
    assert gained > 1.0
    trained = logits_of(OnnxModule(onnx.load(str(path))), images)
    assert agreement(trained, found) == 1.0


def test_the_float_file_differs_in_its_weights_only(hard: QatResult, demo_onnx: Path) -> None:
    before, after = load_onnx(demo_onnx), load_onnx(hard.path)
    assert list(after.graph.node) == list(before.graph.node)
    assert list(after.metadata_props) == list(before.metadata_props)
    old = {t.name: numpy_helper.to_array(t) for t in before.graph.initializer}
    new = {t.name: numpy_helper.to_array(t) for t in after.graph.initializer}
    assert set(old) == set(new)
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == {name for name in old if name.endswith((".weight", ".bias"))}


def run(
    model: Path, ranges: Any, source: Any, path: Path, config: QatConfig, **rest: Any
) -> QatResult:
    given = {"static": StaticConfig(), "indices": INDICES[:45]} | rest
    return qat_from_onnx(
        model, ranges, source, given["indices"], fashion_mnist.SPEC, given["static"], config,
        path, rest.get("progress"), rest.get("teacher"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def quick() -> QatConfig:
    return QatConfig(epochs=1, batch=15, validation=0.3, learning_rate=0.05)


def test_it_never_loses_on_the_easy_setting(
    demo_onnx: Path, ranges: Any, source: Recorded, tmp_path: Path, quick: QatConfig
) -> None:
    """A rate that ruins the model: the start is kept, and the file is that of plain PTQ."""
    steps: list[tuple[str, int, int]] = []
    config = replace(quick, learning_rate=3.0)
    result = run(
        demo_onnx, ranges, source, tmp_path / "qat.onnx", config,
        progress=lambda *step: steps.append(step),
    )  # fmt: skip
    assert result.curve[1].validation_loss > result.curve[0].validation_loss
    assert result.best == result.curve[0]
    assert [step[1:] for step in steps] == [(1, 2), (2, 2)]
    before = {t.name: numpy_helper.to_array(t) for t in load_onnx(demo_onnx).graph.initializer}
    for tensor in load_onnx(result.path).graph.initializer:
        value, old = numpy_helper.to_array(tensor), before[tensor.name]
        if value.dtype == np.float32:  # no further than half a step, of max |w| / 127, away
            assert np.abs(value - old).max() <= np.abs(old).max() / 250
    for tensor, (low, high) in result.ranges.tensors.items():
        start = ranges.range_of(tensor, "u8")
        assert high - low == pytest.approx(start[1] - min(start[0], 0), rel=0.02)


@pytest.mark.parametrize("target", ["arm", "x86-no-vnni", "tensorrt"])
def test_every_targets_file_does_what_the_best_epoch_did(
    target: str, demo_onnx: Path, ranges: Any, source: Recorded, tmp_path: Path, quick: QatConfig
) -> None:
    static, config = StaticConfig(target, per_channel=False), replace(quick, weight_bits=5)
    result = run(demo_onnx, ranges, source, tmp_path / "qat.onnx", config, static=static)
    path = tmp_path / "q.onnx"
    qdq_from_onnx(result.path, result.ranges, path, static)
    _, held = stratified_split(source.labels[list(INDICES[:45])], 14, config.seed)
    chosen = [INDICES[at] for at in held]
    inputs = np.concatenate([x for x, _ in batches(source, fashion_mnist.SPEC, 50, chosen)])
    images = torch.from_numpy(inputs)
    found = logits_of(OnnxModule(onnx.load(str(path))), images)
    teacher = logits_of(OnnxModule(load_onnx(demo_onnx)), images)
    assert result.best.epoch == 1
    assert sqnr_db(found, teacher) == pytest.approx(result.best.validation_sqnr_db, abs=1e-3)


def test_frozen_ranges_stay_and_learnable_ones_move(
    demo_onnx: Path, ranges: Any, source: Recorded, tmp_path: Path, quick: QatConfig
) -> None:
    config = replace(quick, weight_bits=4, ranges="frozen")
    frozen = run(demo_onnx, ranges, source, tmp_path / "a.onnx", config)
    assert frozen.best.epoch == 1
    for tensor, pair in frozen.ranges.tensors.items():
        assert pair == ranges.range_of(tensor, "u8")
    config = replace(config, ranges="learnable", range_learning_rate=0.01)
    learnt = run(demo_onnx, ranges, source, tmp_path / "b.onnx", config)
    assert learnt.best.epoch == 1
    widths = [
        (pair[1] - pair[0]) / (ranges.ends[t][1] - min(ranges.ends[t][0], 0))
        for t, pair in learnt.ranges.tensors.items()
    ]
    assert sum(abs(width - 1) > 0.002 for width in widths) > len(widths) / 2


def test_the_same_seed_gives_the_same_file(
    demo_onnx: Path, ranges: Any, source: Recorded, tmp_path: Path, quick: QatConfig
) -> None:
    config = replace(quick, weight_bits=4)
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        result = run(
            demo_onnx, ranges, source, tmp_path / f"{name}.onnx", replace(config, seed=seed)
        )
        files.append(result.path.read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_labels_and_another_teacher_can_lead(
    demo_onnx: Path, ranges: Any, source: Recorded, tmp_path: Path, quick: QatConfig
) -> None:
    labels = replace(quick, distil="none", labels_weight=1.0)
    result = run(demo_onnx, ranges, source, tmp_path / "a.onnx", labels)
    assert 0 < result.curve[0].loss < 1  # cross-entropy of a model that fits these images
    # A teacher whose logits are all opposite: the student starts at an error of 2 squared.
    proto = load_onnx(demo_onnx)
    last = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    names = [name for name in last if name.startswith(proto.graph.node[-1].name)]
    assert len(names) == 2
    opposite = with_weights(proto, {name: torch.from_numpy(-last[name]) for name in names})
    onnx.save(opposite, str(tmp_path / "teacher.onnx"))
    led = run(
        demo_onnx, ranges, source, tmp_path / "b.onnx", quick, teacher=tmp_path / "teacher.onnx"
    )
    assert led.curve[0].loss == pytest.approx(4.0, rel=0.05)


def test_a_teacher_of_other_classes_is_refused(
    demo_onnx: Path, ranges: Any, source: Recorded, tmp_path: Path, quick: QatConfig
) -> None:
    proto = load_onnx(demo_onnx)
    last = proto.graph.node[-1].name
    for tensor in proto.graph.initializer:
        if tensor.name.startswith(last):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:1], tensor.name))
    del proto.graph.output[0].type.tensor_type.shape.dim[1:]
    onnx.save(proto, str(tmp_path / "teacher.onnx"))
    with pytest.raises(UserError, match=r"teacher\.onnx gives logits of shape \(1,\)"):
        run(
            demo_onnx, ranges, source, tmp_path / "q.onnx", quick, teacher=tmp_path / "teacher.onnx"
        )


def test_a_run_that_diverges_is_stopped(
    demo_onnx: Path, ranges: Any, source: Recorded, tmp_path: Path, quick: QatConfig
) -> None:
    config = replace(quick, learning_rate=1e30)
    with pytest.raises(UserError, match="diverged in epoch 1"):
        run(demo_onnx, ranges, source, tmp_path / "qat.onnx", config)
    assert not list(tmp_path.iterdir())


def test_too_few_images_are_refused(
    demo_onnx: Path, ranges: Any, source: Recorded, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="36 images are left to train on, fewer than one batch"):
        run(demo_onnx, ranges, source, tmp_path / "qat.onnx", QatConfig())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"ranges": "frosen"}, 'Did you mean "frozen"'),
        ({"distil": "mae"}, 'distil "mae" is not known'),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"warmup": 1.0}, "warmup must be at least 0 and below 1"),
        ({"validation": 0.0}, "best epoch is chosen on it"),
        ({"weight_bits": 1}, "between 2 and 8"),
        ({"distil": "none"}, "nothing to learn from"),
        ({"distil_weight": 0.0}, "nothing to learn from"),
        ({"temperature": math.nan}, "temperature must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        QatConfig(**wrong)
    assert message in str(caught.value)


def test_the_rate_warms_up_and_falls_to_nearly_nothing() -> None:
    config = QatConfig(warmup=0.1)
    rates = [config.rate(step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[0] < 0.1
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert QatConfig(warmup=0.0).rate(0, 1) == 1.0


def test_the_losses() -> None:
    teacher = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
    ours = torch.tensor([[3.0, 4.0], [0.5, 5.0]], requires_grad=True)
    labels = torch.tensor([1, 0])
    assert relative_error(ours, teacher).item() == pytest.approx(0.25 / 50)
    assert sqnr_db(ours.detach(), teacher) == pytest.approx(10 * math.log10(200))
    assert sqnr_db(teacher, teacher) == pytest.approx(120)
    assert sqnr_db(torch.zeros(2, 2), torch.zeros(2, 2)) == pytest.approx(120)
    assert agreement(ours.detach(), teacher) == 1.0
    assert agreement(-ours.detach(), teacher) == 0.0
    mse = QatConfig(distil_weight=3.0)
    assert qat_loss(ours, teacher, labels, mse).item() == pytest.approx(0.75 / 50)
    kl = QatConfig(distil="kl", temperature=2.0)
    first, second = torch.softmax(teacher / 2, 1)[1], torch.softmax(ours / 2, 1)[1]
    expected = 4 * (first * (first / second).log()).sum().item() / 2
    assert qat_loss(ours, teacher, labels, kl).item() == pytest.approx(expected, rel=1e-4)
    both = QatConfig(labels_weight=2.0)
    entropy = (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(4.5))) / 2
    expected = 0.25 / 50 + 2 * entropy
    assert qat_loss(ours, teacher, labels, both).item() == pytest.approx(expected)
    none = QatConfig(distil="none", labels_weight=1.0)
    assert qat_loss(ours, teacher, labels, none).item() == pytest.approx(entropy)


def test_learnt_ranges_are_kept_and_damage_is_seen(tmp_path: Path) -> None:
    learnt = LearntRanges("s8", {"a": (-1.5, 1.5), "dead": (0.0, 0.0)})
    path = tmp_path / "ranges.json"
    learnt.save(path)
    assert LearntRanges.load(path) == learnt
    assert learnt.range_of("a", "s8") == (-1.5, 1.5)
    with pytest.raises(ArtifactError, match='learnt for the grid "s8", not "u8"'):
        learnt.range_of("a", "u8")
    with pytest.raises(ArtifactError, match='no tensor "b"'):
        learnt.range_of("b", "s8")
    for damage in ('{"schema": 1}', "[]", "no", '{"schema": 2, "grid": "s8", "tensors": {}}',
                   '{"schema": 1, "grid": "s8", "tensors": {"a": [1, 2]}}',
                   '{"schema": 1, "grid": "s8", "tensors": {"a": [-1, "2"]}}'):  # fmt: skip
        path.write_text(damage)
        with pytest.raises(ArtifactError, match="holds no learnt ranges"):
            LearntRanges.load(path)
    with pytest.raises(ArtifactError, match="holds no learnt ranges"):
        LearntRanges.load(tmp_path / "absent.json")
