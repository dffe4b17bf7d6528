"""Compare an engine with the ONNX file it was built from, by Polygraphy: a program of its own.

    python polygraphy_compare.py ENGINE ONNX IMAGES.npy TOLERANCE

Polygraphy decides which flavour it means when it is imported (POLYGRAPHY_USE_TENSORRT_RTX), so
the test starts this with the environment it needs. IMAGES.npy has shape (batches, N, C, H, W).
Exit 0 means that no logit differs by more than the tolerance.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def main(engine: str, model: str, images: str, tolerance: float) -> int:
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    from polygraphy.comparator import Comparator, CompareFunc

    runners = [
        OnnxrtRunner(SessionFromOnnx(model)),
        TrtRunner(EngineFromBytes(Path(engine).read_bytes())),
    ]
    results = Comparator.run(runners, data_loader=[{"input": batch} for batch in np.load(images)])
    compare = CompareFunc.simple(atol=tolerance, rtol=0.0, check_error_stat="max")
    return 0 if bool(Comparator.compare_accuracy(results, compare_func=compare)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])))
