"""Every name of TensorRT, CUDA and pycuda that our source uses exists in the real bindings.

TensorRT's Python bindings of 10.16 and 11.4 are real wheels, but the libraries they load are not
to be had without NVIDIA's own index. So they are imported, in a process of their own, over a
library of empty functions compiled here: enough to look at classes and enumerations, and no
more. TensorRT for RTX is installed whole. This proves names, not behaviour.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from library_names import MODULE, Library, Used, names_used

ROOT = Path(__file__).resolve().parents[3] / "deploy_tools"
SOURCES = (
    *sorted((ROOT / "engines").glob("*.py")),
    ROOT / "runtimes" / "flavours.py",
    ROOT / "runtimes" / "tensorrt.py",
    ROOT / "runtimes" / "trt_log.py",
)

# Class -> what we use of it -> the class of the value, or of what the method returns.
TABLE = {
    "Builder": {
        "create_network": "INetworkDefinition",
        "create_builder_config": "IBuilderConfig",
        "create_optimization_profile": "IOptimizationProfile",
        "build_serialized_network": "",
    },
    "INetworkDefinition": {"get_input": "ITensor", "get_output": "ITensor", "num_outputs": ""},
    "ITensor": {"name": ""},
    "OnnxParser": {"parse_from_file": "", "num_errors": "", "get_error": "ParserError"},
    "ParserError": {
        "code": "ErrorCode", "desc": "", "node": "", "node_name": "", "node_operator": "",
    },
    "ErrorCode": {"name": ""},
    "IBuilderConfig": {
        "profiling_verbosity": "", "set_flag": "", "clear_flag": "", "set_memory_pool_limit": "",
        "hardware_compatibility_level": "", "add_optimization_profile": "",
        "progress_monitor": "", "create_timing_cache": "ITimingCache",
        "set_timing_cache": "", "get_timing_cache": "ITimingCache",
    },
    "ITimingCache": {"serialize": ""},
    "IOptimizationProfile": {"set_shape": ""},
    "IProgressMonitor": {"__init__": "", "phase_start": "", "step_complete": "", "phase_finish": ""},
    "ILogger": {"__init__": "", "log": ""},
    "Runtime": {"deserialize_cuda_engine": "ICudaEngine", "engine_host_code_allowed": ""},
    "ICudaEngine": {
        "create_execution_context": "IExecutionContext", "create_runtime_config": "IRuntimeConfig",
        "create_engine_inspector": "EngineInspector", "get_tensor_dtype": "DataType",
    },
    "IRuntimeConfig": {
        "dynamic_shapes_kernel_specialization_strategy": "", "cuda_graph_strategy": "",
    },
    "EngineInspector": {"get_engine_information": ""},
    "DataType": {"name": ""},
    # What engine_runner.Context declares; a test below compares the two.
    "IExecutionContext": {
        "set_optimization_profile_async": "", "set_input_shape": "", "get_tensor_shape": "", "set_tensor_address": "",
        "execute_async_v3": "",
    },
}  # fmt: skip
HOLDERS = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser",
    "error": "ParserError", "config": "IBuilderConfig", "runtime": "Runtime",
    "engine": "ICudaEngine",
    # Ours, or plain Python.
    "monitor": "", "logger": "", "severity": "", "layer": "",
}  # fmt: skip
TENSORRT = Library(frozenset({"trt", "module"}), HOLDERS, TABLE)

# Used behind `flavour.is_rtx` only.
RTX_ONLY = {
    (MODULE, "DynamicShapesKernelSpecializationStrategy"),
    ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
    (MODULE, "CudaGraphStrategy"),
    ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"),
    ("CudaGraphStrategy", "DISABLED"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
    ("IRuntimeConfig", "cuda_graph_strategy"),
}

WHEELS = {"tensorrt-cu12-bindings": "10.16.1.11", "tensorrt-cu13-bindings": "11.4.0.106"}
SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL",
    "getBuilderPluginRegistry", "getPluginRegistry", "getNvOnnxParserVersion",
    "getInferLibVersion", "getLogger", "initLibNvInferPlugins",
)  # fmt: skip

LOOK = """
import importlib, json, sys
module, wanted = importlib.import_module(sys.argv[1]), json.loads(sys.stdin.read())
def owner(kind):
    return module if kind == "module" else getattr(module, kind)
missing = []
for kind, name in wanted["names"]:
    try:
        getattr(owner(kind), name)
    except AttributeError as error:
        missing.append(f"{kind}.{name}: {error}")
for kind, name, keyword in wanted["keywords"]:
    if f"{keyword}:" not in (getattr(owner(kind), name).__doc__ or ""):
        missing.append(f"{kind}.{name} has no argument {keyword}")
print(json.dumps({"version": getattr(module, "__version__", ""), "missing": missing}))
"""


def used_in(paths: tuple[Path, ...], library: Library) -> Used:
    every = Used()
    for path in paths:
        found = names_used(path, library)
        every.names |= found.names
        every.keywords |= found.keywords
        every.complaints += found.complaints
    return every


@pytest.fixture(scope="module")
def used() -> Used:
    found = used_in(SOURCES, TENSORRT)
    found.names |= {("IExecutionContext", name) for name in TABLE["IExecutionContext"]}
    return found


def look(module: str, used: Used, skip: set[tuple[str, str]], **environment: str) -> dict:
    """Import a module in a process of its own and return its version and what it lacks."""
    wanted = {"names": sorted(used.names - skip), "keywords": sorted(used.keywords)}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, module],
        input=json.dumps(wanted), capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_everything_we_use_is_in_the_table(used: Used) -> None:
    assert used.complaints == []
    # The tables hold nothing that the source has given up.
    tabled = {(kind, name) for kind, members in TABLE.items() for name in members}
    read = {name for name in used.names if name[0] in TABLE}
    assert tabled - read - {("ErrorCode", "name"), ("DataType", "name")} == set()
    assert len(used.names) > 50
    assert {("IBuilderConfig", "set_timing_cache", "ignore_mismatch")} <= used.keywords


def test_the_runners_context_is_what_the_table_says() -> None:
    from deploy_tools.runtimes.engine_runner import Context

    declared = {name for name, member in vars(Context).items() if callable(member)}
    assert {n for n in declared if not n.startswith("_")} == set(TABLE["IExecutionContext"])


def test_the_names_exist_in_tensorrt_for_rtx(used: Used) -> None:
    pytest.importorskip("tensorrt_rtx")
    found = look("tensorrt_rtx", used, set())
    assert found["missing"] == []
    assert found["version"].startswith("1.")


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with empty libraries under the names that the bindings ask for."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("stub")
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    first = folder / "libstub.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(first), str(source)], check=True)
    for major in (10, 11):
        for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
            (folder / f"lib{name}.so.{major}").symlink_to(first)
    return folder


def bindings(package: str, version: str) -> Path:
    """Return the folder of an unpacked wheel, fetched once; skips where pip cannot get it."""
    base = os.environ.get("XDG_CACHE_HOME")
    cache = (Path(base) if base else Path.home() / ".cache") / "deploy-tools" / "bindings"
    tag = f"{package}-{version}-cp{sys.version_info[0]}{sys.version_info[1]}"
    folder = cache / tag
    if (folder / "tensorrt_bindings").is_dir():
        return folder
    wheels = cache / f"{tag}.{os.getpid()}.wheels"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--only-binary=:all:", "--retries", "1", "--timeout", "20",
         "-d", str(wheels), f"{package}=={version}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        wheel = next(iter(wheels.glob("*.whl")), None)
        if done.returncode or wheel is None:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"pip cannot get {package} {version}: {reason}")
        part = wheels / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(part)
        if not folder.exists():  # another process may have been faster
            part.rename(folder)
    finally:
        shutil.rmtree(wheels, ignore_errors=True)
    return folder


@pytest.mark.parametrize(("package", "version"), WHEELS.items())
def test_the_names_exist_in_the_full_bindings(
    package: str, version: str, used: Used, stub: Path
) -> None:
    folder = bindings(package, version)
    places = {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(stub)}
    found = look("tensorrt_bindings", used, RTX_ONLY, **places)
    assert found["missing"] == []
    assert found["version"] == version
    # The other way round: a name that is not there is seen.
    absent = Used({("IBuilderConfig", "set_calibration_cache_of_tomorrow"), (MODULE, "Bilder")})
    absent.keywords = {("IBuilderConfig", "set_timing_cache", "ignore_missmatch")}
    assert len(look("tensorrt_bindings", absent, set(), **places)["missing"]) == 3


def test_what_only_rtx_has_is_used_behind_its_flag_only(used: Used) -> None:
    assert used.names >= RTX_ONLY
    source = (ROOT / "runtimes" / "tensorrt.py").read_text("utf-8")
    before, _, after = source.partition("if not self.flavour.is_rtx:")
    for kind, name in RTX_ONLY:
        word = name if kind != MODULE else f"trt.{name}"
        assert word in after
        assert word not in before


CUDA = Library(
    frozenset({"_cuda", "runtime"}),
    {"properties": "cudaDeviceProp", "error": "cudaError_t", "graph": "", "event": "", "start": "",
     "end": "", "bindings": ""},
    {"cudaDeviceProp": dict.fromkeys(("name", "major", "minor", "totalGlobalMem"), "")},
)  # fmt: skip


def test_the_names_of_cuda_exist() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    used = used_in((ROOT / "runtimes" / "cuda_memory.py", ROOT / "runtimes" / "gpu.py"), CUDA)
    assert used.complaints == []
    assert {("cudaDeviceProp", "major"), ("cudaError_t", "cudaErrorNoDevice")} <= used.names
    assert {(MODULE, "cudaMalloc"), (MODULE, "cudaGraphLaunch")} <= used.names
    assert look("cuda.bindings.runtime", used, set())["missing"] == []


PYCUDA = Library(
    frozenset({"_cuda", "cuda"}),
    {"memory": "DeviceAllocation", "owner": "PagelockedHostAllocation", "_context": "Context",
     "event": "", "start": "", "end": "", "graph": "", "array": ""},
    {
        "Device": {"retain_primary_context": "Context"},
        "Context": dict.fromkeys(("push", "pop", "detach"), ""),
        "DeviceAllocation": {"free": ""},
        "PagelockedHostAllocation": {"free": ""},
        "Stream": dict.fromkeys(("handle", "synchronize"), ""),
    },
)  # fmt: skip


def pycuda_names() -> Used:
    used = used_in((ROOT / "runtimes" / "pycuda_memory.py",), PYCUDA)
    # Kept in dictionaries and lists, where the reader does not follow them.
    used.names |= {("Stream", "synchronize"), ("DeviceAllocation", "free")}
    used.names |= {("Event", name) for name in ("record", "synchronize", "time_since")}
    return used


def test_the_names_of_pycuda_are_read_and_exist_where_it_is_installed() -> None:
    used = pycuda_names()
    assert used.complaints == []
    assert {("Context", "push"), ("Context", "detach"), ("Stream", "handle")} <= used.names
    assert {(MODULE, "pagelocked_empty"), ("Device", "retain_primary_context")} <= used.names
    if importlib.util.find_spec("pycuda") is None:
        pytest.skip("pycuda is not installed")
    assert look("pycuda.driver", used, set())["missing"] == []
