import threading

import numpy as np
import pytest

from benchmarks.predictions import Predictions, predictions_from_images
from deploy_tools.data.source import ArraySource, SubsetSource, batches, source_hash
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import ArtifactError, UserError
from deploy_tools.runtimes import open_session

SPEC = InputSpec(size=(8, 8), mean=(0.5,), std=(0.25,))


def some_source(images=37, classes=6):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (images, 8, 8), dtype=np.uint8)
    labels = generator.integers(0, classes, images)
    return ArraySource("some", "test", pixels, labels, [str(i) for i in range(classes)])


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_predictions_equal_the_model_run_image_by_image(tiny, batch):
    source, session = some_source(), open_session(tiny)
    found = predictions_from_images(session, source, SPEC, batch=batch)
    expected = [session.run(inputs)[0][0] for inputs, _ in batches(source, SPEC, 1)]
    np.testing.assert_allclose(found.logits, expected, rtol=1e-5, atol=1e-6)
    assert found.ids == tuple(source.image_id(i) for i in range(len(source)))
    np.testing.assert_array_equal(found.labels, source.labels)
    assert found.data == source_hash(source)
    assert found.classes == 6
    assert found.correct.mean() == (np.argmax(expected, 1) == source.labels).mean()


def test_indices_choose_and_order_the_images(tiny):
    source, session = some_source(), open_session(tiny)
    chosen = [30, 2, 17, 2]
    found = predictions_from_images(session, source, SPEC, batch=3, indices=chosen)
    whole = predictions_from_images(session, source, SPEC)
    assert found.ids == tuple(whole.ids[i] for i in chosen)
    np.testing.assert_allclose(found.logits, whole.logits[chosen], rtol=1e-5, atol=1e-6)
    assert found.data == source_hash(SubsetSource(source, chosen, "test"))


def test_progress_counts_images(tiny):
    seen = []
    session = open_session(tiny)
    predictions_from_images(
        session, some_source(10), SPEC, batch=4, progress=lambda *step: seen.append(step)
    )
    assert seen == [("evaluate", 4, 10), ("evaluate", 8, 10), ("evaluate", 10, 10)]


class Watched(ArraySource):
    """Counts how far decoding is ahead of the model."""

    def __init__(self, images):
        base = some_source(images)
        super().__init__(
            "some",
            "test",
            np.stack([base.load(i) for i in range(images)]),
            base.labels,
            base.classes,
        )
        self.lock, self.loaded, self.broken = threading.Lock(), 0, None

    def load(self, index):
        if index == self.broken:
            raise UserError(f"{self.image_id(index)} cannot be read.")
        with self.lock:
            self.loaded += 1
        return super().load(index)


def test_decoding_runs_ahead_by_a_few_batches_only(tiny):
    source, session, ahead = Watched(400), open_session(tiny), []
    done = 0
    real = session.run

    def run(inputs):
        nonlocal done
        ahead.append(source.loaded - done)
        done += len(inputs)
        return real(inputs)

    session.run = run
    predictions_from_images(session, source, SPEC, batch=10)
    assert len(ahead) == 40
    assert max(ahead) <= 10 * 6


def test_an_unreadable_image_stops_with_its_own_error(tiny):
    source = Watched(100)
    source.broken = 42
    before = threading.active_count()
    with pytest.raises(UserError, match=r"test/000042 cannot be read"):
        predictions_from_images(open_session(tiny), source, SPEC, batch=8)
    assert source.loaded < 100
    assert threading.active_count() <= before


def test_labels_beyond_the_models_classes_are_refused_after_one_batch(tiny):
    steps = []
    with pytest.raises(UserError, match="6 classes"):
        predictions_from_images(
            open_session(tiny),
            some_source(classes=10),
            SPEC,
            batch=8,
            progress=lambda *s: steps.append(s),
        )
    assert steps == []


def test_nothing_to_evaluate_and_wrong_outputs_are_refused(tiny):
    session = open_session(tiny)
    with pytest.raises(UserError, match="nothing to evaluate"):
        predictions_from_images(session, some_source(), SPEC, indices=[])
    session.run = lambda inputs: (np.zeros((len(inputs), 2, 3), np.float32),)
    with pytest.raises(UserError, match=r"shape \(37, 2, 3\)"):
        predictions_from_images(session, some_source(), SPEC)


def test_the_output_is_chosen_by_name(tiny):
    session = open_session(tiny)
    real = session.run
    session.output_names = ("features", "logits")
    session.run = lambda inputs: (np.ones((len(inputs), 9), np.float32), real(inputs)[0])
    assert predictions_from_images(session, some_source(), SPEC).classes == 6
    session.output_names = ("features", "other")
    with pytest.raises(UserError, match="output_name"):
        predictions_from_images(session, some_source(), SPEC)


def test_logits_that_are_not_finite_name_the_first_image(predictions):
    good = predictions()
    logits = good.logits.copy()
    logits[7, 2] = np.nan
    with pytest.raises(UserError, match=r"1 of 300 images.*test/000007"):
        Predictions(good.ids, good.labels, logits, good.data)


def test_saved_predictions_come_back_and_bytes_repeat(predictions, tmp_path):
    found = predictions()
    for name in ("a.npz", "sub/b.npz"):
        found.save(tmp_path / name)
    loaded = Predictions.load(tmp_path / "a.npz")
    assert (loaded.ids, loaded.data) == (found.ids, found.data)
    np.testing.assert_array_equal(loaded.logits, found.logits)
    np.testing.assert_array_equal(loaded.labels, found.labels)
    assert (loaded.logits.dtype, loaded.labels.dtype) == (np.float32, np.int64)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "sub/b.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "sub"]


def test_damaged_files_are_artifact_errors(predictions, tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(ArtifactError, match="does not exist"):
        Predictions.load(path)
    predictions().save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[:500], whole[:900] + b"\0" * 50 + whole[950:]):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="not a readable"):
            Predictions.load(path)
    np.savez(path, ids=np.array([{}], object), labels=[0], logits=[[0.0]], data="x")
    with pytest.raises(ArtifactError, match="not a readable"):
        Predictions.load(path)
