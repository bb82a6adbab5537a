"""Read the English that every Python carries: the standard library's docstrings and the topics of pydoc's help.

This is the text to start from where no other is at hand: about 2 MB, without a network. Sources are parsed and never
imported, so that nothing runs and every platform gives the same documents.
"""

import ast
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from layerwright.errors import DataError

_NOT_DOCUMENTATION = {"__pycache__", "dist-packages", "idle_test", "lib2to3", "site-packages", "test", "tests"}
_RULER = re.compile(r"[\s=*~^+-]*")
_WORD = re.compile(r"[A-Za-z]{2,}")
_PLAIN = re.compile(r"[A-Za-z\s.,;]")


def python_documents() -> Iterator[tuple[str, str]]:
    """Yield (package, text) for every module, function and top-level class with its methods, and every topic of pydoc.

    A text has a paragraph a line; examples and other code are left out, and so is what an earlier document has said.
    The order is that of the files' names.
    Raises: DataError where the standard library comes without its sources.
    """
    root = sysconfig.get_path("stdlib")
    said: set[str] = set()
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - _NOT_DOCUMENTATION)
        for path in (Path(folder, name) for name in sorted(files) if name.endswith(".py")):
            package = path.relative_to(root).with_suffix("").parts[0]
            for strings in _documentation(path):
                paragraphs = [line for line in prose("\n\n".join(strings)) if line not in said]
                said.update(paragraphs)
                if paragraphs:
                    yield package, "\n".join(paragraphs)
    if not said:
        raise DataError(f"no Python sources in {root}: the text 'python' needs a standard library that carries them")


def prose(text: str) -> Iterator[str]:
    """Yield the paragraphs of a docstring that read as English, each unwrapped to one line."""
    for block in re.split(r"\n\s*\n", text):
        lines = block.partition(">>>")[0].splitlines()
        paragraph = " ".join(" ".join(line for line in lines if not _RULER.fullmatch(line)).split())
        # Punctuation gives code away: prose is nine tenths letters and blanks.
        if len(_WORD.findall(paragraph)) >= 3 and len(_PLAIN.findall(paragraph)) >= 0.88 * len(paragraph):
            yield paragraph


def _documentation(path: Path) -> Iterator[list[str]]:
    """Yield the strings of each document of a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # some files are broken on purpose, to be templates
        return
    yield [ast.get_docstring(module) or ""]
    for node in module.body:
        if path.parent.name == "pydoc_data" and isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from ([topic] for topic in ast.literal_eval(node.value).values())
        yield [
            ast.get_docstring(inner) or ""
            for inner in ast.walk(node)
            if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        ]
