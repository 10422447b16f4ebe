"""What each matrix costs alone: all matrices in one sweep through the layers.

Each layer is run once on the plain hidden states for each of its matrices quantised the scheme's own way; the result is
a branch, and all branches move up through the plain layers that follow. At the head the KL of every branch is measured,
so a matrix's own way costs a true run of what lies above it. What another way would cost is estimated: KL is quadratic
in a small error, so by the ratio of the squared errors that both ways make in the matrix's own output. Embedding table
and head, where the most bytes are, get a branch for each way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from gemma_export.layerwise import HiddenStates, LayerwiseRun, LoadedLayer, Tap, row_blocks
from gemma_export.mixed_precision.candidates import Choice, Matrix, with_rules, with_scheme
from gemma_export.mixed_precision.divergence import StreamedKL
from gemma_export.mixed_precision.reference import Reference
from gemma_export.precision import Precision
from gemma_export.progress import NullProgress, Progress

__all__ = ["Costs", "sweep"]

# matrix -> mean KL of each of its choices, alone
Costs = Mapping[str, tuple[float, ...]]

# Texts, and tokens of each: branches keep hidden states, and the mean of 512 positions ranks matrices well enough;
# what a configuration truly costs is measured afterwards.
_TEXTS, _TOKENS = 4, 128
_MEMORY_BYTES = 512 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Branch:
    """Hidden states that one quantised matrix has changed."""

    matrix: str
    choice: int
    # of the hidden states
    slot: int


def sweep(
    reference: Reference,
    precision: Precision,
    matrices: Sequence[Matrix],
    *,
    directory: Path,
    progress: Progress | None = None,
) -> Costs:
    """Mean KL of every choice of every matrix, all else in float32.

    Args:
        reference: the model and its text.
        precision: the scheme to start from.
        matrices: what may be stored in several ways.
        directory: for hidden states that do not fit in half a GiB.
        progress: told of the weights' bytes, once for each branch that runs through them.
    """
    return _Sweep(reference, precision, matrices, directory, progress or NullProgress()).costs()


class _Sweep:
    def __init__(
        self,
        reference: Reference,
        precision: Precision,
        matrices: Sequence[Matrix],
        directory: Path,
        progress: Progress,
    ) -> None:
        self._stack, self._weights = reference.stack, reference.weights
        self._precision, self._threads = precision, reference.threads
        self._matrices = {matrix.name: matrix for matrix in matrices}
        self._progress = progress
        batches = reference.batches[:: -(-len(reference.batches) // _TEXTS)]
        length = min(_TOKENS, *(batch.shape[1] for batch in batches))
        ids = torch.cat([batch[:, :length] for batch in batches])
        shape = (len(ids), length, self._stack.hidden_size)
        self._hidden = HiddenStates([shape], memory_bytes=_MEMORY_BYTES, directory=directory)
        self._run = LayerwiseRun(self._stack, self._weights.plain, [ids], hidden=self._hidden)
        self._branches: list[_Branch] = []
        # matrix -> squared error of its output in each way, relative to the scheme's own
        self._ratios: dict[str, tuple[float, ...]] = {}

    def costs(self) -> Costs:
        try:
            with contextlib.closing(self._run.layers()) as layers:
                for layer in layers:
                    if layer.index == 0:
                        self._progress.start(self._work(layer.module), "measuring each matrix")
                        self._branch_embedding()
                    self._branch_layer(layer)
            self._run.normalise()
            measured = self._head()
        finally:
            self._progress.finish()
            self._hidden.close()
        costs = {}
        for name, matrix in self._matrices.items():
            ways = [measured.get((name, choice)) for choice in range(len(matrix.choices))]
            own = ways[0]
            assert own is not None, name
            ratios = self._ratios.get(name, ())
            costs[name] = tuple(own * ratios[i] if way is None else way for i, way in enumerate(ways))
        return costs

    def _work(self, module: torch.nn.Module) -> int:
        """Bytes of weights that branches run through."""
        layer = sum(4 * parameter.numel() for parameter in module.parameters())
        tables = [name for name in (self._stack.embedding, self._stack.head) if name in self._matrices]
        always = sum(len(self._matrices[name].choices) for name in dict.fromkeys(tables))
        inside = (len(self._matrices) - len(set(tables))) / self._stack.num_layers
        passes = sum(1 + always + inside * (index + 1) for index in range(self._stack.num_layers))
        head = (
            4 * self._stack.vocab_size * self._stack.hidden_size * (1 + len(self._matrices) - len(set(tables)) + always)
        )
        return int(layer * passes) + head

    def _ways(self, name: str) -> Iterator[tuple[int, Precision]]:
        for index, choice in enumerate(self._matrices[name].choices):
            yield index, self._as(choice)

    def _as(self, choice: Choice) -> Precision:
        assert self._precision.scheme is not None
        return with_scheme(self._precision, with_rules(self._precision.scheme, [choice.rule]))

    def _branch_embedding(self) -> None:
        """One branch for each way to store the table; a head of its own needs none."""
        name = self._stack.embedding
        if name not in self._matrices:
            return
        ids = self._run.batches[0]
        for choice, precision in self._ways(name):
            table = self._weights.quantised(name, precision)
            states = torch.empty_like(self._hidden[0])
            first = 0
            for rows in table.chunks():
                inside = (ids >= first) & (ids < first + len(rows))
                states[inside] = rows[ids[inside] - first]
                first += len(rows)
            states *= torch.tensor(self._stack.embedding_scale, dtype=states.dtype)
            self._branches.append(_Branch(matrix=name, choice=choice, slot=self._hidden.append(states)))

    def _branch_layer(self, layer: LoadedLayer) -> None:
        """The layer with each of its matrices quantised, then everything moves through the plain layer."""
        nbytes = sum(4 * parameter.numel() for parameter in layer.module.parameters())
        inputs: dict[str, torch.Tensor] = {}

        def look(tap: Tap, value: torch.Tensor) -> None:
            # kept only while this layer is loaded, and nothing changes it
            if tap.name.endswith(".input"):
                inputs[tap.name.removesuffix(".input")] = value.flatten(0, -2)

        layer.forward(0, look)
        born = []
        for name, paths in self._parts(layer).items():
            self._ratios[name] = self._errors(name, {path: inputs[path] for path in paths}, layer)
            with self._replaced(layer, paths, self._as(self._matrices[name].choices[0])):
                born.append((name, layer.forward(0)))
            self._progress.advance(nbytes)
        inputs.clear()
        self._progress.advance(nbytes * len(self._hidden))
        layer.advance()
        for name, states in born:
            self._branches.append(_Branch(matrix=name, choice=0, slot=self._hidden.append(states)))

    def _parts(self, layer: LoadedLayer) -> dict[str, list[str]]:
        """Stored matrix -> the layer's modules whose weights it holds."""
        parts: dict[str, list[str]] = {}
        for name, _ in layer.module.named_parameters():
            stored = self._weights.stored_name(self._stack.layer_weight(layer.index, name))
            if stored in self._matrices:
                parts.setdefault(stored, []).append(name.removesuffix(".weight"))
        return parts

    def _errors(self, name: str, inputs: Mapping[str, torch.Tensor], layer: LoadedLayer) -> tuple[float, ...]:
        """Squared error of a matrix's output in each way, relative to its first."""
        found = []
        for _, precision in self._ways(name):
            total = 0.0
            for path, values in inputs.items():
                plain, row = layer.module.get_submodule(path).weight, 0
                assert isinstance(plain, torch.Tensor)
                weight = self._weights.quantised(self._stack.layer_weight(layer.index, f"{path}.weight"), precision)
                for rows in weight.chunks():
                    with torch.no_grad(), self._threads():
                        error = values @ (rows - plain[row : row + len(rows)]).T
                    total += float(error.double().square().sum())
                    row += len(rows)
            found.append(total)
        return tuple(error / found[0] if found[0] > 0 else 0.0 for error in found)

    @contextlib.contextmanager
    def _replaced(self, layer: LoadedLayer, paths: Sequence[str], precision: Precision) -> Iterator[None]:
        before = {}
        for path in paths:
            module = layer.module.get_submodule(path)
            before[path] = module.weight
            weight = self._weights.quantised(self._stack.layer_weight(layer.index, f"{path}.weight"), precision)
            module.weight = torch.nn.Parameter(weight.tensor(), requires_grad=False)
        try:
            yield
        finally:
            for path, parameter in before.items():
                layer.module.get_submodule(path).weight = parameter

    def _head(self) -> dict[tuple[str, int], float]:
        """(matrix, choice) -> mean KL of every branch, and of every way to store the head."""
        name = self._stack.head
        tied = name == self._stack.embedding
        ways = dict(self._ways(name)) if name in self._matrices else {}
        tables = {choice: row_blocks(self._weights.quantised(name, way)) for choice, way in ways.items()}
        measured = [branch for branch in self._branches if not (tied and branch.matrix == name)]
        keys = [*((branch.matrix, branch.choice) for branch in measured), *((name, choice) for choice in tables)]
        # a tied table has changed the stream as well as the head
        slots = {branch.choice: branch.slot for branch in self._branches if tied and branch.matrix == name}
        states = self._hidden[0].flatten(0, 1)
        streamed = StreamedKL(len(states), len(keys), self._stack.final_softcap)
        with torch.no_grad(), self._threads():
            for _, rows in row_blocks(self._weights.plain(name)):
                streamed.reference(states @ rows.T)
                for index, branch in enumerate(measured):
                    streamed.model(index, self._hidden[branch.slot].flatten(0, 1) @ rows.T)
                for index, (choice, table) in enumerate(tables.items(), len(measured)):
                    streamed.model(index, self._hidden[slots.get(choice, 0)].flatten(0, 1) @ next(table)[1].T)
                self._progress.advance(rows.nbytes * (1 + len(keys)))
        means = streamed.means()
        assert all(math.isfinite(mean) for mean in means)
        return dict(zip(keys, means, strict=True))
