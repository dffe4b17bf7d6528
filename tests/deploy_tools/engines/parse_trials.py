"""What TensorRT for RTX does with ONNX files, each in a process of its own: one JSON object.

Usage: parse_trials.py FOLDER. Outcomes: "refused" (by the parser), "not built" (by the
builder), "built", "crashed"; with "warned" where the parser said something on the way.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import tensorrt_rtx as trt


class Logger(trt.ILogger):
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.warnings: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        if severity == trt.ILogger.Severity.WARNING:
            self.warnings.append(message)


def outcome(path: Path) -> str:
    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        return "refused"
    warned = ", warned" if logger.warnings else ""
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
        shapes = [tuple(n if d == -1 else d for d in tensor.shape) for n in (1, 2, 4)]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    return ("not built" if built is None else "built") + warned


def main() -> None:
    found = {}
    for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, outcome(path).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        found[path.stem] = said or "crashed"
    print(json.dumps(found))


main()
