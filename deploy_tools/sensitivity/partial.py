"""Runs of a graph with one thing changed, each no longer than what the change touches.

One walk over the graph, cut by cut: the tensors alive there are kept, and everything changed at
that place runs only the rest of the graph from there. So a trial costs, on average, half a run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from deploy_tools.errors import UserError, nearest
from deploy_tools.sensitivity.graph import Array, Graph, model_of
from deploy_tools.sensitivity.grids import Grid
from deploy_tools.sensitivity.session import PartSession

Values = NDArray[np.float32]
State = dict[str, Array]
"""The tensors alive at a cut, of one batch."""

BATCH = 8
"""Images in one run. Always the same, since a sum's last bit may depend on it."""


@dataclass(frozen=True)
class NodeTrial:
    """A node that runs with other inputs; only this node sees them.

    inputs: position -> the activation, or the stored tensor, that it reads instead.
    grids: position -> the grid that its activation is put on.
    """

    name: str
    node: str
    inputs: Mapping[int, str] = field(default_factory=dict)
    grids: Mapping[int, Grid] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorTrial:
    """A tensor that is put on a grid as soon as it is made, for all that read it."""

    name: str
    tensor: str
    grid: Grid


@dataclass(frozen=True)
class WholeTrial:
    """The graph as it is."""

    name: str


Trial = NodeTrial | TensorTrial | WholeTrial


class PartialRuns:
    """A graph and the places where it is cut.

    trials: all that will ever be asked for, in whatever process: they set the cuts, and with
    them the last bits of the results. Raises UserError for an unknown node or tensor.
    """

    def __init__(self, proto: onnx.ModelProto, trials: Iterable[Trial], threads: int) -> None:
        self.graph = Graph(proto)
        self._threads = threads
        self._extra: dict[str, int] = {}
        self._cuts = {0}
        for trial in trials:
            self._cuts.add(self._cut(trial))
            if isinstance(trial, NodeTrial):
                place = self.graph.position(trial.node)
                self._cuts.add(place)
                for tensor in trial.inputs.values():
                    self._require(tensor, self.graph.stored)
                    self._extra[tensor] = max(place, self._extra.get(tensor, 0))

    def logits(self, images: Values, trials: Sequence[Trial]) -> dict[str, Values]:
        """Return each trial's logits (N, C) by name; images: preprocessed (N, C, H, W).

        The tensors alive at a cut are in memory for all N images.
        """
        wanted = sorted(trials, key=self._cut)
        found: dict[str, Values] = {}
        with ThreadPoolExecutor(self._threads, "partial") as pool:

            def each(work: Callable[[State], State], states: Iterable[State]) -> list[State]:
                return list(pool.map(work, states))

            for cut, states, before in self._walk(images, each, wanted):
                here = [trial for trial in wanted if self._cut(trial) == cut]
                rest = self._rest(cut, states[0])
                for trial in here:
                    changed = self._changed(trial, states, before, each)
                    ends = each(rest, changed)
                    parts = [end[self.graph.output] for end in ends]
                    found[trial.name] = np.concatenate(parts).astype(np.float32, copy=False)
        return found

    def bytes_alive(self, image: Values) -> int:
        """Return the most bytes that one image (1, C, H, W) keeps alive at a cut."""
        sizes = [
            sum(value.nbytes for value in states[0].values())
            for _, states, _ in self._walk(image, lambda work, states: [*map(work, states)], ())
        ]
        return max(sizes)

    def _cut(self, trial: Trial) -> int:
        """Return the cut from which the rest of the graph sees the trial's change."""
        if isinstance(trial, NodeTrial):
            return self.graph.position(trial.node) + 1
        if isinstance(trial, TensorTrial):
            self._require(trial.tensor)
            return self.graph.made[trial.tensor]
        return 0

    def _require(self, tensor: str, stored: Collection[str] = ()) -> None:
        if tensor not in self.graph.made and tensor not in stored:
            raise UserError(
                f'the graph has no tensor "{tensor}".', nearest(tensor, self.graph.made)
            )

    def _walk(
        self,
        images: Values,
        each: Callable[[Callable[[State], State], Iterable[State]], list[State]],
        trials: Sequence[Trial],
    ) -> Iterator[tuple[int, list[State], list[State]]]:
        """Yield (cut, states there, states at the cut before) for the cuts of the trials.

        Without trials every cut. The parts between are the same whatever is asked for.
        """
        wanted = {self._cut(trial) for trial in trials} or self._cuts
        starts = range(0, len(images), BATCH)
        states: list[State] = [{self.graph.input: images[i : i + BATCH]} for i in starts]
        before: list[State] = states
        last = 0
        for cut in sorted(c for c in self._cuts if c <= max(wanted)):
            if cut > last:
                before, states = states, each(self._part(last, cut, states[0]), states)
            if cut in wanted:
                yield cut, states, before
            last = cut

    def _part(self, start: int, stop: int, state: State) -> Callable[[State], State]:
        """Return what takes a state at one cut to the state at a later one."""
        alive = self.graph.alive(stop, self._extra)
        made = [tensor for tensor in alive if self.graph.made[tensor] > start]
        kept = [tensor for tensor in alive if tensor not in made]
        if not made:
            return lambda old: {tensor: old[tensor] for tensor in kept}
        session = PartSession(self.graph.part(start, stop, self._types(start, state), made))

        def advance(old: State) -> State:
            return {tensor: old[tensor] for tensor in kept} | session.run(old)

        return advance

    def _rest(self, cut: int, state: State) -> Callable[[State], State]:
        """Return what takes a state to the logits."""
        output = self.graph.output
        if cut == len(self.graph.nodes):
            return lambda old: {output: old[output]}
        part = self.graph.part(cut, len(self.graph.nodes), self._types(cut, state), [output])
        return PartSession(part).run

    def _types(self, cut: int, state: State) -> dict[str, np.dtype[np.generic]]:
        return {tensor: state[tensor].dtype for tensor in self.graph.alive(cut)}

    def _changed(
        self,
        trial: Trial,
        states: list[State],
        before: list[State],
        each: Callable[[Callable[[State], State], Iterable[State]], list[State]],
    ) -> Iterable[State]:
        """Return the states at the trial's cut, with what it changes in place."""
        if isinstance(trial, WholeTrial):
            return states
        if isinstance(trial, TensorTrial):
            name, grid = trial.tensor, trial.grid
            return each(lambda old: old | {name: grid.nearest(_floats(old[name], name))}, states)
        step = self._step(trial, before[0])
        made = each(step, before)
        return [old | new for old, new in zip(states, made, strict=True)]

    def _step(self, trial: NodeTrial, state: State) -> Callable[[State], State]:
        """Return the trial's node alone: from the state in front of it to its outputs."""
        node = onnx.NodeProto()
        node.CopyFrom(self.graph.nodes[self.graph.position(trial.node)])
        sources = {}  # the node's own name for an input -> tensor of the state, grid
        for position, name in enumerate(node.input):
            tensor = trial.inputs.get(position, name)
            node.input[position] = tensor
            if tensor in state:  # else it is stored, or left out
                node.input[position] = f"trial:{position}"
                sources[node.input[position]] = (tensor, trial.grids.get(position))
        types = {name: state[tensor].dtype for name, (tensor, _) in sources.items()}
        outputs = [tensor for tensor in node.output if tensor]
        session = PartSession(model_of(self.graph.proto, [node], types, outputs, self.graph.stored))

        def run(old: State) -> State:
            feeds: State = {}
            for name, (tensor, grid) in sources.items():
                value = old[tensor]
                feeds[name] = grid.nearest(_floats(value, tensor)) if grid else value
            return session.run(feeds)

        return run


def _floats(values: Array, tensor: str) -> Values:
    if values.dtype != np.float32:
        raise UserError(
            f'tensor "{tensor}" holds {values.dtype} values.', "Only float32 is quantized."
        )
    return values.astype(np.float32, copy=False)
