"""Convert model folders between transformers' families and ours, and write nothing whose numbers differ.

What a family's configuration and weights are called stands in `families`; `express` and `weights` translate, `guard` and
`parity` decide whether anything is read and written.  A weight keeps its bits, so a folder that is converted in and out
again holds what it held.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any, NamedTuple, TypeVar

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from . import parity
from .architecture import Architecture
from .checkpoint import MANIFEST, verify_folder
from .configuration import LayerwrightConfig
from .encoder import LayerwrightPreTrainedModel
from .errors import IntegrityError, nearest
from .express import Wording, architecture_of, check_fields, head_of, wording
from .families import CARRIED, FAMILIES, LABELLED, Family, Head
from .guard import check_architecture, check_tokenizer, inside, read_json, stored
from .handover import TOKENIZER_FILES, model_card, save_model
from .models import FACES
from .weights import match, match_own, read, settle, shapes_of, to_ours, to_theirs

# What sentence-transformers adds to a folder: how states become the vector of a sentence.
SENTENCES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "[0-9]_*/*", "[0-9][0-9]_*/*")
KEPT = ("*.json", "*.txt", "*.safetensors", "*.model")  # of a repository of the Hub
Model = TypeVar("Model", bound=PreTrainedModel)


class Conversion(NamedTuple):
    """What a conversion did.

    source, result: the class of model that was read, and the one that was written.  difference: the largest one found.
    dropped: what the source holds that has no place in the result.  notes: what else its user should know.
    """

    folder: Path
    source: str
    result: str
    arch: Architecture
    difference: float
    dropped: tuple[str, ...]
    notes: tuple[str, ...]


class Reading(NamedTuple):
    """What the config.json of a family's model says.

    key: which head stands on the backbone.  named: the class that it names.
    """

    key: str
    named: str
    head: Head
    config: PreTrainedConfig
    arch: Architecture


class Source(NamedTuple):
    """A folder to convert: where it is, what it is called, and its configuration."""

    folder: Path
    name: str
    settings: dict[str, Any]

    def tokenizer(self) -> Path | None:
        """Return the folder if it holds a tokenizer, none of whose files leads elsewhere or names code."""
        files = [name for name in TOKENIZER_FILES if inside(self.folder, name).is_file()]
        check_tokenizer(self.folder)
        return self.folder if files else None

    def of_sentences(self) -> list[str]:
        """Return the files that make this a model of sentence-transformers, none of which leads elsewhere."""
        if not (self.folder / "modules.json").is_file():
            return []
        found = [path.relative_to(self.folder).as_posix() for pattern in SENTENCES for path in self.folder.glob(pattern)]
        return [name for name in found if inside(self.folder, name).is_file()]

    def lost_sentences(self) -> list[str]:
        """Return what to say where a result cannot be a model of sentence-transformers though this is one."""
        files = self.of_sentences()
        return [f"{', '.join(files)}: sentence-transformers reads them for a model of transformers"] if files else []


def convert(source: str | Path, out: Path, to: str | None = None) -> Conversion:
    """Convert a model folder, or a model of the Hub, and write it with its tokenizer once it is known to compute the same.

    A model of BERT, RoBERTa, DistilBERT, ELECTRA or ConvBERT becomes a model folder of ours; one of ours becomes the model of
    the family `to`, or else of the first one that can express it with nothing to add.

    Raises:
        ValueError: the source is no such model, holds what is refused, or no family can express it; with every reason.
        IntegrityError: weights are torn, missing, misshapen or unknown, or the two models differ.
        OSError: the source cannot be read or the result not written.
    """
    if to is not None and to not in FAMILIES:
        raise ValueError(f"no family '{to}'{nearest(to, FAMILIES)}")
    given = find(source)
    if out.resolve() == given.folder.resolve():
        raise ValueError(f"{out} is the source itself: give another folder to write")
    family = family_of(given)
    if family is None:
        return _outward(given, out, to)
    if to is not None:
        raise ValueError(f"{given.name} is a {family.name} of transformers already: --to is for model folders of ours")
    return _inward(given, family, out)


@contextmanager
def as_ours(folder: Path) -> Iterator[Path]:
    """Lend a model folder of ours: this one, or what a family's is converted to, which is gone after the block.

    Raises: as `convert` does.
    """
    given = find(folder) if (folder / "config.json").is_file() else None
    family = FAMILIES.get(str(given.settings.get("model_type"))) if given else None
    if given is None or family is None:
        yield folder
        return
    with converted(given, family) as own:
        yield own


@contextmanager
def converted(given: Source, family: Family) -> Iterator[Path]:
    """Lend what a model of a family is converted to, which is gone after the block.

    Raises: as `convert` does.
    """
    with TemporaryDirectory() as folder:
        yield _inward(given, family, Path(folder) / "model").folder


def find(source: str | Path) -> Source:
    """Find a folder, or fetch a model of the Hub, and read its configuration.

    Raises:
        ValueError: the configuration is none, or holds what is refused.
        OSError: there is no such folder, and the Hub has none or cannot be reached.
    """
    folder = Path(source)
    if folder.is_dir():
        return Source(folder, folder.resolve().name, read_json(folder, "config.json"))
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(source)):
        raise FileNotFoundError(f"{source} is no folder, and no name that a model on the Hub could have")
    try:
        folder = Path(snapshot_download(str(source), allow_patterns=list(KEPT)))
    except LocalEntryNotFoundError:
        raise OSError(f"{source} is no folder here and not in the cache of the Hub, which cannot be reached") from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        why = shorten(str(error), 160, placeholder="...")
        raise OSError(f"{source} is no folder here and cannot be fetched from the Hub: {why}") from None
    return Source(folder, str(source), read_json(folder, "config.json"))


def family_of(given: Source) -> Family | None:
    """Return the family of a model; None: it is one of ours.

    Raises:
        ValueError: it is neither.
    """
    kind = str(given.settings.get("model_type"))[:40]
    if kind == LayerwrightConfig.model_type:
        return None
    if kind not in FAMILIES:
        known = ", ".join((*FAMILIES, LayerwrightConfig.model_type))
        raise ValueError(f"{given.name} is of model_type {kind!r}, and those that can be read are {known}")
    return FAMILIES[kind]


def read_family(given: Source, family: Family) -> Reading:
    """Read the configuration of a family's model.

    Raises:
        ValueError: it is not one that we have.
    """
    classes = {head.model: key for key, head in family.heads.items()} | dict(family.others)
    key, named = _named(given.settings, classes, family.heads["backbone"].model)
    head = family.heads[key]
    config = getattr(transformers, family.config)(**check_fields(family, head, given.settings))
    arch = architecture_of(family, vars(config))
    check_architecture(arch)
    if key == "spans" and config.num_labels != 2:
        raise ValueError(f"config.json has {config.num_labels} labels: {head.model} marks two places, first and last")
    return Reading(key, named, head, config, arch)


def read_own(given: Source) -> tuple[str, LayerwrightConfig]:
    """Read the configuration of a model of ours: the head it has, and the rest.

    Raises:
        ValueError: it is none.
    """
    try:
        config = LayerwrightConfig.from_dict(given.settings)
    except (TypeError, AttributeError, StrictDataclassError) as error:  # what becomes of fields that are of another sort
        raise ValueError(f"{given.name}: its config.json is no configuration: {' '.join(str(error).split())}") from None
    classes = {face.model.__name__: key for key, face in FACES.items()}
    key, _ = _named(given.settings, classes, FACES["backbone"].model.__name__)
    return key, config


def _inward(given: Source, family: Family, out: Path) -> Conversion:
    """Convert a model of a family to ours."""
    key, named, head, config, arch = read_family(given, family)
    found = stored(given.folder)
    pooled = has_pooler(family, key, found)
    build = partial(build_theirs, family, head, config, pooled=pooled)
    places, dropped = match(family, head, shapes_of(build), found)
    tokenizer = given.tokenizer()
    weights, dtype = read(places, found)
    settle(family, head, weights)
    theirs = _filled(build(), weights, torch.float32)
    ours_config = our_config(family, key, config, arch, pooler=pooled)
    face = FACES[key]
    own = shapes_of(partial(face.model, ours_config))
    ours = _filled(face.model(ours_config), to_ours(family, head, weights, own), dtype)
    card = model_card(ours, given.name, facts={"converted from": f"{named} of transformers"}, scores={})
    worst = _save(out, ours, tokenizer, card, lambda folder: parity.gap(theirs, reload(face.model, folder, {})))
    notes = [] if tokenizer else ["the source has no tokenizer"]
    left = (*dropped, *given.lost_sentences())
    return Conversion(out, named, face.model.__name__, arch, worst, left, tuple(notes))


def _outward(given: Source, out: Path, to: str | None) -> Conversion:
    """Convert a model of ours to one of a family."""
    key, ours, dtype = _own(given)
    family, words = choose(ours.config, key, to)
    head, tokenizer = family.heads[key], given.tokenizer()
    config = getattr(transformers, family.config)(**words.fields)
    pooled = family.pooler and key == "backbone" and ours.config.pooler
    build = partial(build_theirs, family, head, config, pooled=pooled)
    weights = to_theirs(family, head, ours.state_dict(), shapes_of(build))
    theirs = _filled(build(), weights, dtype)
    nn.Module.float(ours)
    more = {"add_pooling_layer": pooled} if family.pooler and key == "backbone" else {}
    card = (
        f"# {given.name}\n\n`{head.model}` of transformers, converted by Layerwright from\n\n```text\n{ours.config.arch}\n```\n"
    )
    worst = _save(out, theirs, tokenizer, card, lambda folder: parity.gap(reload(type(theirs), folder, more), ours))
    notes = [*words.notes, *([] if tokenizer else ["the source has no tokenizer"])]
    return Conversion(out, type(ours).__name__, head.model, ours.config.arch, worst, (), tuple(notes))


def choose(config: LayerwrightConfig, key: str, to: str | None = None) -> tuple[Family, Wording]:
    """Return the family that a configuration of ours is written as, and how: `to`, or the first with fewest notes.

    Raises:
        ValueError: none can express it; every reason, layer by layer.
    """
    words = {name: wording(FAMILIES[name], key, config) for name in ([to] if to else FAMILIES)}
    fitting = [name for name, said in words.items() if not said.reasons]
    if not fitting:
        reasons = [f"\n  {name}: {reason}" for name, said in words.items() for reason in said.reasons]
        told = f"{to} cannot express" if to else "no family of transformers can express"
        raise ValueError(f"{told} '{config.arch}'{''.join(reasons)}")
    best = min(fitting, key=lambda name: len(words[name].notes))
    return FAMILIES[best], words[best]


def _named(settings: dict[str, Any], classes: Mapping[str, str], without: str) -> tuple[str, str]:
    """Return which head a configuration stands under, and the name of its class; `without` where it names none."""
    named = settings.get("architectures") or [without]
    name = str(named[0] if isinstance(named, list) else named)[:60]
    if name not in classes:
        raise ValueError(f"config.json names the class {name!r}{nearest(name, classes)}")
    return classes[name], name


def has_pooler(family: Family, key: str, found: Collection[str]) -> bool:
    """Return whether the files of a family's model, which hold these names, hold a pooler that its class uses."""
    return family.pooler and key == "backbone" and any(name.endswith("pooler.dense.weight") for name in found)


def our_config(family: Family, key: str, config: PreTrainedConfig, arch: Architecture, *, pooler: bool) -> LayerwrightConfig:
    """Return our configuration of a family's model."""
    head, dropouts = family.heads[key], ("hidden_dropout_prob", "attention_probs_dropout_prob")
    fields: dict[str, Any] = {name: getattr(config, family.fields[name]) for name in dropouts}
    fields |= {name: value for name in CARRIED if (value := getattr(config, name, None)) is not None}
    fields |= head_of(head, str(dict(arch.layers[1].options)["act"]))
    if head.dropout and head.dropout not in family.fields.values():
        fields["classifier_dropout"] = getattr(config, head.dropout)
    if key in LABELLED:
        fields |= {"id2label": config.id2label, "label2id": config.label2id}
    return LayerwrightConfig(architecture=arch.explicit(), pooler=pooler, **fields)


def _own(given: Source) -> tuple[str, LayerwrightPreTrainedModel, torch.dtype]:
    """Load a model of ours: the head it has, the model, and the dtype of its weights."""
    if (given.folder / MANIFEST).exists():
        verify_folder(given.folder)
    key, config = read_own(given)
    build = partial(FACES[key].model, config)
    with torch.device("meta"):
        bare = build()
    found = stored(given.folder)
    weights, dtype = read(match_own(shapes_of(lambda: bare), found, bare.all_tied_weights_keys), found)
    return key, _filled(build(), weights, dtype), dtype


def build_theirs(family: Family, head: Head, config: PreTrainedConfig, *, pooled: bool) -> PreTrainedModel:
    """Build a family's model, its weights not yet those wanted."""
    model: type[PreTrainedModel] = getattr(transformers, head.model)
    with torch.random.fork_rng(devices=[]):
        if family.pooler and head is family.heads["backbone"]:
            return model(config, add_pooling_layer=pooled)
        return model(config)


def _filled(model: Model, weights: dict[str, Tensor], dtype: torch.dtype) -> Model:
    """Give a model its weights, for evaluation in a dtype."""
    nn.Module.to(model, dtype).load_state_dict(weights)
    return nn.Module.eval(model)


def reload(
    model: Any, folder: Path, more: Mapping[str, Any], *, dtype: torch.dtype = torch.float32, also: Collection[str] = ()
) -> Any:
    """Load what was written; more: arguments of the class; also: names of weights that the file may hold besides.

    Raises:
        IntegrityError: transformers does not find each weight in it, or finds others.
    """
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # what is missing or too much is told below, and what may be there is no news
    try:
        loaded, told = model.from_pretrained(folder, dtype=dtype, output_loading_info=True, use_safetensors=True, **more)
    finally:
        transformers.logging.set_verbosity(before)
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if wrong := set(told[fault]) - set(also):
            raise IntegrityError(f"what was written for {model.__name__} has {fault.replace('_', ' ')}: {sorted(wrong)[:3]}")
    return loaded.eval()


def _save(out: Path, model: PreTrainedModel, tokenizer: Path | None, card: str, check: Any) -> float:
    """Write a model folder that passes a check, and return what the check found."""
    found: list[float] = []
    save_model(out, model, tokenizer=tokenizer, card=card, check=lambda folder: found.append(check(folder)))
    return found[0]
