"""Export: any batch size, the module's results, readable names, the same bytes everywhere."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from deploy_tools import export
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import MissingDependencyError, OutputError, UserError
from deploy_tools.export import ExportConfig, onnx_from_module
from deploy_tools.onnx_files import input_spec_of, load_onnx, require_dynamic_batch
from deploy_tools.runtimes import open_session

SPEC = InputSpec(
    size=(8, 6), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), resize=9, crop="center",
    interpolation="bicubic", input_name="picture", output_name="scores", labels=("a", "ü", "c"),
)  # fmt: skip


class Tiny(nn.Module):
    """A convolution, its BatchNorm, and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x))).mean((2, 3))
        logits: Tensor = self.head(x)
        return logits


def tiny() -> Tiny:
    torch.manual_seed(3)
    return Tiny().eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, export.ExportReport]:
    path = tmp_path_factory.mktemp("export") / "tiny.onnx"
    return path, onnx_from_module(tiny(), SPEC, path, metadata={"b": "2", "a": "1"})


@pytest.fixture
def proto(exported: tuple[Path, export.ExportReport]) -> onnx.ModelProto:
    return onnx.load(str(exported[0]))


def refused(module: nn.Module, folder: Path, words: str) -> None:
    with pytest.raises(UserError, match=words):
        onnx_from_module(module, SPEC, folder / "m.onnx")
    assert not any(folder.iterdir())


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_gives_what_the_module_gives(
    exported: tuple[Path, export.ExportReport], batch: int
) -> None:
    x = torch.randn(SPEC.shape(batch), generator=torch.Generator().manual_seed(batch))
    session = open_session(exported[0])
    assert (session.input_name, session.output_names) == ("picture", ("scores",))
    with torch.inference_mode():
        expected = tiny()(x).numpy()
    np.testing.assert_allclose(session.run(x.numpy())[0], expected, atol=1e-5)


def test_the_report_is_about_other_batches_than_the_traced_one(
    exported: tuple[Path, export.ExportReport],
) -> None:
    path, report = exported
    assert export.TRACED_BATCH not in report.max_abs
    assert len(report.max_abs) >= 2
    assert max(report.max_rel.values()) < 1e-4
    assert report.size_bytes == path.stat().st_size
    assert "max abs difference" in str(report)


def test_metadata_holds_the_input_spec(exported: tuple[Path, export.ExportReport]) -> None:
    loaded = load_onnx(exported[0])
    require_dynamic_batch(loaded, exported[0])
    assert input_spec_of(loaded, exported[0]) == SPEC
    assert {"a": "1", "b": "2"}.items() <= {p.key: p.value for p in loaded.metadata_props}.items()


def test_opset_and_no_external_data(proto: onnx.ModelProto) -> None:
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    assert not any(tensor.external_data for tensor in proto.graph.initializer)


def test_two_exports_are_identical(
    exported: tuple[Path, export.ExportReport], tmp_path: Path
) -> None:
    onnx_from_module(tiny(), SPEC, tmp_path / "again.onnx", metadata={"a": "1", "b": "2"})
    assert (tmp_path / "again.onnx").read_bytes() == exported[0].read_bytes()


def test_no_path_and_no_trace_in_the_bytes(
    exported: tuple[Path, export.ExportReport], demo_onnx: Path
) -> None:
    for path in (exported[0], demo_onnx):
        content = path.read_bytes()
        found = [
            word
            for word in (b"stack_trace", b"site-packages", b".py", b"pkg.torch", b"File \"",
                         str(Path(__file__).parent).encode())
            if word in content
        ]  # fmt: skip
        assert not found


def test_nodes_are_named_after_the_layers(demo_onnx: Path) -> None:
    graph = onnx.load(str(demo_onnx)).graph
    weights = {tensor.name for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 22
    for node in layers:
        assert node.input[1] == f"{node.name}.weight"
        assert node.input[1] in weights
    names = [node.name for node in graph.node]
    assert {"conv1", "conv1/relu", "layer2.0.shortcut.0", "layer3.2.conv2/add"} <= set(names)
    assert len(set(names)) == len(names)


class BranchesOnBatch(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[0] == 2 else super().forward(x) * 2


class FixesBatch(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(2, 3, 8, 6))


class GivesTwo(Tiny):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return logits, logits.softmax(1)


class DrawsNumbers(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(1)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (BranchesOnBatch(), "dynamic batch|takes only batches|differs"),
        (FixesBatch(), "dynamic batch|takes only batches"),
        (GivesTwo(), "2 outputs"),
        (DrawsNumbers(), "differs from the module"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_modules_that_cannot_be_exported(tmp_path: Path, module: nn.Module, words: str) -> None:
    refused(module, tmp_path, words)


def returning(monkeypatch: pytest.MonkeyPatch, proto: onnx.ModelProto) -> None:
    """Let the exporter return this graph."""
    monkeypatch.setattr(export, "_exported", lambda *_: copy.deepcopy(proto))


def test_a_wrong_weight_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proto: onnx.ModelProto
) -> None:
    returning(monkeypatch, proto)
    onnx_from_module(tiny(), SPEC, tmp_path / "good.onnx")
    (tmp_path / "good.onnx").unlink()
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), bias.name)
    )
    returning(monkeypatch, proto)
    refused(tiny(), tmp_path, "differs from the module")
    onnx_from_module(tiny(), SPEC, tmp_path / "lax.onnx", ExportConfig(tolerance=1.0))


def test_a_result_that_is_no_number_is_found_at_any_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proto: onnx.ModelProto
) -> None:
    returning(monkeypatch, proto)
    for bad in export.CHECKED_BATCHES:
        found = {batch: np.nan if batch == bad else 1e-7 for batch in export.CHECKED_BATCHES}
        monkeypatch.setattr(export, "_differences", lambda *_, found=found: (found, found))
        refused(tiny(), tmp_path, "differs from the module")


def test_a_graph_with_a_fixed_batch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proto: onnx.ModelProto
) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    returning(monkeypatch, proto)
    refused(tiny(), tmp_path, "takes only batches of 2")


def test_a_graph_that_the_checker_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proto: onnx.ModelProto
) -> None:
    proto.graph.node[-1].input[0] = "nowhere"
    returning(monkeypatch, proto)
    refused(tiny(), tmp_path, "not valid ONNX")


def test_a_failed_export_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proto: onnx.ModelProto
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"old")
    proto.graph.node[-1].input[0] = "nowhere"
    returning(monkeypatch, proto)
    with pytest.raises(UserError):
        onnx_from_module(tiny(), SPEC, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"old"


def test_a_missing_onnxscript_is_not_blamed_on_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        MissingDependencyError, match=r"onnxscript.*deploy-tools\[torch\]"
    ) as caught:
        onnx_from_module(tiny(), SPEC, tmp_path / "m.onnx")
    assert caught.value.exit_code == 3


def test_a_place_that_cannot_be_written_is_refused_before_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.onnx, "export", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file is not a folder"):
        onnx_from_module(tiny(), SPEC, tmp_path / "file" / "out" / "m.onnx")
