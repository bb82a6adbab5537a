"""Run an exported graph with ONNX Runtime, make its weights 8-bit integers, and say what that costs and gains.

ONNX Runtime comes with the extra `onnx` and is imported when it is needed.
"""

import importlib
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
FEWEST, MOST, SECONDS = 7, 50, 2.0  # rounds for a shape, and how long they may take beyond the fewest
PAUSE = 0.005  # seconds in which the threads of the runner before stop waiting for more


class Drift(NamedTuple):
    """How far an output of one graph is from that of another, over real tokens.

    scale: root mean square of the output.  agreement: share of equal decisions where the output makes any: the likeliest
    class, the likeliest place, or the sign of a lone logit a token.
    """

    output: str
    scale: float
    mean: float
    largest: float
    agreement: float | None


class Latency(NamedTuple):
    """Milliseconds a batch of one shape takes each runner: median, and the quartiles around it."""

    shape: tuple[int, ...]
    times: dict[str, tuple[float, float, float]]


class Session:
    """A graph on the CPU, with as many threads as PyTorch has."""

    def __init__(self, path: Path):
        runtime = need("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(one.name for one in self._session.get_inputs())
        self.dims: dict[str, list[int | str]] = {one.name: one.shape for one in self._session.get_outputs()}

    def __call__(self, inputs: Inputs) -> dict[str, Array]:
        """Return every output by name."""
        given = {name: value.numpy() for name, value in inputs.items()}
        return dict(zip(self.dims, self._session.run(None, given), strict=True))


def need(package: str) -> Any:
    """Import a package of the extra `onnx`.

    Raises:
        ValueError: it is missing; with the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(f"export needs {error.name}: pip install 'layerwright[onnx]'") from None


def quantise(source: Path, target: Path, *, external: bool) -> None:
    """Write a graph anew with the matrices and embeddings as 8-bit integers; activations become such while it runs.

    A matrix has a scale for each column, an embedding one.  Of the 8 bits 7 are used: processors without VNNI add two
    products in 16 bits, where more would saturate.  external: the weights lie in a file beside the graph.
    """
    onnx, quantization = need("onnx"), need("onnxruntime.quantization")
    prepare = need("onnxruntime.quantization.shape_inference").quant_pre_process
    with TemporaryDirectory(dir=target.parent, prefix=".int8-") as folder:
        # An output matrix that is an embedding transposed becomes a matrix in the first of the two.
        folded, quantised = (Path(folder) / name for name in ("folded.onnx", "quantised.onnx"))
        prepare(source, folded, skip_symbolic_shape=True, save_as_external_data=external, all_tensors_to_one_file=True)
        quantization.quantize_dynamic(
            folded,
            quantised,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=True,
            reduce_range=True,
            use_external_data_format=external,
        )
        model = onnx.load(quantised)
        _spread(model, onnx.numpy_helper)
        onnx.save_model(model, target, save_as_external_data=external, location=f"{target.name}.data")


def _spread(model: Any, arrays: Any) -> None:
    """Shape the scales and zero points of grouped matrices [G, in, out] as [G, 1, out]: ONNX Runtime refuses [out] for them."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, tensor in stored.items():
        if name.endswith("_quantized") and len(tensor.dims) == 3:
            for kind in ("scale", "zero_point"):
                one = stored[f"{name.removesuffix('quantized')}{kind}"]
                values = np.broadcast_to(arrays.to_array(one), (tensor.dims[0], 1, tensor.dims[2]))
                one.CopyFrom(arrays.from_array(values.copy(), one.name))


def difference(expected: Outputs, found: Outputs) -> float:
    """Return the largest difference of two runs: of the root mean square of an output, or absolute where that is below 1.

    Infinite where a value is not a number, or an output is missing or of another shape.
    """
    if expected.keys() != found.keys() or any(expected[name].shape != found[name].shape for name in expected):
        return float("inf")
    worst = [float(np.abs(expected[name] - found[name]).max()) / max(1.0, _scale(expected[name])) for name in expected]
    return max(gap if np.isfinite(gap) else float("inf") for gap in worst)


def drift(dims: Mapping[str, Sequence[int | str]], pairs: Iterable[tuple[Inputs, Outputs, Outputs]]) -> tuple[Drift, ...]:
    """Return the drift of every output over batches: what went in, what was expected, what was found.

    dims: the dimensions of each output by name, so that padding, `length` long like the tokens, is left out.
    """
    gaps: dict[str, list[tuple[Array, Array, Array]]] = {name: [] for name in dims}
    for inputs, expected, found in pairs:
        mask = inputs["attention_mask"].numpy() != 0
        for name, shape in dims.items():
            e, f, agrees = expected[name], found[name], _agreement(name, shape, mask, expected[name], found[name])
            if "length" in shape:
                e, f = e[mask], f[mask]
            gaps[name].append((e.ravel(), f.ravel(), agrees.ravel()))
    drifts = []
    for name, parts in gaps.items():
        e, f, agrees = (np.concatenate(part) for part in zip(*parts, strict=True))
        gap = np.abs(e - f)
        drifts.append(Drift(name, _scale(e), float(gap.mean()), float(gap.max()), float(agrees.mean()) if agrees.size else None))
    return tuple(drifts)


def _agreement(name: str, shape: Sequence[int | str], mask: Array, expected: Array, found: Array) -> Array:
    """Return which decisions are equal; none for an output that makes none."""
    if not name.endswith("logits") or shape[-1] == 1:
        return np.zeros(0, bool)
    if shape[-1] != "length":
        same: Array = expected.argmax(-1) == found.argmax(-1)
        return same[mask] if "length" in shape else same
    if name == "logits":
        return np.asarray((expected > 0) == (found > 0))[mask]
    places = [np.where(mask, logits, -np.inf).argmax(-1) for logits in (expected, found)]
    return np.asarray(places[0] == places[1])


def race(runners: Mapping[str, Callable[[Inputs], object]], batches: Iterable[Inputs]) -> tuple[Latency, ...]:
    """Time runners on batches, taking turns so that what else the machine does meets them alike."""
    found = []
    for inputs in batches:
        times: dict[str, list[float]] = {name: [] for name in runners}
        for name in (*runners, *runners):
            runners[name](inputs)
        began = time.perf_counter()
        for turn in range(MOST):
            if turn >= FEWEST and time.perf_counter() - began > SECONDS:
                break
            names = list(runners)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                time.sleep(PAUSE)
                start = time.perf_counter()
                runners[name](inputs)
                times[name].append(1e3 * (time.perf_counter() - start))
        quartiles = {name: statistics.quantiles(values, n=4) for name, values in times.items()}
        found.append(Latency(tuple(inputs["input_ids"].shape), {name: (q[1], q[0], q[2]) for name, q in quartiles.items()}))
    return tuple(found)


def _scale(values: Array) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))
