"""The command line starts without what a command does not use, and knows of each command what the command says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from layerwright import cli
from layerwright.handover import save_model
from layerwright.models import LayerwrightConfig, LayerwrightModel

HEAVY = ("torch", "transformers", "accelerate", "optuna", "sklearn", "scipy", "datasets", "numpy")
COMMAND = str(Path(sys.executable).with_name("layerwright"))
LISTED = """
import json, sys
program = sys.argv[1]
del sys.argv[0]
if program == "-m":
    import runpy
    sys.orig_argv = ["python", "-m", "layerwright", *sys.argv[1:]]
try:
    runpy.run_module("layerwright", run_name="__main__") if program == "-m" else exec(open(program).read())
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(list(sys.modules)))
"""


def imported(*words: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", LISTED, *words], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("program", ["-m", COMMAND])
@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_needs_no_heavy_package(program: str, words: list[str]) -> None:
    found = imported(program, *words)
    assert "layerwright.cli" in found
    assert found.isdisjoint(HEAVY)


def test_show_needs_torch_and_nothing_of_learning_or_searching() -> None:
    found = imported(COMMAND, "show", "debug")
    assert "torch" in found
    assert found.isdisjoint(
        {"transformers", "accelerate", "optuna", "sklearn", "datasets", "layerwright.models", "torch._dynamo"}
    )


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_line_of_a_command_is_its_own(name: str) -> None:
    command = cli.load(name)
    assert command.name == name
    assert (command.help or "").split("\n\n")[0].replace("\n", " ") == cli.COMMANDS[name].line


def test_every_command_of_the_files_is_known() -> None:
    files = {entry.file for entry in cli.COMMANDS.values()}
    assert files == {path.stem for path in Path(cli.__file__).parent.glob("cli_*.py")}


def test_a_misspelt_command_is_told_the_right_one() -> None:
    with pytest.raises(typer.TyperException, match="Did you mean 'pretrain'"):
        typer.main.get_command(cli.app)(["pretrian"], standalone_mode=False)


@pytest.mark.parametrize("first", ["", "from layerwright.registry import layer\n", "import transformers\n"])
def test_transformers_knows_our_models_after_the_package_is_imported(tmp_path: Path, first: str) -> None:
    save_model(tmp_path / "model", LayerwrightModel(LayerwrightConfig(architecture="16 vocab=20 positions=8: attn")))
    code = (
        f"{first}import layerwright\nfrom transformers import AutoModel\nprint(type(AutoModel.from_pretrained('model')).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "LayerwrightModel\n"


def test_so_it_does_for_a_module_that_a_command_imports(tmp_path: Path) -> None:
    save_model(tmp_path / "model", LayerwrightModel(LayerwrightConfig(architecture="16 vocab=20 positions=8: attn")))
    (tmp_path / "mine.py").write_text(
        "from layerwright import architecture\nfrom transformers import AutoModel\n"
        "print(architecture('debug').width, type(AutoModel.from_pretrained('model')).__name__)"
    )
    words = [COMMAND, "show", "debug", "--import", "mine"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("32 LayerwrightModel\n")
