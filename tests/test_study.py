import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import optuna
import pytest
from optuna.storages import RDBStorage

import layerwright.layers  # noqa: F401
from layerwright.architecture import Architecture
from layerwright.space import Space
from layerwright.strategies import AgingEvolution, Evolution, OptunaSampler, Strategy, Trial, at_parameters, at_random
from layerwright.study import History, explore, opened, study_url

SPACE = Space.parse("64 vocab=50: 8x{conv|attn|ffn} {attn ffn|}")
IDENTITY = {"space": str(SPACE), "seed": "0"}
EVOLUTION = Evolution(population=6, parents=3)


def worth(arch: Architecture) -> float:
    return sum(Random(f"{place}/{layer.kind}").random() for place, layer in enumerate(arch.layers)) / 3


def history(storage: RDBStorage, name: str = "search", identity: dict[str, str] = IDENTITY) -> History:
    return History(storage, name, SPACE, identity)


def run(url: str, trials: int, strategy: Strategy = EVOLUTION) -> list[Trial]:
    with opened(url) as storage:
        kept = history(storage)
        for _ in explore(kept, strategy, worth, trials=trials, seed=0):
            pass
        return kept.trials


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def storage(url: str) -> Iterator[RDBStorage]:
    with opened(url) as storage:
        yield storage


def test_a_trial_is_recorded_with_its_path_costs_and_time(storage: RDBStorage) -> None:
    kept = history(storage)
    for _ in explore(kept, at_random, worth, trials=3, seed=0, costs=lambda arch: {"parameters": len(arch)}):
        pass
    trials = optuna.load_study(study_name="search", storage=storage).trials
    assert [Architecture.parse(trial.user_attrs["arch"]) for trial in trials] == [trial.arch for trial in kept.trials]
    assert [at_parameters(SPACE, trial.params) for trial in trials] == [trial.arch for trial in kept.trials]
    assert [trial.value for trial in trials] == [worth(trial.arch) for trial in kept.trials]
    rows = kept.rows()
    assert [row["arch"] for row in rows] == [str(trial.arch) for trial in kept.trials]
    assert [row["parameters"] for row in rows] == [len(trial.arch) for trial in kept.trials]
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert all(row["seconds"] >= 0 for row in rows)


@pytest.mark.parametrize(
    "strategy", [EVOLUTION, AgingEvolution(population=6, tournament=2), OptunaSampler("TPESampler", n_startup_trials=4)]
)
def test_parts_make_the_whole(tmp_path: Path, strategy: Strategy) -> None:
    whole = run(f"sqlite:///{tmp_path}/whole.db", 16, strategy)
    for part in (5, 6, 11, 16, 16):
        assert run(f"sqlite:///{tmp_path}/parts.db", part, strategy) == whole[:part]


def test_an_abandoned_trial_is_failed_and_proposed_again(tmp_path: Path, url: str) -> None:
    whole = run(f"sqlite:///{tmp_path}/whole.db", 10)

    def dies(arch: Architecture) -> float:
        raise KeyboardInterrupt

    run(url, 7)
    for _ in range(2):
        with opened(url) as storage, pytest.raises(KeyboardInterrupt):
            next(explore(history(storage), EVOLUTION, dies, trials=10, seed=0))
    assert run(url, 10) == whole
    with opened(url) as storage:
        states = [trial.state.name for trial in optuna.load_study(study_name="search", storage=storage).trials]
    assert states == ["COMPLETE"] * 7 + ["FAIL"] * 2 + ["COMPLETE"] * 3


def test_scores_that_are_not_finite_are_recorded_and_named(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    def breaks(arch: Architecture) -> float:
        if arch.layers[0].kind == "attn":
            raise FloatingPointError("the loss is nan")
        return math.nan if arch.layers[0].kind == "ffn" else worth(arch)

    with opened(url) as storage:
        kept = history(storage)
        for _ in explore(kept, EVOLUTION, breaks, trials=24, seed=0):
            pass
        rows = kept.rows()
    reasons = {"attn": "the loss is nan", "ffn": "its score is nan", "conv": None}
    firsts = [Architecture.parse(row["arch"]).layers[0].kind for row in rows]
    assert set(firsts) == set(reasons)
    assert [row.get("failure") for row in rows] == [reasons[first] for first in firsts]
    assert [row["score"] is None for row in rows] == [first != "conv" for first in firsts]
    assert "failed: its score is nan" in capsys.readouterr().err
    with opened(url) as storage:
        assert history(storage).trials == kept.trials
    assert [math.isinf(trial.score) for trial in kept.trials] == [first != "conv" for first in firsts]


def test_an_exhausted_space_ends_the_search(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    small = Space.parse("64 vocab=50: 2x{conv|attn|ffn}")
    with opened(url) as storage:
        kept = History(storage, "search", small, {})
        assert len(list(explore(kept, EVOLUTION, worth, trials=20, seed=0))) == 9
    assert "nothing new within the limits was found after 9 trials" in capsys.readouterr().err


def test_two_studies_share_a_storage(storage: RDBStorage) -> None:
    search, control = history(storage), history(storage, "random")
    list(explore(search, EVOLUTION, worth, trials=3, seed=0))
    list(explore(control, at_random, worth, trials=2, seed="0/random"))
    assert [len(history(storage, name).trials) for name in ("search", "random")] == [3, 2]


def test_a_study_of_another_search_is_refused(storage: RDBStorage) -> None:
    history(storage)
    with pytest.raises(ValueError, match=r"the study 'search' in sqlite:.* belongs to another search: its seed is 0, not 1"):
        history(storage, identity=IDENTITY | {"seed": "1"})


def test_storages_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    for url in ("nonsense", "nosuch://host/db"):
        with pytest.raises(ValueError, match="is not a storage that Optuna can use"), opened(url):
            pass
    with (
        pytest.raises(OSError, match=r"cannot read or write the studies in sqlite:///.*unable to open"),
        opened(f"sqlite:///{tmp_path}/missing/study.db"),
    ):
        pass
    (tmp_path / "torn.db").write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(OSError, match="file is not a database"), opened(f"sqlite:///{tmp_path}/torn.db"):
        pass


KILLED = """
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[2])
from test_study import EVOLUTION, explore, history, opened, worth

chance = random.Random(int(sys.argv[3]))
for death in range(8):
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        def tells(arch):
            os.write(told, b"x")
            time.sleep(chance.uniform(0, 0.02))
            return worth(arch)

        with opened(sys.argv[1]) as storage:
            for _ in explore(history(storage), EVOLUTION, tells, trials=1000, seed=0):
                pass
    for _ in range(chance.randrange(6)):
        os.read(ready, 1)
    time.sleep(chance.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_killed_at_random_moments_it_makes_the_same_trials(tmp_path: Path, url: str) -> None:
    script = [sys.executable, "-W", "ignore", "-c", KILLED, url, str(Path(__file__).parent), "1"]
    found = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    with opened(url) as storage:
        states = [trial.state.name for trial in optuna.load_study(study_name="search", storage=storage).trials]
    assert "RUNNING" in states or "FAIL" in states
    trials = run(url, states.count("COMPLETE") + 5)
    assert len(trials) > 5
    assert trials == run(f"sqlite:///{tmp_path}/whole.db", len(trials))


@pytest.mark.parametrize("name", ["8x{conv|attn|ffn}", "what?", "100%20#sure", "a b"])
def test_a_folder_may_have_any_name(tmp_path, name):
    (tmp_path / name).mkdir()
    with opened(study_url(tmp_path / name / "study.db")) as storage:
        assert optuna.create_study(storage=storage).study_name
    assert (tmp_path / name / "study.db").is_file()
