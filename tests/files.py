"""Files that a test writes, and what is said of those that cannot be read."""

from pathlib import Path

import pytest

from layerwright.errors import DataError, exit_code
from layerwright.tasks.reading import read_file


def written(folder: Path, content: str | bytes, name: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path, *arguments: object, **more: object) -> str:
    with pytest.raises(DataError) as caught:
        read_file(path, *arguments, **more)
    assert exit_code(caught.value) == 3
    assert str(path) in str(caught.value)
    return str(caught.value)
