"""A build's log keeps its own lines, and tells TensorRT's reasons in plain words."""

from __future__ import annotations

import pytest

from deploy_tools.engines.log import BuildLog

# The forms that TensorRT for RTX 1.7 and TensorRT 10 write.
REASONS = [
    (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([tactic.cpp:1676: enumerate] No "
        "tactics within workspace limit.; [tactic.cpp:264: run] Error during tactic selection. In "
        "compileGraph at /_src/optimizer/myelin/codeGenerator.cpp:2012)",
        "No tactics within workspace limit.; Error during tactic selection.",
    ),
    (
        "IBuilder::buildSerializedNetwork: Error Code 6: API Usage Error (Unable to load library: "
        "lib.so.1: cannot open In Impl at /_src/runtime/dispatch/libLoader.cpp:305)",
        "Unable to load library: lib.so.1: cannot open",
    ),
    (
        "[cudaResources.cpp::ScopedCudaStream::25] Error Code 1: Cuda Runtime (In ScopedCudaStream "
        "at /_src/common/dispatch/cudaResources.cpp:25 (cudaError 35: CUDA driver is too old))",
        "cudaError 35: CUDA driver is too old",
    ),
    (
        "ITensor::getDimensions: Error Code 4: API Usage Error (conv1: kernel weights has count "
        "432 but 864 was expected)",
        "conv1: kernel weights has count 432 but 864 was expected",
    ),
    (
        "IBuilder::buildSerializedNetwork: Error Code 9: Internal Error (no code for it In "
        "operator() at /_src/optimizer/x.cpp:628)",
        "no code for it",
    ),
    ("CUDA initialization failure with error: 35", "CUDA initialization failure with error: 35"),
]


@pytest.mark.parametrize(("line", "reason"), REASONS)
def test_reasons_are_told_without_source_positions(line: str, reason: str) -> None:
    log = BuildLog([("INFO", "x"), ("ERROR", line), ("VERBOSE", "y"), ("WARNING", "z")])
    assert log.errors() == [reason]
    assert log.texts() == ["x", line, "y", "z"]
