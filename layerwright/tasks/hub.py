"""Read the rows of a Hugging Face data set, from the hub or from a folder that `datasets` wrote.

Classes are decoded to their names, so that the order a data set has them in does not matter. Numbers are those that were
written, such as 3.8, and not what is left of them in 32 bits.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from layerwright.errors import DataError
from layerwright.tasks.records import Record


def hub_records(name: str, config: str, split: str) -> tuple[list[str], Iterator[Record]]:
    """Return the columns and the rows of a split, the first being row 1; `name` is that on the hub or a folder.

    Raises: DataError if it cannot be had.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(f"hf:{name} needs {error.name}: pip install 'layerwright[data]'") from None
    try:
        if Path(name).is_dir() and any(Path(name, mark).is_file() for mark in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = _load(datasets.load_dataset, name, config or None)
    except Exception as error:  # noqa: BLE001 - datasets, the hub's client and its transport each raise their own
        raise DataError(f"hf:{name} cannot be read: {error}") from None
    if not isinstance(loaded, dict):  # one split, saved alone, which must not stand for another
        loaded = {str(loaded.split): loaded}
    if split not in loaded:
        raise DataError(f"hf:{name} has no split {split!r}; it has {', '.join(loaded)}")
    loaded = loaded[split]
    return list(loaded.features), dataset_records(loaded)


def without_numbers(records: Iterable[Record], columns: Sequence[str]) -> Iterator[Record]:
    """Yield records with None for -1 in these columns, which the hub has for no number, too."""
    for record in records:
        yield record._replace(fields={n: None if n in columns and value == -1 else value for n, value in record.fields.items()})


def dataset_records(dataset: Any) -> Iterator[Record]:
    """Yield the rows of a loaded data set with the names of their classes; -1, which the hub has for no label, becomes None."""
    decoders = {name: _decoder(feature) for name, feature in dataset.features.items()}
    for place, row in enumerate(dataset):
        yield Record(place + 1, place, {name: decoders[name](value) for name, value in row.items()})


def _load(load: Callable[..., Any], name: str, config: str | None) -> Any:
    """Load a data set; of one that is a script, which `datasets` no longer runs, the tables that the hub itself made of it."""
    try:
        return load(name, config)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
    return load(name, config, revision="refs/convert/parquet")


def _decoder(feature: Any) -> Callable[[Any], Any]:
    names = getattr(feature, "names", None)
    if isinstance(names, list):
        return lambda value: None if value is None or value < 0 else names[value]
    if getattr(feature, "dtype", None) == "float32":
        return lambda value: None if value is None else float(str(np.float32(value)))
    inner = getattr(feature, "feature", None)
    if isinstance(getattr(inner, "names", None), list):
        decode = _decoder(inner)
        return lambda values: [decode(value) for value in values]
    return lambda value: value
