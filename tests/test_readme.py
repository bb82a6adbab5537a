"""What the README and the pages of docs show works: commands parse, settings exist, Python runs, links lead somewhere.

A page is tried in a folder of its own, in which `corpus` is a corpus.  A block is of a language:

    sh      every layerwright command is given to the real command line, whose work is replaced by a check of its settings
    python  run in one namespace a page; with `>>>` what it prints is compared, too
    toml    a file; so is Python whose first line is `# name.py`, which is imported besides

A block after `<!-- not run: the reason -->` is left alone.
"""

import doctest
import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from layerwright import (
    PRESETS,
    Architecture,
    cli,
    cli_corpus,
    cli_demo,
    cli_edit,
    cli_finetune,
    cli_inspect,
    cli_models,
    cli_predict,
    cli_pretrain,
    cli_report,
    cli_scores,
    cli_search,
    cli_suites,
    cost,
)
from layerwright.configuration import LayerwrightConfig
from layerwright.convert import Conversion, Source
from layerwright.corpus import Corpus, CorpusSettings
from layerwright.errors import EXIT_CODES
from layerwright.evaluation import EvaluationSettings
from layerwright.export import Export
from layerwright.families import FAMILIES
from layerwright.operations import OPERATIONS
from layerwright.options import setting_names
from layerwright.originals import Original
from layerwright.presets import architecture
from layerwright.pretrain import PretrainSettings
from layerwright.registry import KINDS
from layerwright.rewriting import Written
from layerwright.runtime import Latency
from layerwright.search import SearchSettings
from layerwright.strategies import StrategySettings
from layerwright.tasks.finetune import FinetuneSettings
from layerwright.tasks.suites import tasks_of

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
SETTINGS = {
    kind.__name__: kind
    for kind in (CorpusSettings, PretrainSettings, SearchSettings, StrategySettings, FinetuneSettings, EvaluationSettings)
}


class Block(NamedTuple):
    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that the first line names."""
        named = re.match(r"# ([\w.-]+\.(?:py|toml))\n", self.text)
        return named[1] if named else None


class Command(NamedTuple):
    page: str
    line: int
    words: list[str]


def blocks(page: str) -> list[Block]:
    text = PAGES[page].read_text(encoding="utf-8")
    found = re.finditer(r"^(<!-- not run: .+ -->\n)?```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(one[2], one[3], text[: one.start(3)].count("\n") + 1) for one in found if not one[1]]


def commands() -> Iterator[Command]:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "sh":
                for at, line in enumerate(block.text.splitlines()):
                    if words := shlex.split(line, comments=True):
                        yield Command(page, block.line + at, words)


COMMANDS = list(commands())
named = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}:{command.line}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_corpus: Corpus) -> Iterator[Path]:
    """A folder to try a page in; layer kinds and operations that the page declares are forgotten afterwards."""
    (tmp_path / "corpus").symlink_to(tiny_corpus.folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    kinds, operations, modules = dict(KINDS), dict(OPERATIONS), set(sys.modules)
    yield tmp_path
    KINDS.clear()
    KINDS.update(kinds)
    OPERATIONS.clear()
    OPERATIONS.update(operations)
    for name in set(sys.modules) - modules:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
    # Another page may declare another kind by the same name.
    cost._parameters.cache_clear()
    cost._flops.cache_clear()


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, tiny_corpus: Corpus) -> list[str]:
    """Replace what the commands do by a check of what they were told; the names of what was asked for."""
    asked: list[str] = []

    def replace(module: Any, name: str, result: Any, check: Any = lambda *told: None) -> None:
        def noted(*told: Any, **options: Any) -> Any:
            check(*told)
            asked.append(name)
            return result

        monkeypatch.setattr(module, name, noted)

    replace(cli_corpus, "build", tiny_corpus)
    replace(cli_pretrain, "pretrain", None, lambda settings, out: settings.space())
    replace(cli_pretrain, "outlook", [], lambda settings: settings.space())
    replace(cli_finetune, "finetune", None)
    replace(cli_search.search, "search", None, lambda settings, out: settings.candidates())
    replace(cli_search, "outlook", [], lambda settings: settings.candidates())
    replace(cli_report.report, "write", Path("report.html"))
    replace(cli_demo.demo, "demo", None)
    arch = Architecture.parse("64: attn ffn")
    replace(cli_models, "export", Export(Path("graph"), (), (), 0.0, (), (Latency((1, 16), {}),)))
    for module in (cli_scores, cli_predict):
        replace(module, "open_model", SimpleNamespace(positions=128))
    replace(cli_scores, "judge", SimpleNamespace(model_dump_json=lambda indent: "{}"))
    replace(cli_suites, "evaluate", None, lambda model, out, settings: tasks_of(settings.suite))
    replace(cli_suites, "compare", None, lambda first, second, out, settings: settings and tasks_of(settings.suite))
    replace(cli_predict, "Predictor", SimpleNamespace(cut=0))
    replace(cli_predict, "write_predictions", None)
    replace(cli_inspect, "opened", nullcontext(SimpleNamespace(positions=128)))
    for name in ("inspect", "write", "show"):
        replace(cli_inspect, name, None)
    base = LayerwrightConfig(architecture=architecture("bert-base").explicit())
    bert = Original(Source(Path("bert"), "bert", {}), FAMILIES["bert"], "mlm", "BertForMaskedLM", base, {}, {})
    replace(cli_edit, "open_original", bert)  # so that its edits are those of a BERT
    replace(cli_edit, "write", Written(Path("edited"), "BertForMaskedLM", 0.0))
    replace(cli_models, "convert", Conversion(Path("ours"), "BertModel", "LayerwrightModel", arch, 0.0, (), ()))
    return asked


@named
def test_a_command_is_one_that_exists(command: Command, folder: Path, done: list[str]):
    if command.words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(command.words[1:]) <= set(targets)
        return
    assert command.words[0] in ("layerwright", "torchrun", "accelerate"), "teach this test what the command is"
    for block in blocks(command.page):
        if block.file:
            (folder / block.file).write_text(block.text)
    told = command.words[command.words.index("layerwright") + 1 :]
    told = told[: told.index("<")] if "<" in told else told  # what the shell does with it
    typer.main.get_command(cli.app)(told, standalone_mode=False)
    assert done or told[0] == "show"


@pytest.mark.parametrize("words", ["pretrain --out x --stpes 3", "corpus build a.txt --out x --set vocb=3", "show '8: atn'"])
def test_a_misspelt_command_would_be_noticed(words: str, folder: Path, done: list[str]):
    with pytest.raises((typer.TyperException, ValueError), match=r"stpes|vocb|atn"):
        typer.main.get_command(cli.app)(shlex.split(words), standalone_mode=False)
    assert not done


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.language == "python" for block in blocks(page))])
def test_the_python_of_a_page_runs(page: str, folder: Path):
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text)
        if block.file and block.language == "python":
            importlib.invalidate_caches()
            importlib.import_module(block.file.removesuffix(".py"))
        elif block.language == "python" and ">>>" in block.text:
            compare(block, names, page)
        elif block.language == "python":
            # The lines of a traceback are those of the page.
            exec(compile("\n" * block.line + block.text, page, "exec"), names)


def compare(block: Block, names: dict[str, Any], page: str) -> None:
    example = doctest.DocTestParser().get_doctest(block.text, names, page, page, block.line)
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=said.append, clear_globs=False)
    assert not said, "".join(said)
    names.update(example.globs)


def tables() -> Iterator[tuple[str, type[BaseModel], dict[str, str]]]:
    """The tables of settings: name -> default, as written."""
    for page, path in PAGES.items():
        for found in re.finditer(r"<!-- settings: (\w+) -->\n\|.*\n\|.*\n((?:\|.*\n)+)", path.read_text(encoding="utf-8")):
            rows = [[cell.strip().strip("`") for cell in line.split("|")[1:3]] for line in found[2].splitlines()]
            yield page, SETTINGS[found[1]], dict(rows)


def test_every_setting_stands_in_a_table():
    listed = {kind for _, kind, _ in tables()}
    assert listed == set(SETTINGS.values())
    for page, kind, rows in tables():
        names = setting_names(kind)
        assert [row for row in rows if not any(name == row or name.startswith(f"{row}.") for name in names)] == [], page
        assert [name for name in names if not any(name == row or name.startswith(f"{row}.") for row in rows)] == [], page


def test_the_defaults_in_the_tables_are_those_of_the_settings():
    wrong = []
    for page, kind, rows in tables():
        for name, written in rows.items():
            found: Any = SimpleNamespace(default=kind)
            for part in name.split("."):
                fields = (found.default if isinstance(found.default, type) else type(found.default)).model_fields
                found = fields[part]
            default = found.default
            if isinstance(default, BaseModel):
                continue  # a group, told in words
            wanted = "needed" if default is PydanticUndefined else "" if default is None else default
            if written != (wanted if isinstance(wanted, str) else json.dumps(wanted)):
                wrong.append(f"{page}: {name} is {wanted!r}, and the page says {written}")
    assert not wrong, "\n".join(wrong)


def test_every_preset_and_exit_code_is_told():
    text = PAGES["architectures.md"].read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `([\w-]+)` \| `(\d+[^`]*)` \|$", text, re.MULTILINE)) == PRESETS
    text = PAGES["settings-and-errors.md"].read_text(encoding="utf-8")
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)} == {0, 1, *EXIT_CODES.values()}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    text = re.sub(r"^```.*?^```$", "", PAGES[page].read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target, place in re.findall(r"(?<!!)\[[^\]]+\]\(([^)#]*)#?([^)]*)\)", re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)):
        if not target.startswith("http"):
            path = PAGES[page].parent / target if target else PAGES[page]
            assert path.exists(), f"{page} links to {target}"
            if place:
                headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                assert place in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], place
