"""`layerwright inspect` leaves a folder whose files agree, or nothing; what it suggests makes the model that it measured."""

import csv
import importlib
import json
import re
import shlex
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from test_report import CHROMIUM, Page, browse
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from layerwright import cli
from layerwright.configuration import LayerwrightConfig
from layerwright.dense import packing
from layerwright.drawings import Cell, Heat
from layerwright.errors import DataError
from layerwright.handover import save_model
from layerwright.inference import open_model
from layerwright.inspection import Inspection
from layerwright.models import FACES
from layerwright.registry import KINDS
from layerwright.sweep import Effect, final_states, read_rows, readings

TEXT = "the cat sat on a mat\na dog ran and the cat sat on the mat and ran\n\nthe dog\na mat and a cat and a dog\n" * 3


@pytest.fixture
def model(tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return made(tmp_path / "my model", tokenizer_folder)


def made(folder: Path, tokenizer: Path, head: str = "mlm") -> str:
    made = FACES[head].model(LayerwrightConfig(architecture="16 vocab=14 positions=16: 3x(attn ffn)"))
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    save_model(folder, made, tokenizer=tokenizer)
    return folder.name


def run(*words: Any) -> None:
    typer.main.get_command(cli.app)([str(word) for word in words], standalone_mode=False)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def numbers(row: dict[str, str]) -> dict[str, float]:
    return {name: float(row[name]) for name in Effect.model_fields if row[name]}


def test_the_files_of_an_inspection_agree(model: str, capsys: pytest.CaptureFixture[str]):
    run(
        "inspect",
        model,
        "--text",
        "text.txt",
        "--out",
        "found",
        "--batch",
        3,
        "--edited",
        "remove=1",
        "--edited",
        "duplicate=0:2",
    )
    assert sorted(path.name for path in Path("found").iterdir()) == [
        *("edits.csv", "inspection.json", "report.html", "similarity.csv", "states.csv"),
    ]
    found = Inspection.model_validate_json(Path("found/inspection.json").read_text())
    assert (found.unit, found.settings.length, found.rows) == ("block", 16, 12)
    edits = table(Path("found/edits.csv"))
    assert [(row["edit"], row["start"], row["stop"]) for row in edits[1:]] == [
        (one.change, str(one.start), str(one.stop)) for one in found.changes
    ]
    for row, effect in zip(edits, (found.unedited, *found.changes), strict=True):
        assert numbers(row) == {name: getattr(effect, name) for name in Effect.model_fields}
    states = table(Path("found/states.csv"))
    assert [row["last_unit"] for row in states] == [*("", "0", "1", "2"), *("", "0", "2"), *("", "0", "1", "0", "1", "2")]
    assert [float(row["uniformity"]) for row in states if row["uniformity"]] == list(found.uniformity)
    assert numbers(states[3]) == numbers(edits[0])
    removed = next(row for row in edits if (row["edit"], row["start"], row["stop"]) == ("remove", "1", "2"))
    assert numbers(states[6]) == numbers(removed)
    assert len(table(Path("found/similarity.csv"))) == 4 * 5 / 2
    assert "One block of 3 removed or duplicated" in capsys.readouterr().out


def test_the_page_has_each_edit_in_each_map(model: str):
    run("inspect", model, "--text", "text.txt", "--out", "found")
    found = Inspection.model_validate_json(Path("found/inspection.json").read_text())
    page = Path("found/report.html").read_text()
    maps = re.findall(r'<div class="heat (?:remove|duplicate)".*?</div>', page, re.DOTALL)
    assert len(maps) == 2 * len(Effect.model_fields)
    for drawn in maps:
        sort: Any = "remove" if "heat remove" in drawn else "duplicate"
        tips = [unescape(tip) for tip in re.findall(r"<title>(.*?)</title>", drawn, re.DOTALL)]
        wanted = [f"{sort} {one.start}:{one.stop}," for one in found.changes_of(sort)]
        assert len(tips) == len(wanted)
        assert all(tip.startswith(start) for tip, start in zip(tips, wanted, strict=True))
        assert all(f"same token: {one.agreement:.1%}" in tip for tip, one in zip(tips, found.changes_of(sort), strict=True))
    assert "http" not in page.replace("http-equiv", "")
    assert "Suggested" not in Page(page).text


READER = """<script>
const seen = {wider: document.documentElement.scrollWidth - innerWidth};
const cell = document.querySelector(".heat.duplicate [data-tip]");
cell.dispatchEvent(new PointerEvent("pointermove", {clientX: 9, clientY: 9, bubbles: true}));
const tip = document.getElementById("tip");
seen.tip = tip.hidden ? null : tip.textContent;
const [drawn] = document.querySelectorAll(".heat > svg");
seen.square = Math.abs(drawn.getBoundingClientRect().width - drawn.getBoundingClientRect().height) < 1;
document.documentElement.dataset.seen = JSON.stringify(seen);
</script></body>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_maps_on_a_phone(model: str, tmp_path: Path):
    run("inspect", model, "--text", "text.txt", "--out", "found")
    found = Inspection.model_validate_json(Path("found/inspection.json").read_text())
    (tmp_path / "read.html").write_text(Path("found/report.html").read_text().replace("</body>", READER))
    shown = browse(tmp_path / "read.html", tmp_path, "--dump-dom", "--window-size=500,900")
    root = next(attrs for tag, attrs in Page(shown).elements if tag == "html")
    assert (root.get("data-error"), root.get("data-ready")) == (None, "yes")
    seen = json.loads(root["data-seen"] or "{}")
    first = found.changes_of("duplicate")[0]
    assert seen["tip"].startswith("duplicate 0:1, block 0\n")
    assert f"masked right: {first.accuracy:.1%}" in seen["tip"]
    assert seen["wider"] <= 0, "the page is wider than a phone"
    assert seen["square"]


@pytest.mark.parametrize("head", ["backbone", "rtd"])
def test_without_an_output_layer_the_rest_is_there_and_what_is_not_is_named(
    head: str, model: str, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
):
    other = made(Path("other"), tokenizer_folder, head)
    run("inspect", other, "--text", "text.txt", "--out", "found", "--suggest", "remove=1")
    said = capsys.readouterr()
    assert f"this model has '{head}'" in said.err
    assert "greatest cosine" in said.out
    page = Path("found/report.html").read_text()
    assert f"this model has '{head}'" in unescape(page)
    assert page.count('class="heat remove"') == 2
    assert "reads every hidden state" not in page
    assert not any(row["kl"] or row["accuracy"] for row in table(Path("found/edits.csv")))


def test_the_suggested_command_makes_the_model_that_was_measured(model: str, capsys: pytest.CaptureFixture[str]):
    run("inspect", model, "--text", "text.txt", "--out", "found", "--suggest", "duplicate=2", "--suggest", "remove=1")
    found = Inspection.model_validate_json(Path("found/inspection.json").read_text())
    said = capsys.readouterr().out
    opened = open_model(Path(model), list(FACES))
    rows = read_rows(opened, Path("text.txt"), rows=12, length=16, seed=0)
    for one in found.suggestions:
        assert one.command in said
        run(*shlex.split(one.command)[1:])
        best = one.ranked[0]
        units = list(range(3))
        wanted = (
            units[: best.stop] + units[best.start :] if one.change == "duplicate" else units[: best.start] + units[best.stop :]
        )
        order = tuple(layer for unit in wanted for layer in (2 * unit, 2 * unit + 1))
        edited = open_model(Path(f"{one.change}-{best.start}-{best.stop}"), list(FACES))
        for reading in readings(opened, rows, 4):
            with opened.running(), packing(False):
                states = dict(final_states(opened, reading, [tuple(range(6)), order]))[1]
                assert torch.equal(states, edited.model.backbone(reading.ids, reading.mask).last_hidden_state)


KIND = """
from torch import nn

from layerwright.registry import layer


@layer("linear")
class Linear(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.out = nn.Linear(width, width)

    def forward(self, x, context):
        return self.out(x)
"""


def test_the_suggested_command_imports_what_the_model_needs(
    tmp_path: Path, model: str, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def forget() -> None:
        """Be as a new process, that imports what its command names."""
        KINDS.pop("linear", None)
        sys.modules.pop("outside_kind", None)

    monkeypatch.syspath_prepend(tmp_path)
    Path("outside_kind.py").write_text(KIND)
    try:
        importlib.import_module("outside_kind")
        save_model(
            Path("other"),
            FACES["mlm"].model(LayerwrightConfig(architecture="16 vocab=14 positions=16: linear attn ffn")),
            tokenizer=tokenizer_folder,
        )
        forget()
        run("inspect", "other", "--text", "text.txt", "--out", "found", "--suggest", "remove=1", "--import", "outside_kind")
        forget()
        found = Inspection.model_validate_json(Path("found/inspection.json").read_text())
        assert " --import outside_kind " in found.suggestions[0].command
        run(*shlex.split(found.suggestions[0].command)[1:])
    finally:
        forget()


def test_a_model_of_transformers_is_that_which_it_converts_to(model: str, tokenizer_folder: Path):
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=14,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertForMaskedLM(config).save_pretrained("bert")
    PreTrainedTokenizerFast.from_pretrained(tokenizer_folder).save_pretrained("bert")
    run("convert", "bert", "--out", "ours")
    inspections = []
    for name in ("bert", "ours"):
        run("inspect", name, "--text", "text.txt", "--out", f"found-{name}")
        inspections.append(json.loads(Path(f"found-{name}/inspection.json").read_text()))
        assert inspections[-1].pop("model") == name
    assert inspections[0] == inspections[1]
    assert inspections[0]["unit"] == "block"


@pytest.mark.parametrize(
    ("tokens", "said"), [(0, "there is no tokenizer in bert"), (14, "the tokenizer of bert has 14 tokens, and the model.* 13")]
)
def test_a_model_of_transformers_is_called_by_the_name_given(tokens: int, said: str, model: str, tokenizer_folder: Path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=13, max_position_embeddings=16, **sizes)).save_pretrained("bert")
    if tokens:
        PreTrainedTokenizerFast.from_pretrained(tokenizer_folder).save_pretrained("bert")
    with pytest.raises(DataError, match=f"^{said}"):
        run("inspect", "bert", "--text", "text.txt", "--out", "found")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--suggest dupliate=1", "did you mean 'duplicate'"),
        ("--suggest duplicate=7", "at most 3"),
        ("--edited remove=5", "there is no block 5"),
        ("--edited duplicate=2:1", "is empty"),
        ("--unit blok", "unit"),
        ("--rows 0", "rows"),
        ("--text nothing.txt", "nothing.txt"),
        ("--length 3", "is too little: .* 0 kept tokens .* --length"),
        ("--rows 2", "is too little: .* --rows"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(words: str, said: str, model: str):
    with pytest.raises(ValueError, match=said):
        run("inspect", model, "--text", "text.txt", "--out", "found", *words.split())
    assert not any("found" in path.name for path in Path().iterdir())


def test_what_is_there_stays(model: str):
    Path("found").mkdir()
    with pytest.raises(FileExistsError, match="found exists"):
        run("inspect", model, "--text", "text.txt", "--out", "found")
    assert not list(Path("found").iterdir())


@pytest.mark.parametrize(
    ("out", "error", "said"),
    [
        ("nowhere", FileExistsError, "nowhere exists"),
        ("nowhere/found", NotADirectoryError, "nowhere/found cannot be written: nowhere is no folder"),
        ("text.txt/found", NotADirectoryError, "text.txt/found cannot be written: text.txt is no folder"),
        ("text.txt/in/found", NotADirectoryError, "text.txt/in/found cannot be written: text.txt is no folder"),
    ],
)
def test_a_folder_that_cannot_be_is_refused_before_the_model_is_opened(
    out: str, error: type[OSError], said: str, model: str, tmp_path: Path
):
    Path("nowhere").symlink_to("gone")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=said):
        run("inspect", "no model", "--text", "text.txt", "--out", out)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tokenizer_without_mask_is_refused_where_tokens_are_masked(model: str, tokenizer_folder: Path):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = tokenizer_folder / name
        if path.exists():
            path.write_text(
                json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "mask_token"})
            )
    other = made(Path("other"), tokenizer_folder)
    with pytest.raises(DataError, match="no mask token"):
        run("inspect", other, "--text", "text.txt", "--out", "found")


def test_a_heat_map_is_palest_and_deepest_at_its_ends():
    heat = Heat("y", "x", ["a", "b"], ["c", "d"], pale=1.0, deep=0.0)
    cells = {
        (0, 0): Cell(1.0, "<1>", "one"),
        (0, 1): Cell(0.0, "0", "none"),
        (1, 0): Cell(0.5, "½", "half"),
        (1, 1): Cell(9, "9", ""),
    }
    drawn = heat.draw(cells, "summary")
    opacity = [float(value) for value in re.findall(r'fill-opacity="([\d.]+)"', drawn)]
    assert opacity == [0.08, 1.0, 0.54, 0.08]
    assert "&lt;1&gt;" in drawn
    assert drawn.count(" deep") == 1
    unknown = heat.draw({(0, 0): Cell(float("nan"), "–", "unknown")}, "summary")
    assert 'class="nothing"' in unknown
    same = Heat("y", "x", ["a"], ["b"], pale=1.0, deep=1.0).draw({(0, 0): Cell(1.0, "1", "")}, "summary")
    assert 'fill-opacity="0.08"' in same
