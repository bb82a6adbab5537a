"""Read settings from a file and the command line, check them, and write what was resolved.

Settings are frozen pydantic models that stand beside what they set; this file only moves them. Everything wrong with them
is reported at once, because a run that dies of its second typing error after its first was mended is a run wasted.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from .errors import nearest

M = TypeVar("M", bound=BaseModel)


def read(kind: type[M], file: Path | None = None, assign: Sequence[str] = (), **given: Any) -> M:
    """Build settings from a TOML file, then `a.b=c` assignments, then what was given by name; the later one wins.

    The value of an assignment is TOML where it parses as such, else a string. A given None means not given.
    Raises: ValueError listing every problem, with the nearest known name beside each unknown one.
    """
    problems: list[str] = []
    table = _table(file, problems) if file is not None else {}
    for text in assign:
        name, equals, value = text.partition("=")
        if not equals or not all(part.strip() for part in name.split(".")):
            problems.append(f"{text!r} is not of the form name=value or group.name=value")
            continue
        nested = _value(value.strip())
        for part in reversed(name.split(".")):
            nested = {part.strip(): nested}
        _merge(table, nested)
    _merge(table, given)
    try:
        settings = kind.model_validate(table)
    except ValidationError as error:
        problems += [_problem(kind, one) for one in error.errors()]
    if problems:
        source = f" in {file}" if file is not None else ""
        heading = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ValueError(f"{heading} with the settings{source}:\n" + "\n".join(f"  {problem}" for problem in problems))
    return settings


def write(settings: BaseModel, path: Path) -> None:
    """Write settings as TOML, atomically; what is None is left out."""
    write_atomically(path, tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)))


def differences(a: BaseModel | Mapping[str, Any], b: BaseModel | Mapping[str, Any]) -> list[str]:
    """List where two settings (or the tables they are written as) differ, as `group.name: 1 -> 2`."""
    before, after = dict(_flat(a)), dict(_flat(b))
    names = [*before, *(name for name in after if name not in before)]
    return [
        f"{name}: {before.get(name, 'not set')} -> {after.get(name, 'not set')}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that at every moment, power cuts included, is either wholly the old one or wholly the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _table(file: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"there is no file {file}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{file} is not TOML: {error}")
    return {}


def _value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if len(table) == 1 else text


def _merge(table: dict[str, Any], later: Mapping[str, Any]) -> None:
    for name, value in later.items():
        if isinstance(value, Mapping):
            inner = table.get(name)
            table[name] = inner = dict(inner) if isinstance(inner, Mapping) else {}
            _merge(inner, value)
        elif value is not None:
            table[name] = value


def _problem(kind: type[BaseModel], error: Mapping[str, Any]) -> str:
    place = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{place}: no such setting{nearest(str(error['loc'][-1]), _names(kind, error['loc'][:-1]))}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] != "missing" and not isinstance(error["input"], Mapping | BaseModel):
        written = repr(error["input"])
        message += f" (got {written if len(written) < 80 else written[:77] + '...'})"
    return f"{place}: {message}" if place else message


def _names(kind: Any, place: tuple[int | str, ...]) -> list[str]:
    """List the settings that exist at a place, looking through Optional, unions and containers."""
    models = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, BaseModel)]
    if not models:
        return [name for inner in get_args(kind) for name in _names(inner, place)]
    fields = {name: field for model in models for name, field in model.model_fields.items()}
    if not place:
        return list(fields)
    return _names(fields[str(place[0])].annotation, place[1:]) if place[0] in fields else []


def _flat(settings: BaseModel | Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    table = settings.model_dump(mode="json", exclude_none=True) if isinstance(settings, BaseModel) else settings
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
