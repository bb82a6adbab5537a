"""Settings: everything wrong is said at once, the nearest name beside it, and what is written reads back the same."""

import os
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from layerwright import settings
from layerwright.errors import (
    EXIT_CODES,
    DataError,
    IntegrityError,
    Interrupted,
    RunInUse,
    exit_code,
    nearest,
)


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rates(Frozen):
    peak: float = Field(5e-4, gt=0)
    warmup: int = 100


class Extra(Frozen):
    decay: float = 0.0


class Settings(Frozen):
    steps: int = 1000
    name: str = "run"
    precision: Literal["float32", "bf16"] = "float32"
    tokenizer: Path | None = None
    sizes: tuple[int, ...] = (1, 2)
    rates: Rates = Rates()
    extra: Extra | None = None

    @field_validator("name")
    @classmethod
    def _one_word(cls, name: str) -> str:
        if name == "two words":
            raise ValueError("a name is one word")
        return name


def test_the_command_line_wins_over_assignments_and_those_over_the_file(tmp_path):
    file = tmp_path / "given.toml"
    file.write_text("steps = 1\nname = 'file'\nprecision = 'bf16'\n[rates]\npeak = 0.1\nwarmup = 7\n")
    found = settings.read(
        Settings, file, ["steps=2", "name=assigned", "rates.peak=0.2"], steps=3, name=None, rates={"warmup": None}
    )
    assert found == Settings(steps=3, name="assigned", precision="bf16", rates=Rates(peak=0.2, warmup=7))


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("steps = 12", {"steps": 12}),
        ("rates.peak=1e-3", {"rates": {"peak": 1e-3}}),
        ("name=768: 12x(attn ffn)", {"name": "768: 12x(attn ffn)"}),
        ("name=a=b", {"name": "a=b"}),
        ("name='quoted # text'", {"name": "quoted # text"}),
        ("name=1\nsteps=5", {"name": "1\nsteps=5"}),
        ("name=", {"name": ""}),
        ("sizes=[3, 4, 5]", {"sizes": (3, 4, 5)}),
        ("tokenizer=some/vocab.txt", {"tokenizer": Path("some/vocab.txt")}),
        ("rates={peak = 2, warmup = 3}", {"rates": {"peak": 2.0, "warmup": 3}}),
        ("extra.decay=1", {"extra": {"decay": 1.0}}),
    ],
)
def test_an_assignment_is_toml_where_it_can_be(assignment, expected):
    assert settings.read(Settings, assign=[assignment]) == Settings.model_validate(expected)


def test_all_errors_come_at_once_with_the_nearest_names(tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text("stepz = 4\nprecision = 'fp8'\nname = 'two words'\n[rates]\npeek = 1\nwarmup = 'long'\n[extra]\ndecy = 1\n")
    with pytest.raises(ValueError, match="8 problems") as failure:
        settings.read(Settings, file, ["nonsense", "rates.peak=-1"])
    text = str(failure.value)
    for part in (
        str(file),
        "'nonsense' is not of the form name=value",
        "stepz: no such setting; did you mean 'steps'?",
        "rates.peek: no such setting; did you mean 'peak'?",
        "extra.decy: no such setting; did you mean 'decay'?",
        "rates.peak: Input should be greater than 0 (got -1)",
        "rates.warmup: Input should be a valid integer",
        "precision: Input should be 'float32' or 'bf16' (got 'fp8')",
        "name: a name is one word (got 'two words')",
    ):
        assert part in text, text
    assert "pydantic" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no file"), (b"steps = ?\n", "is not TOML.*line 1"), (b"name = '\xff'", "is not TOML")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, message):
    file = tmp_path / "settings.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file.name}.*\n.*{message}"):
        settings.read(Settings, file)


def test_what_is_written_reads_back_the_same(tmp_path):
    file = tmp_path / "settings.toml"
    original = Settings(
        steps=3,
        name='768: conv[kernel=9] "quoted" \\ \n é',
        tokenizer=Path("a/b.txt"),
        rates=Rates(peak=0.1 + 0.2),
        extra=Extra(decay=float("inf")),
    )
    for one in (original, Settings()):
        settings.write(one, file)
        assert settings.read(Settings, file) == one


def test_differences_name_the_setting_and_both_values():
    a, b = Settings(rates=Rates(peak=1.0)), Settings(steps=5, rates=Rates(peak=2.0), tokenizer=Path("v"))
    assert settings.differences(a, a) == []
    assert settings.differences(a, b) == ["steps: 1000 -> 5", "rates.peak: 1.0 -> 2.0", "tokenizer: not set -> v"]
    assert settings.differences(b, {"steps": 5}) != []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "settings.toml"
    settings.write_atomically(file, "old")

    def fail(*_):
        raise OSError("no")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(OSError, match="no"):
                settings.write_atomically(file, b"new")
        assert file.read_text() == "old"
        assert os.listdir(tmp_path) == [file.name]
    settings.write_atomically(file, "naïve")
    assert file.read_bytes() == "naïve".encode()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), 2),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "x"), 2),
        (DataError("x"), 3),
        (IntegrityError("x"), 4),
        (FloatingPointError("x"), 5),
        (Interrupted("x"), 75),
        (KeyboardInterrupt(), 130),
        (OSError("x"), 1),
        (RunInUse("x"), 1),
        (RuntimeError("x"), 1),
    ],
)
def test_each_failure_has_its_exit_code(error, code):
    assert exit_code(error) == code


def test_every_subclass_stands_before_what_it_inherits_from():
    kinds = list(EXIT_CODES)
    assert all(not issubclass(later, kind) for index, kind in enumerate(kinds) for later in kinds[index + 1 :])


def test_nearest_offers_one_name_or_all():
    assert nearest("Atn", ["attn", "ffn"]) == "; did you mean 'attn'?"
    assert nearest("zzz", iter(["attn", "ffn"])) == "; known: attn, ffn"
    assert nearest("zzz", []) == ""
