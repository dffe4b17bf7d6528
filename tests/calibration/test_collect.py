from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from calibration import collect
from calibration.collect import (
    CalibrateConfig,
    expected_identity,
    ranges_from_images,
    ranges_from_statistics,
    statistics_from_images,
)
from calibration.observers import TensorObserver
from calibration.select import SelectConfig, select_images
from calibration.table import RangeTable, require_fresh
from deploy_tools.artifacts import sha256_of_file
from deploy_tools.data.source import ArraySource, batches
from deploy_tools.errors import ArtifactError, UserError
from deploy_tools.runtimes import RuntimeConfig, open_session

TENSORS = ("input", "relu", "deep", "pooled")


@pytest.fixture
def selection(images):
    return select_images(images, SelectConfig(images=23))


def test_statistics_are_those_of_the_tensors(model, images, selection, spec):
    """Against a plain session whose every output is kept."""
    found = statistics_from_images(model, TENSORS, images, selection, spec)
    assert found.images == 23
    inputs = np.concatenate([x for x, _ in batches(images, spec, 23, selection.indices)])
    session = open_session(collect.with_outputs(model, TENSORS[1:]), RuntimeConfig(threads=1))
    for name, values in zip(TENSORS, (inputs, *session.run(inputs)), strict=True):
        seen = found.tensors[name]
        assert seen.count == values.size
        assert seen.low == pytest.approx(values.min(), abs=1e-6)
        assert seen.high == pytest.approx(values.max(), abs=1e-6)
        assert seen.mean == pytest.approx(values.mean(), abs=seen.width)


def test_batch_size_and_threads_change_nothing(model, images, selection, spec):
    """The input tensor is exact; others may differ by the runtime's own rounding."""
    runs = [
        statistics_from_images(
            model, TENSORS, images, selection, spec, CalibrateConfig(batch=batch, threads=threads)
        )
        for batch, threads in ((1, 1), (5, 2), (0, 2))
    ]
    for other in runs[1:]:
        assert other.key() == runs[0].key()
        for name in TENSORS:
            first, second = runs[0].tensors[name], other.tensors[name]
            assert first.count == second.count
            np.testing.assert_array_equal(first.counts, second.counts)


def test_order_of_images_changes_nothing(model, images, selection, monkeypatch, spec):
    forward = statistics_from_images(model, TENSORS, images, selection, spec)
    backwards = type(selection)(**{**vars(selection), "indices": selection.indices[::-1]})
    backward = statistics_from_images(model, TENSORS, images, backwards, spec)
    for name in TENSORS:
        np.testing.assert_array_equal(forward.tensors[name].counts, backward.tensors[name].counts)


def test_ranges_and_their_identity(model, images, selection, tmp_path: Path, spec, small_model):
    config = CalibrateConfig("percentile", percentile=99.0)
    table = ranges_from_images(model, TENSORS, images, selection, spec, config)
    expected = expected_identity(sha256_of_file(model), TENSORS, selection, spec, config)
    require_fresh(table, expected)
    assert table.settings == {"percentile": 99.0}
    assert table.input_spec == spec.to_json()
    assert set(table.tensors) == set(TENSORS)
    table.save(tmp_path / "ranges.json")
    assert RangeTable.load(tmp_path / "ranges.json") == table
    other = small_model(bias=1.0)
    changed = expected_identity(sha256_of_file(other), TENSORS, selection, spec, config)
    with pytest.raises(ArtifactError, match="model changed"):
        require_fresh(table, changed)


def test_another_method_needs_no_new_pass(model, images, selection, spec):
    statistics = statistics_from_images(model, TENSORS, images, selection, spec)
    tables = {
        method: ranges_from_statistics(statistics, CalibrateConfig(method))
        for method in ("minmax", "percentile", "entropy", "mse")
    }
    assert len({table.key() for table in tables.values()}) == 4
    low, high = tables["minmax"].range_of("deep", "u8")
    seen = tables["mse"].tensors["deep"]
    assert (low, high) == (seen.low, seen.high)
    assert tables["minmax"].settings == {}
    for table in tables.values():
        assert table.range_of("relu", "u8")[0] == 0.0


def test_input_alone_runs_no_model(model, images, selection, spec):
    found = statistics_from_images(model, ["input"], images, selection, spec)
    assert found.tensors["input"].count == 23 * 64


def test_progress_reaches_the_total(model, images, selection, spec):
    calls: list[tuple[str, int, int]] = []
    config = CalibrateConfig(batch=4)
    ranges_from_images(
        model, TENSORS, images, selection, spec, config, lambda *call: calls.append(call)
    )
    images_done = [done for what, done, _ in calls if what == "calibrate"]
    assert images_done == [1, 5, 9, 13, 17, 21, 23]
    assert calls[-1] == ("choose ranges", 4, 4)


def test_fixed_batch(model, images, selection, spec, small_model):
    fixed = statistics_from_images(small_model(batch=1), TENSORS, images, selection, spec)
    assert fixed.tensors["relu"].count == 23 * 4 * 36
    with pytest.raises(UserError, match="batches of exactly 4"):
        statistics_from_images(small_model(batch=4), TENSORS, images, selection, spec)


def test_values_that_are_no_numbers_are_refused(images, selection, spec, small_model):
    bad = small_model(bias=float("nan"))
    with pytest.raises(UserError, match='tensor "deep" has NaN'):
        statistics_from_images(bad, ["deep"], images, selection, spec)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [([], "no tensors"), (["conf"], "Did you mean"), (["relu", "w2"], "is a weight")],
)
def test_wrong_tensors_are_refused(model, images, selection, tensors, message, spec):
    with pytest.raises(UserError, match=message):
        statistics_from_images(model, tensors, images, selection, spec)


@pytest.mark.parametrize(
    "values",
    [
        {"method": "entrpy"},
        {"percentile": 101.0},
        {"percentile": 0.5},
        {"batch": -1},
        {"threads": -1},
    ],
)
def test_bad_settings_are_refused(values):
    with pytest.raises(UserError):
        CalibrateConfig(**values)


class BrokenSource(ArraySource):
    """Its twelfth image cannot be read."""

    reads = 0

    def load(self, index: int):
        self.reads += 1
        if self.reads == 12:
            raise UserError("photo 12 is damaged.")
        return super().load(index)


def test_unreadable_image_ends_the_pass_and_its_threads(model, images, selection, spec):
    source = BrokenSource("noise", "train", images._images, images.labels, images.classes)
    before = threading.active_count()
    with pytest.raises(UserError, match="photo 12 is damaged"):
        statistics_from_images(
            model, TENSORS, source, selection, spec, CalibrateConfig(batch=3, threads=2)
        )
    gc.collect()
    assert threading.active_count() == before


def test_activations_in_memory_do_not_grow_with_images(model, images, monkeypatch, spec):
    """However many images there are, the arrays alive stay within the limit."""
    limit = 1 << 13
    arrays: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []
    original = TensorObserver.observe
    one_at_a_time = threading.Lock()  # what this counts with must not itself keep arrays alive

    def living_bytes() -> int:
        return sum(array.nbytes for ref in arrays if (array := ref()) is not None)

    def observe(self: TensorObserver, values: np.ndarray) -> None:
        with one_at_a_time:
            arrays.append(weakref.ref(values))
            alive.append(living_bytes())
        original(self, values)

    monkeypatch.setattr(TensorObserver, "observe", observe)
    monkeypatch.setattr(collect, "_ACTIVATION_BYTES", limit)
    selection = select_images(images, SelectConfig(images=60))
    statistics_from_images(model, TENSORS, images, selection, spec)
    assert len(alive) >= 5 * len(TENSORS)  # batches; larger ones with one core
    assert limit / 4 < max(alive) <= limit


def test_calibration_needs_no_torch():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import calibration, calibration.collect\n"
        "from calibration.methods import METHODS, method_named\n"
        "[method_named(name) for name in METHODS]\n"
        "assert 'onnxruntime' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.fixture(scope="module")
def real_statistics(shared_data, tmp_path_factory):
    """The public trained ResNet-20 on CIFAR-10 images, every activation observed."""
    pytest.importorskip("torch")
    import onnx

    from deploy_tools.export import onnx_from_module
    from deploy_tools.pipeline.model import fold_model, load_model
    from deploy_tools.recipe import InputTable, ModelTable

    weights = shared_data / "weights" / "resnet20-12fca82f.th"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    loaded = load_model(
        ModelTable("resnet20-cifar-a", str(weights)), InputTable(size=(32, 32), mean=mean, std=std)
    )
    path = tmp_path_factory.mktemp("real") / "fp32.onnx"
    onnx_from_module(fold_model(loaded)[0], loaded.spec, path)
    graph = onnx.load(str(path)).graph
    tensors = [n.output[0] for n in graph.node if n.op_type in ("Conv", "Relu", "Add", "Gemm")]
    with np.load(shared_data / "cifar10" / "cifar10_train_calib2000.npz") as file:
        source = ArraySource("cifar10", "train", file["images"], file["labels"], "0123456789")
    selection = select_images(source, SelectConfig(images=200))
    return statistics_from_images(path, tensors, source, selection, loaded.spec)


@pytest.mark.parametrize("grid", ["u8", "s8"])
def test_entropy_is_not_minmax_on_a_real_model(real_statistics, grid):
    """onnxruntime's Entropy with its defaults returns exactly the min-max ranges; ours searches."""
    entropy, minmax = (
        ranges_from_statistics(real_statistics, CalibrateConfig(method))
        for method in ("entropy", "minmax")
    )
    widths = [
        entropy.range_of(name, grid)[1] / minmax.range_of(name, grid)[1]
        for name in real_statistics.tensors
        if minmax.range_of(name, grid)[1] > 0
    ]
    assert np.mean(np.array(widths) < 0.95) > 0.5
    assert max(tensor.clipped[grid] for tensor in entropy.tensors.values()) < 0.02
