"""Save and load weights without ever running code from a file."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from deploy_tools.artifacts import atomic_path
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError
from deploy_tools.models.mismatch import describe_mismatch

SPEC_KEY = "input_spec"
# Where training programs keep the weights, in the order in which they are looked for:
# plain weights before averaged ones.
STATE_KEYS = (
    "state_dict", "model_state_dict", "model", "net", "network", "weights", "module",
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "shadow",
)  # fmt: skip
# What wrappers put before every name: DataParallel, torch.compile, Lightning.
PREFIXES = ("module.", "_orig_mod.", "model.")


def save_checkpoint(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a state_dict as safetensors, to a temporary name first."""
    tensors = {name: value.contiguous() for name, value in state.items()}
    with atomic_path(path) as part:
        part.write_bytes(_with_sorted_metadata(save(tensors, metadata=dict(metadata))))


def _with_sorted_metadata(data: bytes) -> bytes:
    """Rewrite the header so that the same weights give the same bytes.

    safetensors writes its metadata in an order that differs from run to run. The file is the
    header's length (8 bytes, little-endian), the header (JSON, padded to 8 bytes), the tensors.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors or torch file; returns (tensors by name, metadata).

    Floating tensors come back as float32 on the CPU; wrappers' prefixes are gone. Of a torch
    file the metadata holds its plain values (such as "epoch"), and "state_key", the place
    where the tensors were found.
    Raises UserError where the file is missing, empty, damaged, holds no state_dict, or
    could only be read by running code from it.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist or is not a file.")
    if path.stat().st_size == 0:
        raise UserError(f"checkpoint {path} is empty.", "Copy or download it again.")
    if _is_safetensors(path):
        state, metadata = _read_safetensors(path)
    else:
        state, metadata = _state_within(_read_torch(path), path)
    if not state:
        raise UserError(f"checkpoint {path} holds no tensors.")
    return {name: _as_float32(value) for name, value in _without_prefixes(state).items()}, metadata


def load_into(module: nn.Module, state: Mapping[str, Tensor], arch: str, source: str) -> None:
    """Load `state` into `module`, strictly.

    source: the checkpoint's name, for messages.
    Raises UserError that names the first missing, unexpected and wrongly shaped tensors
    and the architecture of the zoo that fits best; the module is then unchanged.
    """
    own = module.state_dict()
    renamed = _with_prefix_of(own, state)
    problem = describe_mismatch(own, renamed, arch, source)
    if problem is not None:
        raise problem
    for name, value in renamed.items():
        if value.is_floating_point() and bool(torch.isnan(value).any()):
            raise UserError(f"{source}: {name} holds NaN.", "Choose an earlier checkpoint.")
    module.load_state_dict(dict(renamed), strict=True)


def spec_from_metadata(metadata: Mapping[str, str]) -> InputSpec | None:
    """Return the input spec that training wrote into a checkpoint; None where there is none."""
    text = metadata.get(SPEC_KEY)
    if text is None:
        return None
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"the checkpoint's {SPEC_KEY} metadata is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise UserError(f"the checkpoint's {SPEC_KEY} metadata is not a table.")
    return InputSpec.from_dict(values)


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path) -> Any:
    # What torch raises on garbage depends on the bytes: nearly any exception can come.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        culprit = _what_needs_code(path, str(error))
        if culprit is None:
            raise _damaged(path, error) from error
        how = f"torch.load({path.name!r}, weights_only=False)"
        if culprit == "a plain pickle":
            how = f"pickle.load(open({path.name!r}, 'rb'))"
        raise UserError(
            f"checkpoint {path} holds {culprit} and can only be read by running code from it, "
            "which is refused.",
            f"If you trust it, save its tensors where you made it: x = {how}; "
            "torch.save(x['state_dict'], 'weights.pt') "
            "(x.state_dict() instead of x['state_dict'] where x is a whole model).",
        ) from error


def _what_needs_code(path: Path, message: str) -> str | None:
    """Name what torch refused to build, going by its message; None where the file is damaged."""
    if "TorchScript" in message:
        return "a TorchScript program"
    refused = re.search(r"GLOBAL (\S+)", message) or re.search(r"Unsupported class (\S+)", message)
    if refused:
        return refused[1]
    with path.open("rb") as file:
        start = file.read(2)
    newer_pickle = len(start) == 2 and start[0] == 0x80 and 3 <= start[1] <= 5
    return "a plain pickle" if newer_pickle and "Unsupported operand" in message else None


def _damaged(path: Path, error: Exception) -> UserError:
    # torch wraps the reason in advice to allow code, which is no advice of ours.
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    detail = reason[0].rstrip(".") if reason else type(error).__name__
    return UserError(
        f"checkpoint {path} is damaged or is no checkpoint: {detail[:160]}.",
        "Expected: a safetensors file or a state_dict saved with torch.save.",
    )


def _state_within(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Find the state_dict in what a torch file holds, however deep under the usual keys."""
    found, where = content, []
    metadata: dict[str, str] = {}
    while isinstance(found, Mapping) and not _is_state(found):
        metadata |= {
            key: str(value)
            for key, value in found.items()
            if isinstance(key, str) and isinstance(value, (str, int, float))
        }
        key = next((k for k in STATE_KEYS if isinstance(found.get(k), Mapping)), None)
        if key is None:
            keys = ", ".join(str(k) for k in list(found)[:8])
            raise UserError(
                f"checkpoint {path} holds no state_dict; its keys are: {keys}.",
                f"Looked under {', '.join(STATE_KEYS)}.",
            )
        where.append(key)
        found = found[key]
    if not isinstance(found, Mapping):
        raise UserError(
            f"checkpoint {path} holds {type(found).__name__}, not a state_dict.",
            "Save model.state_dict() with torch.save.",
        )
    return dict(found), metadata | {"state_key": ".".join(where)}


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    )


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    # torch.optim.swa_utils.AveragedModel keeps its counter beside "module.".
    rest = {k: v for k, v in state.items() if k != "n_averaged"}
    if len(rest) < len(state) and all(k.startswith("module.") for k in rest):
        state = rest
    while True:
        prefix = next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None)
        if prefix is None:
            return state
        state = {k.removeprefix(prefix): v for k, v in state.items()}


def _with_prefix_of(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Put a prefix back where the user's own module really has it on every name."""
    stripped = _without_prefixes(dict(own))
    first_own, first_stripped = next(iter(own), ""), next(iter(stripped), "")
    prefix = first_own.removesuffix(first_stripped)
    if not prefix or any(name.startswith(prefix) for name in state):
        return state
    return {prefix + name: value for name, value in state.items()}


def _as_float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
