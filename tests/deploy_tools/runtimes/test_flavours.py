"""Which TensorRT is found, which is refused, and what each can do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy_tools.errors import MissingDependencyError, UserError
from deploy_tools.runtimes import flavours
from deploy_tools.runtimes.flavours import Flavour, find_flavour, installed_flavours


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on the path, whose packages hide those that are installed."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def _forget_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test imports under these names is gone afterwards."""
    for name in ("tensorrt", "tensorrt_rtx"):
        if name in sys.modules:
            monkeypatch.setitem(sys.modules, name, sys.modules[name])
        else:
            monkeypatch.setitem(sys.modules, name, None)
            monkeypatch.delitem(sys.modules, name)


def install(folder: Path, module: str, code: str) -> None:
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text(code)


def test_the_installed_rtx() -> None:
    module = pytest.importorskip("tensorrt_rtx")
    flavour = find_flavour("tensorrt-rtx")
    assert flavour == Flavour("tensorrt-rtx", module, module.__version__)
    assert flavour.title == f"TensorRT for RTX {module.__version__}"
    assert flavour.max_opset == 24
    assert flavour.is_rtx
    assert "tensorrt-rtx" in installed_flavours()


@pytest.mark.parametrize(
    ("capability", "rtx", "full"),
    [
        ("8.0", True, True), ("8.6", True, True), ("8.9", True, True), ("12.0", True, True),
        ("12.1", True, True), ("9.0", False, True), ("10.0", False, True), ("7.5", False, True),
        ("7.0", False, False), ("", False, False),
    ],
)  # fmt: skip
def test_runs_on(capability: str, rtx: bool, full: bool) -> None:
    assert Flavour("tensorrt-rtx", sys, "1.7.1").runs_on(capability) is rtx
    assert Flavour("tensorrt", sys, "11.4.0").runs_on(capability) is full


def test_the_parser_of_rtx_knows_the_operators_of_its_opset() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.ILogger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    # What opsets 20, 23, 24 and 26 added.
    known = ("Gelu", "Attention", "RMSNormalization", "RotaryEmbedding", "Swish", "TensorScatter")
    assert all(parser.supports_operator(name) for name in known)
    assert not parser.supports_operator("CumProd")
    del parser, network, builder


@pytest.mark.parametrize(
    ("version", "opset"),
    [
        ("10.12.0.36", 20), ("10.14.1", 20), ("10.15.1", 24), ("10.16.1.11", 24),
        ("11.4.0.106", 24), ("11.5.0", 25), ("12.0", 25),
    ],
)  # fmt: skip
def test_full_tensorrt(packages: Path, version: str, opset: int) -> None:
    install(packages, "tensorrt", f"__version__ = '{version}'")
    flavour = find_flavour("tensorrt")
    assert (flavour.name, flavour.version, flavour.max_opset) == ("tensorrt", version, opset)
    assert not flavour.is_rtx


def test_tensorrt_comes_before_rtx(packages: Path) -> None:
    install(packages, "tensorrt_rtx", "__version__ = '1.7.1.116'")
    assert find_flavour().name == "tensorrt-rtx"
    install(packages, "tensorrt", "__version__ = '11.4.0.106'")
    assert find_flavour().name == "tensorrt"
    assert installed_flavours() == flavours.NAMES


@pytest.mark.parametrize(
    ("name", "module", "version", "oldest"),
    [
        ("tensorrt", "tensorrt", "10.11.0", "10.12"),
        ("tensorrt", "tensorrt", "8.6.1", "10.12"),
        ("tensorrt-rtx", "tensorrt_rtx", "1.6.2", "1.7"),
    ],
)
def test_old_versions_are_refused(
    packages: Path, name: str, module: str, version: str, oldest: str
) -> None:
    install(packages, module, f"__version__ = '{version}'")
    with pytest.raises(MissingDependencyError) as caught:
        find_flavour(name)
    assert f"{version} is too old: {oldest} or newer" in str(caught.value)
    assert f"deploy-tools[{name}]" in str(caught.value)


def test_a_package_without_a_version_is_refused(packages: Path) -> None:
    install(packages, "tensorrt", "")
    with pytest.raises(MissingDependencyError, match="unknown version is too old"):
        find_flavour("tensorrt")


def test_a_package_that_cannot_load_its_libraries(packages: Path) -> None:
    install(packages, "tensorrt", "raise OSError('libnvinfer.so.10: cannot open')")
    with pytest.raises(MissingDependencyError, match=r"cannot be loaded: libnvinfer\.so\.10"):
        find_flavour("tensorrt")


def test_a_folder_of_that_name_is_not_an_installation(packages: Path) -> None:
    (packages / "tensorrt").mkdir()
    (packages / "tensorrt" / "model.engine").write_bytes(b"")
    assert "tensorrt" not in installed_flavours()


def test_an_unknown_flavour() -> None:
    with pytest.raises(UserError, match='Did you mean "tensorrt-rtx"'):
        find_flavour("tensorrt_rtx")


def test_nothing_installed_names_the_extras() -> None:
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('tensorrt', 'tensorrt_rtx'):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
from deploy_tools.runtimes.flavours import find_flavour, installed_flavours
from deploy_tools.errors import MissingDependencyError
print(installed_flavours())
for name in ('', 'tensorrt', 'tensorrt-rtx'):
    try:
        find_flavour(name)
    except MissingDependencyError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "()", done.stderr
    assert "deploy-tools[tensorrt-rtx]" in lines[1]
    assert "deploy-tools[tensorrt]" in lines[1]
    assert "deploy-tools[tensorrt]" in lines[2]
    assert "deploy-tools[tensorrt-rtx]" in lines[3]
