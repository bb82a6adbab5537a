"""The rules of the house that a machine can check, read off the syntax trees of the package's files.

The ranks stand in docs/design.md, in the block marked `ranks`, and nowhere else.  A file imports only files of a lower rank,
so no cycle is possible.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import layerwright

PACKAGE = Path(layerwright.__file__).parent
DESIGN = PACKAGE.parent / "docs" / "design.md"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

LAST = 1_000  # the rank of a file that has none
LONGEST_FILE, LONGEST_FUNCTION, MOST_ARGUMENTS = 400, 60, 7
# Imported where they are used: large, and only there for those who installed them.
OPTIONAL = {"datasets", "pyarrow"}
# What they read can run code.
UNSAFE = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_FILES = {"utils", "common", "helpers", "base", "core", "misc", "manager", "config", "types"}
FORBIDDEN_IN_CLASSES = {"Manager", "Handler", "Helper", "Impl", "Base", "Abstract", "New", "V2"}
FORBIDDEN = {"data", "info", "obj", "manager", "helper", "impl"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"), file)


def ranks() -> dict[str, int]:
    block = re.search(r"```ranks\n(.*?)```", DESIGN.read_text(encoding="utf-8"), re.DOTALL)
    assert block, "docs/design.md has no block of ranks"
    table: dict[str, int] = {}
    for line in block[1].splitlines():
        rank, *files = line.split()
        for file in files:
            assert file not in table, f"{file} has two ranks"
            table[file] = int(rank)
    return table


def module_file(module: str) -> str | None:
    """The file of a module of the package, `layerwright.layers.context` -> layers/context.py."""
    path = module.partition(".")[2].replace(".", "/")
    return next((file for file in (f"{path}.py", f"{path}/__init__.py".removeprefix("/")) if file in FILES), None)


def imported(file: str, node: ast.AST) -> list[str]:
    """The full names of the modules, or of the names in them, that an import statement mentions."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    module = node.module or ""
    if node.level:
        above = ["layerwright", *file.split("/")][: -node.level]
        module = ".".join([*above, module] if module else above)
    return [f"{module}.{alias.name}" for alias in node.names]


def own_files(file: str) -> Iterator[tuple[int, str]]:
    """Line number and file of everything of the package that a file imports; the name itself where there is no such file."""
    for node in ast.walk(tree(file)):
        for name in imported(file, node):
            if name.partition(".")[0] == "layerwright":
                yield node.lineno, module_file(name) or module_file(name.rpartition(".")[0]) or name


def functions(node: ast.AST) -> Iterator[Function]:
    return (child for child in ast.walk(node) if isinstance(child, Function))


def report(wrong: list[str]) -> None:
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_file_has_a_rank_and_every_rank_a_file():
    report([f"{file} has no rank in docs/design.md" for file in FILES if file not in ranks()])
    report([f"docs/design.md ranks {file}, which does not exist" for file in ranks() if file not in FILES])


def test_a_file_imports_only_lower_ranks():
    rank = ranks()
    report(
        [
            f"{file}:{line} (rank {rank.get(file)}) imports {target} (rank {rank.get(target)})"
            for file in FILES
            for line, target in own_files(file)
            if rank.get(target, LAST) >= rank.get(file, LAST)
        ]
    )


def test_imports_stand_at_the_top_and_only_optional_packages_within_functions():
    wrong = []
    for file in FILES:
        inside = {node for function in functions(tree(file)) for node in ast.walk(function)}
        for node in ast.walk(tree(file)):
            for name in imported(file, node):
                optional = name.partition(".")[0] in OPTIONAL
                if optional != (node in inside):
                    wrong.append(f"{file}:{node.lineno} imports {name} {'inside a function' if node in inside else 'at the top'}")
    report(wrong)


def test_nothing_is_unpickled():
    wrong = []
    for file in FILES:
        for node in ast.walk(tree(file)):
            names = imported(file, node)
            if isinstance(node, ast.Call):
                names = [ast.unparse(node.func)]
                unsafe = {key.arg for key in node.keywords if ast.unparse(key.value) != "False"}
                names += ["torch.load"] if "allow_pickle" in unsafe else []
            wrong += [
                f"{file}:{node.lineno} uses {name}"
                for name in names
                if name.partition(".")[0] in UNSAFE or name in ("torch.load", "torch.save")
            ]
    report(wrong)


def test_files_functions_and_argument_lists_are_short():
    wrong = []
    for file in FILES:
        lines = len((PACKAGE / file).read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            wrong.append(f"{file} has {lines} lines, more than {LONGEST_FILE}")
        for function in functions(tree(file)):
            where = f"{file}:{function.lineno} {function.name}"
            length = (function.end_lineno or 0) - function.lineno + 1
            if length > LONGEST_FUNCTION:
                wrong.append(f"{where} has {length} lines, more than {LONGEST_FUNCTION}")
            given = [argument.arg for argument in arguments(function) if argument.arg not in ("self", "cls")]
            if len(given) > MOST_ARGUMENTS and not is_command(function) and not is_kernel(function):
                wrong.append(f"{where} takes {len(given)} arguments, more than {MOST_ARGUMENTS}")
    report(wrong)


def arguments(function: Function) -> list[ast.arg]:
    given = function.args
    return [*given.posonlyargs, *given.args, *given.kwonlyargs]


def is_command(function: Function) -> bool:
    """Whether a function is a command: each of its arguments is an option of the command line."""
    return any(re.search(r"\.(command|callback)\(", ast.unparse(decorator)) for decorator in function.decorator_list)


def is_kernel(function: Function) -> bool:
    """Whether a function is compiled for a device, to which only pointers and numbers can be sent, one by one."""
    return any(ast.unparse(decorator) == "triton.jit" for decorator in function.decorator_list)


def test_names_say_what_things_are():
    wrong = [f"{file} has a name that says nothing" for file in FILES if Path(file).stem in FORBIDDEN_FILES]
    for file in FILES:
        for node in ast.walk(tree(file)):
            name, forbidden = "", FORBIDDEN
            if isinstance(node, ast.ClassDef):
                name, forbidden = node.name, FORBIDDEN_IN_CLASSES
            elif isinstance(node, Function):
                name = node.name
            elif isinstance(node, ast.arg):
                name = node.arg
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name = node.id
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                name = node.attr
            words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).split("_")
            if bad := forbidden.intersection(words):
                wrong.append(f"{file}:{node.lineno} {name}: '{bad.pop()}' says nothing")  # type: ignore[attr-defined]
    report(wrong)


def test_every_public_name_has_a_docstring():
    def missing(node: ast.Module | ast.ClassDef | Function, where: str) -> Iterator[str]:
        if not ast.get_docstring(node):
            yield f"{where} has no docstring"
        if not isinstance(node, Function):
            for child in node.body:
                if isinstance(child, ast.ClassDef | Function) and not child.name.startswith("_"):
                    yield from missing(child, f"{where}:{child.name}")

    report([text for file in FILES for text in missing(tree(file), file)])


@pytest.mark.parametrize("name", getattr(layerwright, "__all__", []))
def test_an_exported_name_exists_and_says_what_it_is(name: str):
    value = getattr(layerwright, name)
    if isinstance(value, type) or callable(value):
        assert value.__doc__, f"{name} has no docstring"


def test_the_exported_names_are_exactly_the_public_ones():
    tree_of_names = next(node for node in tree("__init__.py").body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in tree_of_names.body for alias in node.names}
    assert layerwright.__all__, "nothing is exported"
    assert sorted(layerwright.__all__) == sorted(told)
    assert told == layerwright._FILES
    submodules = {file.partition("/")[0].removesuffix(".py") for file in FILES}
    ours = {name for name, value in vars(layerwright).items() if not name.startswith("_")} - submodules
    assert ours - set(told) == {"TYPE_CHECKING", "Any", "ModuleType", "Path", "import_module", "sys"}


def test_a_name_is_what_it_says_although_a_file_has_it_too():
    code = "import layerwright.train, layerwright.pretrain, layerwright; print(layerwright.train, layerwright.pretrain)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"<function train at \w+> <function pretrain at \w+>\n", said)
