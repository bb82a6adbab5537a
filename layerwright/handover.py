"""Hand over trained weights: a model folder that transformers loads, with its tokenizer, model card and manifest."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from .architecture import Architecture
from .checkpoint import appearing, seal_folder
from .configuration import LayerwrightConfig
from .cost import flops, layer_flops, layer_parameters, parameters
from .errors import nearest
from .guard import read_json
from .models import FACES, LayerwrightPreTrainedModel

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt"),
)


def model_of(arch: Architecture, weights: Mapping[str, Tensor], head: str, **config: Any) -> LayerwrightPreTrainedModel:
    """Return a model that holds a copy of trained weights, ready for evaluation.

    weights: as an objective or a backbone names them; what is neither backbone nor head is left out.  head: one of
    FACES.  config: fields of the configuration, such as `id2label` or `pad_token_id`.

    Raises:
        ValueError: an unknown head, or weights that are not of this architecture.
    """
    if head not in FACES:
        raise ValueError(f"no head '{head}'{nearest(head, FACES)}")
    with torch.random.fork_rng(devices=[]):
        model: LayerwrightPreTrainedModel = FACES[head].model(LayerwrightConfig(architecture=arch.explicit(), **config))
    own: tuple[str, ...] = ("backbone.", "head.")
    if head == "backbone":
        own = ("embed.", "layers.", "norm.", "pooler.")
        weights = {name.removeprefix("backbone."): weight for name, weight in weights.items()}
    wanted, given = model.state_dict(), {name: weight for name, weight in weights.items() if name.startswith(own)}
    wrong = wanted.keys() ^ given.keys() or {name for name in wanted if wanted[name].shape != given[name].shape}
    if wrong:
        named = f"{min(wrong)} is missing, of another shape, or too many ({len(wrong)} such)"
        raise ValueError(f"these are not weights of {arch} with head '{head}': {named}")
    model.load_state_dict(given)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def save_model(
    folder: Path,
    model: PreTrainedModel,
    *,
    tokenizer: Path | None = None,
    card: str = "",
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write a sealed model folder, replacing an old one; it has its name only once it is whole.

    The rest is as in `write_model`.
    """
    write_model(folder, model.save_pretrained, tokenizer=tokenizer, card=card, check=check)


def write_model(
    folder: Path,
    write: Callable[[Path], object],
    *,
    tokenizer: Path | None = None,
    card: str = "",
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write a sealed model folder, whose configuration and weights `write` puts into it while it is unfinished.

    tokenizer: a folder to copy the tokenizer's files from.  card: text of README.md.  check: called with the folder while
    it is unfinished; what it raises leaves nothing behind.

    Raises:
        FileNotFoundError: the tokenizer's folder holds none.
        FileExistsError: something else than a model folder has this name.
        OSError: it cannot be written; an old one stays.
    """
    files = [path for name in TOKENIZER_FILES if tokenizer is not None and (path := tokenizer / name).is_file()]
    if tokenizer is not None and not files:
        raise FileNotFoundError(f"{tokenizer} holds no tokenizer (no {TOKENIZER_FILES[0]})")
    if folder.exists() and not (folder / "config.json").is_file():
        raise FileExistsError(f"{folder} exists and is not a model folder")
    try:
        with appearing(folder) as unfinished:
            write(unfinished)
            for path in files:
                shutil.copyfile(path, unfinished / path.name)
            if tokenizer is not None:
                _complete_tokenizer(tokenizer, unfinished)
            if card:
                (unfinished / "README.md").write_text(card, encoding="utf-8")
            if check is not None:
                check(unfinished)
            seal_folder(unfinished)
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise OSError(f"cannot write {folder}: {error}") from error


def _complete_tokenizer(source: Path, folder: Path) -> None:
    """Write what transformers would not know of a tokenizer that was copied beside a model.

    How many tokens the model takes at most; and which class reads the tokenizer, where that followed from the kind of model that
    it lay beside: without it there would be no special tokens, and bert-base-uncased names none.
    """
    told = read_json(folder, "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    kind = read_json(source, "config.json").get("model_type") if (source / "config.json").is_file() else None
    more: dict[str, Any] = {}
    if kind not in (None, LayerwrightConfig.model_type) and told.get("tokenizer_class") is None:
        with suppress(Exception):  # what cannot be loaded there cannot here
            more["tokenizer_class"] = type(AutoTokenizer.from_pretrained(source, trust_remote_code=False)).__name__
    model = read_json(folder, "config.json")
    if model.get("model_type") == LayerwrightConfig.model_type:
        positions = Architecture.parse(model["architecture"]).positions
        known = told.get("model_max_length")
        if not isinstance(known, int | float) or known > positions:
            more["model_max_length"] = positions
    if more:
        (folder / "tokenizer_config.json").write_text(json.dumps(told | more, indent=2) + "\n", encoding="utf-8")


def model_card(
    model: LayerwrightPreTrainedModel, title: str, *, facts: Mapping[str, object], scores: Mapping[str, object]
) -> str:
    """Return the model card in Markdown, with the header that the Hub reads.

    facts: what it was made from and how, such as data, budget and seed.  scores: what came out, by measure.
    """
    arch = model.config.arch
    face = next(face for face in FACES.values() if face.model is type(model))
    length = min(128, arch.positions)
    size = sum(parameter.numel() for parameter in model.parameters())
    lines = [
        *("---", "library_name: layerwright", f"pipeline_tag: {face.task}", "tags:", "- layerwright", "- encoder", "---", ""),
        *(f"# {title}", "", f"An encoder of {len(arch)} layers, width {arch.width}, made with Layerwright.", ""),
        *("```text", str(arch), "```", ""),
        *("## Load", "", "```python", "import layerwright  # registers the classes with transformers", ""),
        f"from transformers import {face.auto.__name__}, AutoTokenizer",
        f'model = {face.auto.__name__}.from_pretrained("path/to/this/folder")',
        *('tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")', "```", ""),
        *("## Layers", "", *_layer_table(arch, length), ""),
        f"Parameters: {parameters(arch):,}, with the head {size:,}. "
        f"Forward pass of {length} tokens: {flops(arch, length):,} floating-point operations.",
        "",
        *("The architecture with every option written out:", "", "```text", arch.explicit(), "```", ""),
    ]
    for heading, columns, rows in (("Training", ("", ""), facts), ("Scores", ("measure", "value"), scores)):
        if rows:
            lines += [f"## {heading}", "", *markdown_table(columns, rows.items()), ""]
    return "\n".join(lines)


def _layer_table(arch: Architecture, length: int) -> list[str]:
    """Return a table with a row for each different layer, and one for the embeddings."""
    places: dict[str, list[int]] = {}
    for index, layer in enumerate(arch.layers):
        places.setdefault(layer.short(arch.width), []).append(index)
    rows = [
        (f"`{name}`", _ranges(at), f"{layer_parameters(arch, at[0]):,}", f"{layer_flops(arch, at[0], length):,}")
        for name, at in places.items()
    ]
    rest = parameters(arch) - sum(layer_parameters(arch, index) for index in range(len(arch)))
    rest_flops = flops(arch, length) - sum(layer_flops(arch, index, length) for index in range(len(arch)))
    columns = ("layer", "at", "parameters each", f"operations each, {length} tokens")
    return markdown_table(columns, [("embeddings", "", f"{rest:,}", f"{rest_flops:,}"), *rows])


def markdown_table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """Return the lines of a Markdown table."""
    heads = list(columns)
    cells = [[str(cell).replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *cells)]


def _ranges(numbers: list[int]) -> str:
    """Return rising numbers with runs written as ranges: 0, 2-5, 9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
