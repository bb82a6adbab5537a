"""Say an architecture in the words of a family of transformers, and the other way round; or why it cannot be said."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .architecture import LAYERS, Architecture, Layer
from .configuration import LayerwrightConfig
from .errors import nearest
from .families import ACTIVATIONS, CARRIED, FAMILIES, LABELLED, PLAIN, TOKENS, Family, Head
from .guard import TABLE, check_number

Fields = dict[str, Any]


class Wording(NamedTuple):
    """What a family makes of a configuration of ours.

    fields: those of its config.json.  reasons: why it cannot express it.  notes: what would differ, but no number of it.
    """

    fields: Fields
    reasons: list[str]
    notes: list[str]


def check_fields(family: Family, head: Head, settings: Fields) -> Fields:
    """Return the fields of a config.json that matter to a family; all others are passed over.

    Raises:
        ValueError: a field has a value that is out of range, or with which the model is not one we have.
    """
    needed = {name: (value,) for name, value in head.needs.items()}
    for name, values in (dict(PLAIN) | needed).items():
        if name in settings and settings[name] not in values:
            raise ValueError(f"config.json has {name}={settings[name]!r}: {family.name} is converted with {values[0]!r} only")
    if head.tied and settings.get("tie_word_embeddings") is False:
        raise ValueError("config.json has tie_word_embeddings=false: the output matrix of our head is the token embedding itself")
    kept = {name: settings[name] for name in (*family.fields.values(), *CARRIED, head.dropout) if name in settings}
    for word, name in family.fields.items():
        if word == "act":
            if name in kept and str(kept[name]) not in ACTIVATIONS:
                raise ValueError(f"config.json has {name}={str(kept[name])[:40]!r}{nearest(str(kept[name]), ACTIVATIONS)}")
        elif word == "eps" or word.endswith("prob"):
            check_number(kept, name, 1.0)
        else:
            check_number(kept, name, LAYERS // 2 if word == "blocks" else TABLE, int(word != "segments"))
    optional = {name: value for name, value in kept.items() if value is not None and not isinstance(value, list)}
    check_number(optional, head.dropout, 1.0)
    for name in TOKENS:
        check_number(optional, name, TABLE)
        if isinstance(kept.get(name), list):
            del kept[name]  # several ends of a text: for models that write one
    return kept | _labels(settings)


def architecture_of(family: Family, fields: Mapping[str, Any]) -> Architecture:
    """Return the architecture that a complete configuration of a family describes.

    Raises:
        ValueError: its sizes do not fit one another.
    """
    said = {word: fields[name] for word, name in family.fields.items()} | dict(family.fixed)
    width, blocks = said["width"], said["blocks"]
    if "offset" not in said:  # RoBERTa's positions begin behind its padding token
        pad = fields["pad_token_id"]
        if pad is None:
            raise ValueError(f"config.json has no pad_token_id, from which {family.name} counts its positions")
        said["offset"] = pad + 1
        said["positions"] -= said["offset"]
    mixer = _mixed(said) if family.mixer == "mixed" else Layer("attn", (("heads", said["heads"]),))
    act = ACTIVATIONS[said["act"]]
    ffn = Layer("ffn", (("inner", said["inner"]), ("act", act), ("groups", said["groups"])))
    sizes = {name: said[name] for name in ("vocab", "positions", "segments", "eps", "offset")}
    return Architecture(width=width, layers=(mixer, ffn) * blocks, embed=said.get("embed", width), **sizes)


def head_of(head: Head, act: str) -> Fields:
    """Return how the head of a family's class is configured with us; act: that of the layers, in our words."""
    if head.act is None:
        return {}
    own = act if head.act == "same" else head.act
    if "head.classes" in head.names:
        return {"classifier_act": own, "classifier_input_dropout": head.input_dropout}
    return {"head_act": own}


def wording(family: Family, key: str, config: LayerwrightConfig) -> Wording:
    """Say a configuration in a family's words; key: which head stands on it."""
    arch = config.arch
    reasons, notes = [*_layer_reasons(family, arch), *_size_reasons(family, arch, config)], []
    for group in config.tied_layers or ():
        reasons.append(f"layers {', '.join(map(str, group))}: they share weights, and each layer of {family.name} has its own")
    fields = {} if reasons else _spell(family, config)
    if key not in family.heads:
        return Wording(fields, [*reasons, _no_head(family, key)], [])
    head = family.heads[key]
    wanted = head_of(head, str(dict(arch.layers[-1].options).get("act", "gelu")))
    dropped = wanted.pop("classifier_input_dropout", config.classifier_input_dropout)
    for name, act in wanted.items():
        if (own := getattr(config, name)) != act:
            reasons.append(f"the head: {name} is {own or 'none'}, and {act} in {head.model}")
    if dropped != config.classifier_input_dropout:
        notes.append(f"in training {head.model} {'also drops' if dropped else 'does not drop'} what enters its hidden map")
    if "offset" not in family.fixed and config.pad_token_id is None:
        notes.append(f"token {arch.offset - 1} is the padding token of {family.name}, and has no position")
    if key == "backbone" and config.pooler and not family.pooler:
        reasons.append(f"the pooler: {head.model} has none")
    if key == "backbone" and family.pooler and not config.pooler:
        notes.append(f"{head.model} has a pooler, which this model has not: transformers draws one at random")
    if head.dropout and head.dropout not in fields:
        own, falls_back = config.classifier_dropout, head.dropout == "classifier_dropout"
        fields[head.dropout] = config.hidden_dropout_prob if own is None and not falls_back else own
    if key in LABELLED:
        fields |= {"id2label": dict(config.id2label or {}), "label2id": dict(config.label2id or {})}
    return Wording(fields | dict(head.needs), reasons, notes)


def _spell(family: Family, config: LayerwrightConfig) -> Fields:
    """Return the fields of a family for an architecture that it can express."""
    arch = config.arch
    said: Fields = {"width": arch.width, "embed": arch.embed, "blocks": len(arch) // 2, "eps": arch.eps}
    said |= {"vocab": arch.vocab, "segments": arch.segments, "positions": arch.positions + arch.offset}
    said |= {name: value for layer in arch.layers[:2] for name, value in layer.options}
    said |= {name: getattr(config, name) for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")}
    said["act"] = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == said["act"])
    fields = {name: said[word] for word, name in family.fields.items()}
    fields |= {name: value for name in CARRIED if (value := getattr(config, name, None)) is not None}
    if "offset" not in family.fixed:
        fields["pad_token_id"] = arch.offset - 1
    return fields


def _labels(settings: Mapping[str, Any]) -> Fields:
    """Return the labels of a config.json.

    Raises:
        ValueError: they are no table of numbers and names.
    """
    labels = settings.get("id2label")
    if labels is None:
        check_number(settings, "num_labels", TABLE)
        return {"num_labels": settings["num_labels"]} if "num_labels" in settings else {}
    try:
        found = {int(number): str(label) for number, label in labels.items()}
    except (AttributeError, ValueError, TypeError):
        raise ValueError("config.json has an id2label that is no table of numbers and names") from None
    if sorted(found) != list(range(len(found))):
        raise ValueError(f"config.json has an id2label whose numbers are not 0 to {len(found) - 1}")
    return {"id2label": found, "label2id": {label: number for number, label in found.items()}}


def _mixed(said: Mapping[str, Any]) -> Layer:
    """Return the mixed attention of ConvBERT as transformers computes it, in the released form where both agree."""
    width, heads, ratio = said["width"], said["heads"], said["ratio"]
    released = ratio == 2 and heads % 2 == 0 and width % heads == 0
    if not released and width % heads:  # only the heads of a branch have to divide the width
        heads, ratio = max(1, heads // ratio), 1
    form = "released" if released else "transformers"
    return Layer("mixed", (("heads", heads), ("ratio", ratio), ("kernel", said["kernel"]), ("form", form)))


def _layer_reasons(family: Family, arch: Architecture) -> Iterator[str]:
    """Say which layers a family has no place for, and why."""
    unlike: dict[str, list[int]] = {}
    for index, layer in enumerate(arch.layers):
        kind = "ffn" if index % 2 else family.mixer
        first = arch.layers[index % 2]
        if layer.kind != kind:
            unlike.setdefault(f"{layer.short(arch.width)}, where {family.name} has {kind}", []).append(index)
        elif first.kind == kind and layer != first:
            unlike.setdefault(f"{layer}, unlike layer {index % 2}, {first}; all blocks of {family.name} are alike", []).append(
                index
            )
        elif why := _option_reason(family, layer, arch.width):
            unlike.setdefault(why, []).append(index)
    for why, places in unlike.items():
        yield f"layer{'s' * (len(places) > 1)} {', '.join(map(str, places))}: {why}"
    if len(arch) % 2:
        yield f"layer {len(arch) - 1}: a block of {family.name} is two layers, and this one has no second"


def _option_reason(family: Family, layer: Layer, width: int) -> str:
    """Say which option of a layer of the right kind a family has not."""
    options = dict(layer.options)
    if layer.kind == "ffn" and "groups" in family.fixed and options["groups"] != family.fixed["groups"]:
        return f"{layer.short(width)}, and the maps of {family.name} have no groups"
    if layer.kind == "mixed" and options["form"] != "transformers":
        branch = max(1, int(options["heads"]) // int(options["ratio"])) * (width // int(options["heads"]))
        if options["form"] == "paper" or 2 * branch != width:
            half = "a map behind each branch" if options["form"] == "paper" else f"branches {branch} wide"
            return f"{layer} has {half}; {family.name} in transformers has none, and branches {width // 2} wide"
    return ""


def _size_reasons(family: Family, arch: Architecture, config: LayerwrightConfig) -> Iterator[str]:
    """Say which settings of the header a family cannot have."""
    if arch.norm != "post":
        yield f"norm={arch.norm}: the norms of {family.name} come after the layers"
    if "embed" not in family.fields and arch.embed != arch.width:
        yield f"embed={arch.embed}: the embeddings of {family.name} are as wide as its layers"
    for name in ("segments", "eps", "offset"):
        if name in family.fixed and getattr(arch, name) != family.fixed[name]:
            yield f"{name}={getattr(arch, name)}: it is {family.fixed[name]} in {family.name}"
    if "segments" not in family.fixed and not arch.segments:
        yield f"segments=0: {family.name} has segment embeddings"
    if "offset" not in family.fixed:
        if not arch.offset:
            yield f"offset=0: {family.name} leaves the rows of the position table up to its padding token unused"
        elif config.pad_token_id not in (None, arch.offset - 1):
            yield f"pad_token_id={config.pad_token_id}: with offset={arch.offset}, that of {family.name} is {arch.offset - 1}"


def _no_head(family: Family, key: str) -> str:
    """Say that a family has no class with this head, and which have."""
    others = [other.heads[key].model for other in FAMILIES.values() if key in other.heads]
    return f"the head: {family.name} has none for '{key}'" + (f", as {', '.join(others)} has" if others else "")
