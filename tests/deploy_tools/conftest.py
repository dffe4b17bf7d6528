"""Makes `onnx_samples` importable from every folder below, in every import mode of pytest."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))
