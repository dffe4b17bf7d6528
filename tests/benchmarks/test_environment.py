import getpass
import json
import platform
import subprocess
import sys
from pathlib import Path

from benchmarks import environment
from benchmarks.environment import describe_environment
from deploy_tools.version import __version__

INTEL = """processor\t: 0
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu avx2 avx512_vnni amx_int8 amx_bf16
power management:

processor\t: 1
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu avx2 avx512_vnni amx_int8 amx_bf16
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU part\t: 0xd40\n"


def test_cpu_flags_are_whole_words_of_either_architecture():
    intel = environment._cpu(INTEL)
    assert intel["model"] == "Intel(R) Xeon(R) Processor"
    assert intel["flags"] == ["avx2", "avx512_vnni", "amx_int8", "amx_bf16"]
    assert environment._cpu(ARM)["flags"] == ["asimd", "asimddp", "i8mm"]
    assert environment._cpu("")["flags"] == []


def test_cgroup_limits_of_both_versions(tmp_path):
    none = {"cpus": None, "memory_bytes": None}
    assert environment._cgroup_limits(tmp_path) == none
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert environment._cgroup_limits(tmp_path) == none
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("2147483648\n")
    assert environment._cgroup_limits(tmp_path) == {"cpus": 1.5, "memory_bytes": 2**31}
    first = tmp_path / "v1"
    (first / "cpu").mkdir(parents=True)
    (first / "memory").mkdir()
    (first / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (first / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (first / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert environment._cgroup_limits(first) == none
    (first / "cpu" / "cpu.cfs_quota_us").write_text("200000\n")
    assert environment._cgroup_limits(first)["cpus"] == 2.0


def test_limits_of_the_groups_that_the_process_is_in_count_too(tmp_path):
    """systemd and containers nest groups: the least limit on the way down holds."""
    inner = tmp_path / "a.slice" / "b.scope"
    inner.mkdir(parents=True)
    own = "0::/a.slice/b.scope\n"
    (inner / "cpu.max").write_text("max 100000\n")
    (inner.parent / "cpu.max").write_text("300000 100000\n")
    (inner / "memory.max").write_text("1000000\n")
    (inner.parent / "memory.max").write_text("2000000\n")
    assert environment._cgroup_limits(tmp_path, own) == {"cpus": 3.0, "memory_bytes": 10**6}
    assert environment._cgroup_limits(tmp_path, "0::/\n")["cpus"] is None
    assert environment._cgroup_limits(tmp_path, "0::/../other\n")["cpus"] is None
    first = tmp_path / "memory" / "jobs" / "mine"
    first.mkdir(parents=True)
    (first / "memory.limit_in_bytes").write_text("500000\n")
    text = "4:memory:/jobs/mine\n1:cpu,cpuacct:/\n0::/\n"
    assert environment._cgroup_limits(tmp_path, text)["memory_bytes"] == 500_000


def test_cores_are_told_from_threads():
    block = "processor\t: {}\nphysical id\t: 0\ncore id\t\t: {}\n"
    four = "\n".join(block.format(i, i // 2) for i in range(4))
    assert environment._physical_cores(four) == 2
    assert environment._physical_cores(ARM) is None


def test_memory_is_in_bytes():
    assert environment._memory("MemTotal:       1024 kB\nMemFree: 1 kB\n") == 1024 * 1024
    assert environment._memory("") is None


def test_the_description_is_json_and_names_nobody():
    found = describe_environment()
    text = json.dumps(found, allow_nan=False)
    assert found["packages"]["deploy-tools"] == __version__
    assert found["packages"]["numpy"]
    assert found["python"].endswith(platform.python_version())
    assert found["cpu"]["cores_usable"] >= 1
    secrets = {platform.node(), str(Path.home()), str(Path.cwd())}
    secrets |= {getpass.getuser()} if len(getpass.getuser()) > 4 else set()
    for secret in secrets - {"", "/"}:
        assert secret not in text


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from benchmarks.environment import describe_environment; describe_environment();"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'matplotlib', 'openvino') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == "[]"
