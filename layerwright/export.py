"""Export a model folder to ONNX, and let nothing stand that does not compute what PyTorch computes.

The graph has a free batch and length.  Before anything appears under its final name, ONNX Runtime runs it beside the model
over lengths and paddings.  The folder that is left needs neither PyTorch nor Layerwright: graph, configuration, tokenizer,
and `export.json`, which says what was checked and with which versions.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import kernels
from .checkpoint import appearing, seal_folder
from .errors import DataError, IntegrityError
from .folders import open_folder, open_tokenizer
from .guard import inside
from .handover import TOKENIZER_FILES
from .models import LayerwrightForMultipleChoice, LayerwrightPreTrainedModel
from .runtime import PACKAGES, Array, Drift, Latency, Session, difference, drift, need, quantise, race

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OPSET = 20
TOLERANCE = 1e-4  # as `runtime.difference` measures
EXTERNAL = 1 << 30  # bytes of weights past which they lie beside the graph: a protobuf ends at 2 GiB
GRAPH, INT8, RECORD = "model.onnx", "model_int8.onnx", "export.json"
ROWS, LONGEST = 64, 128  # of what the drift of int8 is measured on


class Export(NamedTuple):
    """What an export left, and what was measured on the way.

    difference: the largest between graph and PyTorch, by `runtime.difference`.  drift: of int8, an entry an output.
    """

    folder: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    difference: float
    drift: tuple[Drift, ...]
    latencies: tuple[Latency, ...]


def export(folder: Path, out: Path, *, int8: bool = False, text: Path | None = None) -> Export:
    """Write the ONNX export of a model folder, replacing an old export; it has its name only once it is whole and checked.

    int8: also a graph whose weights are 8-bit integers.  text: lines to measure its drift on; else tokens are drawn.

    Raises:
        ValueError: no model folder, a package of the extra `onnx` is missing, or layers that cannot be traced.
        DataError: the text or the tokenizer cannot be used.
        IntegrityError: the model folder is torn or altered, or the graph does not compute what the model does.
        FileExistsError: something else than an export has the name `out`.
    """
    for package in PACKAGES:
        need(package)
    if text is not None and not int8:
        raise ValueError("a text is for measuring the drift of int8, which was not asked for")
    if out.exists() and not (out / RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an export")
    model = open_folder(folder)
    traced = Traced(model).eval()
    rows = None if text is None else _tokens(folder, text, model)
    external = sum(weight.nbytes for weight in model.state_dict().values()) > EXTERNAL
    with appearing(out) as unfinished:
        trace(traced).save(unfinished / GRAPH, external_data=external)
        session = Session(unfinished / GRAPH)
        runners: dict[str, Any] = {"PyTorch": traced.run, "ONNX float32": session}
        gap, shapes = check(traced, session)
        drifts: tuple[Drift, ...] = ()
        if int8:
            quantise(unfinished / GRAPH, unfinished / INT8, external=external)
            runners["ONNX int8"] = small = Session(unfinished / INT8)
            drifts = drift(small.dims, ((inputs, traced.run(inputs), small(inputs)) for inputs in _measured(model, rows)))
        for name in ("config.json", *TOKENIZER_FILES):
            if (path := inside(folder, name)).is_file():
                shutil.copyfile(path, unfinished / name)
        parity = {"tolerance": TOLERANCE, "difference": gap, "over": shapes}
        record = _facts(model, session) | {"parity": parity, "int8": [one._asdict() for one in drifts]}
        (unfinished / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        latencies = race(runners, (examples(model, *shape) for shape in _timed(model)))
        seal_folder(unfinished)
    return Export(out, session.inputs, tuple(session.dims), gap, drifts, latencies)


class Traced(nn.Module):
    """A model as a graph has it: inputs by their places, and of what it returns every tensor."""

    def __init__(self, model: LayerwrightPreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Map ids, mask and, where there are several, segments, [B, L] or [B, C, L], to the tensors that the model returns."""
        return tuple(self.named(dict(zip(INPUTS, inputs, strict=False))).values())

    def named(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors that the model returns, by name."""
        found = self.model(**inputs, output_hidden_states=False, output_attentions=False, return_dict=True)
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        """Return what a session of the graph would, as PyTorch computes it."""
        return {name: value.numpy() for name, value in self.named(inputs).items()}


def trace(traced: Traced) -> Any:
    """Return a model as an `ONNXProgram`, its batch and length free: lengths from 1 to the positions of the architecture.

    Raises:
        ValueError: what a layer computes depends on values or on fixed sizes, so that there is no one graph of it.
    """
    arch = traced.model.config.arch
    sample = examples(traced.model, 3, min(arch.positions, 5))
    dims = ["batch", "choices", "length"] if sample["input_ids"].dim() == 3 else ["batch", "length"]
    most = {"length": arch.positions}
    free = {at: torch.export.Dim(name, min=1, max=most.get(name)) for at, name in enumerate(dims) if most.get(name) != 1}
    # The other inputs have the sizes of the first; to name those again would only draw a warning.
    others = dict.fromkeys(free, torch.export.Dim.AUTO)
    try:
        with torch.no_grad(), kernels.plain(), _quiet():
            program: Any = torch.onnx.export(
                traced,
                tuple(sample.values()),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=((free, *[others] * (len(sample) - 1)),),
                input_names=list(sample),
                output_names=list(traced.named(sample)),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = next((line for line in str(error.__cause__ or error).splitlines() if line.strip()), "")
        raise ValueError(f"{arch} cannot be exported: {reason}") from error
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # among them the paths of this machine
    return program


def check(traced: Traced, session: Session) -> tuple[float, list[str]]:
    """Return the largest difference of a graph from its model, and the shapes and paddings over which it was looked for.

    Raises:
        IntegrityError: it is beyond `TOLERANCE`; with the shape.
    """
    most = traced.model.config.arch.positions
    middle = min(most, 37)
    cases = [(1, 1, "none"), (2, min(most, 2), "none"), (1, most, "none"), (2, most, "right")]
    cases += [(3, middle, "holes"), (4, middle, "left"), (5, middle, "right")]
    worst = 0.0
    for seed, (rows, length, padding) in enumerate(cases):
        inputs = examples(traced.model, rows, length, padding, seed)
        gap = difference(traced.run(inputs), session(inputs))
        if not gap <= TOLERANCE:
            named = f"{rows} rows of {length} tokens, padding {padding}"
            raise IntegrityError(f"the graph is {gap:.1e} from the model at {named}; {TOLERANCE:.0e} is allowed")
        worst = max(worst, gap)
    return worst, [f"{rows} x {length}, padding {padding}" for rows, length, padding in cases]


def examples(
    model: LayerwrightPreTrainedModel, rows: int, length: int, padding: str = "none", seed: int = 0
) -> dict[str, Tensor]:
    """Draw inputs of a model from its vocabulary, [B, L], or [B, 3, L] where it chooses; padding: none, left, right or holes."""
    arch, chance = model.config.arch, torch.Generator().manual_seed(seed)
    shape = (rows, 3, length) if isinstance(model, LayerwrightForMultipleChoice) else (rows, length)
    places, real = torch.arange(length), torch.randint(1, length + 1, (*shape[:-1], 1), generator=chance)
    masks = {
        "none": torch.ones(shape, dtype=torch.bool),
        "left": places >= length - real,
        "right": places < real,
        "holes": (places == length // 2) | (torch.rand(shape, generator=chance) < 0.5),
    }
    found = {"input_ids": torch.randint(arch.vocab, shape, generator=chance), "attention_mask": masks[padding].long()}
    if arch.segments > 1:  # else they could only be zeros, and the graph has no such input
        found["token_type_ids"] = torch.randint(arch.segments, shape, generator=chance)
    return found


def _facts(model: LayerwrightPreTrainedModel, session: Session) -> dict[str, object]:
    """Return what a graph is of, how it is called, and what made it."""
    return {
        "class": type(model).__name__,
        "architecture": model.config.architecture,
        "inputs": session.inputs,
        "outputs": session.dims,
        "opset": OPSET,
        "versions": {name: metadata.version(name) for name in ("layerwright", "torch", "transformers", *PACKAGES)},
    }


def _timed(model: LayerwrightPreTrainedModel) -> list[tuple[int, int]]:
    """Return the shapes whose time is taken: a short text, a long one, and several."""
    most = model.config.arch.positions
    return list(dict.fromkeys((rows, min(length, most)) for rows, length in ((1, 16), (1, 128), (8, 128))))


def _tokens(folder: Path, text: Path, model: LayerwrightPreTrainedModel) -> list[list[int]]:
    """Return the tokens of the first lines of a text, as the tokenizer of a model folder writes them."""
    try:
        lines = [line.strip() for line in text.read_text(encoding="utf-8").splitlines() if line.strip()][:ROWS]
    except UnicodeDecodeError as error:
        raise DataError(f"{text} is not UTF-8 text: {error}") from None
    if not lines:
        raise DataError(f"{text} has no line of text")
    tokenizer, _ = open_tokenizer(folder, model.config)
    tokenizer.enable_truncation(min(LONGEST, model.config.arch.positions))
    return [encoding.ids for encoding in tokenizer.encode_batch(lines)]


def _measured(model: LayerwrightPreTrainedModel, rows: list[list[int]] | None) -> Iterator[dict[str, Tensor]]:
    """Yield what the drift is measured on: rows of tokens, or else drawn ones."""
    length = min(LONGEST, model.config.arch.positions)
    if rows is None:
        yield from (examples(model, 8, length, "right", seed) for seed in range(ROWS // 8))
        return
    for row in rows:
        found = {"input_ids": torch.tensor([row])}
        found["attention_mask"] = torch.ones_like(found["input_ids"])
        if model.config.arch.segments > 1:
            found["token_type_ids"] = torch.zeros_like(found["input_ids"])
        alone = isinstance(model, LayerwrightForMultipleChoice)  # then a row of one text to choose
        yield {name: value[:, None] for name, value in found.items()} if alone else found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporter says of itself: of a package it could use, and of its own use of PyTorch."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        registration.setLevel(level)
