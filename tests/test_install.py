"""What `make` installs: the exact versions in constraints.txt fit the ranges in pyproject.toml, on every supported Python."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_constraint_is_one_exact_public_version():
    for line in LINES:
        assert re.fullmatch(r"[\w.-]+==[\w.]+", line), f"{line!r} is not NAME==VERSION, or names a build of one machine"
    assert len({plain(line.partition("==")[0]) for line in LINES}) == len(LINES)


def test_every_dependency_is_pinned_within_its_range():
    pinned = {plain(name): Version(version) for name, _, version in (line.partition("==") for line in LINES)}
    project = PROJECT["project"]
    wanted = project["dependencies"] + [text for extra in project["optional-dependencies"].values() for text in extra]
    for requirement in map(Requirement, wanted + PROJECT["build-system"]["requires"]):
        assert pinned[plain(requirement.name)] in requirement.specifier, requirement


def test_make_installs_the_pinned_torch():
    torch = next(line for line in LINES if line.startswith("torch=="))
    assert f" {torch}\n" in (ROOT / "Makefile").read_text()
