"""Keep the trials of a search in an Optuna study: all that a search remembers, and all it needs to go on.

A trial is written when its architecture is proposed and again when its score is known, each in one transaction. A process
that is killed between the two leaves a trial that never ends: the next one fails it and proposes the same once more.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from .architecture import Architecture
from .console import track, warn
from .space import Space
from .strategies import Strategy, Trial, distributions, parameters, propose, quiet_optuna

Score = Callable[[Architecture], float]


def study_url(path: Path) -> str:
    """Return the URL of the studies in a file, whatever characters are in its name."""
    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


@contextmanager
def opened(url: str) -> Iterator[RDBStorage]:
    """Open an Optuna storage, such as sqlite:///study.db, and close it after the block.

    Raises:
        ValueError: not a storage that Optuna knows.
        OSError: it cannot be reached, read or written.
    """
    with _storing(url), quiet_optuna():
        # A dashboard that reads the same file may hold it for a while.
        patience = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
        storage = RDBStorage(url, engine_kwargs=patience)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


class History:
    """The trials of one study, in the order they were proposed; abandoned ones are left out.

    identity: what the study belongs to, written into it.

    Raises:
        ValueError: a study of this name belongs to another search.
        OSError: the storage cannot be read or written.
    """

    def __init__(self, storage: RDBStorage, name: str, space: Space, identity: Mapping[str, str]) -> None:
        self.space, self.name = space, name
        self._storage = storage
        with _storing(storage.url), quiet_optuna():
            self._study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, direction="maximize")
            self._id = storage.get_study_id_from_name(name)
            self._claim(identity)
            for abandoned in self._study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
                self._study.tell(abandoned.number, state=TrialState.FAIL)
            self.trials = [
                Trial(number, Architecture.parse(kept.user_attrs["arch"]), -math.inf if kept.value is None else kept.value)
                for number, kept in enumerate(self._kept())
            ]

    def evaluate(self, arch: Architecture, score: Score, costs: Mapping[str, int]) -> Trial:
        """Score an architecture and record it; a score that is not finite is recorded as a failure, with a warning."""
        begun = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=parameters(self.space, arch),
            distributions=dict(distributions(self.space)),
            user_attrs={"arch": arch.explicit(), **costs},
        )
        with _storing(self._storage.url):
            key = self._storage.create_new_trial(self._id, begun)
        try:
            value = float(score(arch))
            failure = "" if math.isfinite(value) else f"its score is {value}"
        except FloatingPointError as error:
            value, failure = math.nan, str(error)
        with _storing(self._storage.url):
            if failure:
                warn(f"{self.name}: {arch} failed: {failure}")
                self._storage.set_trial_user_attr(key, "failure", failure)
                self._storage.set_trial_state_values(key, TrialState.FAIL)
            else:
                self._storage.set_trial_state_values(key, TrialState.COMPLETE, [value])
        self.trials.append(Trial(len(self.trials), arch, -math.inf if failure else value))
        return self.trials[-1]

    def rows(self) -> list[dict[str, Any]]:
        """Return every trial with its costs and seconds; where it failed `score` is None and `failure` says why."""
        with _storing(self._storage.url):
            return [{"number": number, **_row(trial)} for number, trial in enumerate(self._kept())]

    def _kept(self) -> list[FrozenTrial]:
        """List the trials that ended: with a score, or with the reason why there is none."""
        trials = self._study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.FAIL])
        return [trial for trial in trials if trial.state == TrialState.COMPLETE or "failure" in trial.user_attrs]

    def _claim(self, identity: Mapping[str, str]) -> None:
        """Write what the study belongs to into a new one, and compare it with that of an old one."""
        found = self._study.user_attrs
        for key, value in identity.items():
            if found.get(key, value) != value:
                raise ValueError(
                    f"the study '{self.name}' in {_shown(self._storage.url)} belongs to another search: "
                    f"its {key} is {found[key]}, not {value}"
                )
            if key not in found:
                self._study.set_user_attr(key, value)


def explore(
    history: History,
    strategy: Strategy,
    score: Score,
    *,
    trials: int,
    seed: int | str,
    costs: Callable[[Architecture], Mapping[str, int]] = lambda arch: {},
    allowed: Callable[[Architecture], bool] = lambda arch: True,
) -> Iterator[Trial]:
    """Propose, score and record until the history holds so many trials; yield after each.

    A history that holds some goes on as one that was never interrupted. It ends early, with a warning, when nothing new can
    be proposed.
    """
    best = max((trial.score for trial in history.trials), default=-math.inf)
    with track(history.name, trials, min(len(history.trials), trials)) as advance:
        while len(history.trials) < trials:
            arch = propose(strategy, history.space, history.trials, seed=seed, allowed=allowed)
            if arch is None:
                warn(f"{history.name}: nothing new within the limits was found after {len(history.trials):,} trials")
                return
            trial = history.evaluate(arch, score, costs(arch))
            best = max(best, trial.score)
            advance(score=trial.score, best=best)
            yield trial


@contextmanager
def _storing(url: str) -> Iterator[None]:
    """Say in one line what went wrong with a storage."""
    try:
        yield
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise ValueError(f"{_shown(url)} is not a storage that Optuna can use: {error}") from error
    except (OptunaError, SQLAlchemyError) as error:
        raise OSError(f"cannot read or write the studies in {_shown(url)}: {error.__cause__ or error}") from error


def _shown(url: str) -> str:
    """Return a URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def _row(trial: FrozenTrial) -> dict[str, Any]:
    costs = {key: value for key, value in trial.user_attrs.items() if key != "arch"}
    seconds = trial.duration.total_seconds() if trial.duration else 0.0
    return {"arch": str(Architecture.parse(trial.user_attrs["arch"])), "score": trial.value, **costs, "seconds": seconds}
