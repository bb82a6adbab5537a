"""Find a better sequence of layers: train a supernet, search it, and train what was found from scratch beside baselines.

Every stage leaves files from which the next goes on: a pre-training run, a study, more pre-training runs. So a search that was
killed, or that is asked for more trials or seeds than before, does only what is missing.
"""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from . import presets, ranking, token_uniformity
from .architecture import Architecture
from .candidates import Candidates, Limits, ranked
from .checkpoint import MANIFEST, Signals, hold, sealed
from .console import track, warn
from .corpus import Corpus
from .errors import Interrupted
from .formula_page import holds_formulas
from .objectives import MaskedLM
from .population import Population
from .pretrain import Objective, PretrainSettings, held_out, load, make_objective, pretrain, seconds_per_step
from .proxy import Proxy
from .recipe import check_pieces
from .settings import sync_folder, write_atomically
from .space import Space
from .strategies import StrategySettings, Trial, at_random
from .study import History, explore, opened, study_url
from .train import Plan, make_accelerator


def _lasting(minutes: float) -> BeforeValidator:
    """Let a plan of which only other settings are given last its usual minutes."""

    def complete(plan: Any) -> Any:
        if isinstance(plan, Plan):
            plan = plan.model_dump(exclude_none=True)
        if isinstance(plan, Mapping) and not {"steps", "tokens", "minutes"} & plan.keys():
            return {"minutes": minutes, **plan}
        return plan

    return BeforeValidator(complete)


class SearchSettings(BaseModel):
    """Say what to search, how, and what to train from scratch afterwards.

    trials, controls: candidates that the strategy and, for comparison, chance propose; as many of each unless said otherwise.
    supernet, retrain: the trainings. Minutes of `retrain` are those of the interleaved baseline, and the others get as many
    steps. top: best candidates to retrain. spread: others, evenly over the ranking, with one seed. baselines: interleaved,
    sandwich, random (one of the space), presets or texts. seeds: trainings of each of the top and the baselines. storage: URL of
    an Optuna storage instead of the file study.db. gigabytes: memory for what candidates begin with, so that
    others that begin so need not compute it; scores do not depend on it. usual: of the formulas left open that a step of the
    supernet trains, the share that is plain attention. proxy: steps that a candidate trains, with the weights it inherits
    and a rate that rises and falls as in `supernet`, before it is scored.

    Masked language modelling is the default because its scores compare: replaced tokens are the harder to tell the better
    the generator is, and every architecture trains its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: str
    corpus: Path
    strategy: StrategySettings = StrategySettings()
    trials: int = Field(500, ge=1)
    controls: int | None = Field(None, ge=0)
    limits: Limits = Limits()
    fitness: Literal["accuracy", "loss"] = "accuracy"
    top: int = Field(3, ge=1)
    spread: int = Field(0, ge=0)
    baselines: tuple[str, ...] = ("interleaved", "sandwich", "random")
    seeds: int = Field(1, ge=1)
    supernet: Annotated[Plan, _lasting(20)] = Plan(minutes=20)
    retrain: Annotated[Plan, _lasting(5)] = Plan(minutes=5)
    objective: Literal["rtd", "mlm"] = "mlm"
    generator: str = "1/4"
    batch: int = Field(128, ge=1)
    length: int = Field(128, ge=8)
    dropout: float = Field(0.1, ge=0, lt=1)
    usual: float = Field(0.5, ge=0, le=1)
    proxy: int = Field(0, ge=0)
    evaluate_rows: int = Field(256, ge=1)
    seed: int = 0
    storage: str | None = None
    gigabytes: float = Field(2.0, ge=0)

    def training(self, arch: Architecture | Space, plan: Plan, seed: int = 0) -> PretrainSettings:
        """Return the settings of one training of this search; `seed` counts from the search's own."""
        shared = self.model_dump(include=PretrainSettings.model_fields.keys() - {"arch", "plan", "seed"})
        return PretrainSettings(arch=arch.explicit(), plan=plan, seed=self.seed + seed, **shared)

    def candidates(self) -> Candidates:
        """Return what may be proposed.

        Raises:
            ValueError: a text that is no space, a limit that no architecture meets, or an unknown baseline.
        """
        return Candidates(presets.space(self.space), self.limits, self.baselines, self.length)

    @property
    def score_name(self) -> str:
        """What the scores are, for people."""
        if self.fitness == "loss":
            return "held-out loss, negated"
        return {"mlm": "held-out masked-token accuracy", "rtd": "held-out replaced-token accuracy"}[self.objective]


# More of these is more of the same search: what is there stays valid.
MAY_CHANGE = ("trials", "controls", "top", "spread", "baselines", "seeds", "gigabytes")


def search(settings: SearchSettings, out: Path) -> dict[str, Any]:
    """Search as the settings say, or go on with what `out` holds; return what results.json says.

    Raises:
        ValueError: settings that do not fit, a limit that no architecture meets, or a folder of another search.
        RunInUse: another process searches in this folder.
        Interrupted: asked to stop; the same call goes on.
        FloatingPointError: the supernet, every candidate, or everything trained from scratch did not stay finite.
    """
    run = _Run(settings, out)
    with hold(out) if run.machine.is_main_process else nullcontext(), Signals() as signals:
        if run.machine.is_main_process:
            sealed(out, settings.model_copy(update={"space": run.space.explicit()}), MAY_CHANGE)
            (out / "chosen.json").unlink(missing_ok=True)
        run.machine.wait_for_everyone()
        return run.finish(signals)


class _Run:
    """One search on its way: what every stage needs, and what is known so far."""

    def __init__(self, settings: SearchSettings, out: Path) -> None:
        self.settings, self.out = settings, out
        self.candidates = settings.candidates()
        self.space = self.candidates.space
        self.corpus = Corpus.open(settings.corpus)
        self.machine = make_accelerator()
        self.held = held_out(self.corpus, settings.training(self.space, settings.supernet))
        for name, plan in (("supernet", settings.supernet), ("retrain", settings.retrain)):
            check_pieces(settings.training(self.space, plan), self.machine.num_processes, name)
        for arch in filter(None, self.candidates.baselines.values()):
            if arch.vocab < self.corpus.vocab or arch.positions < settings.length:
                # Refused now, not when everything else is done.
                make_objective(settings.training(arch, settings.retrain), self.corpus)
        self.plateau: float | None = None
        self.results: dict[str, Any] = {}

    def finish(self, signals: Signals) -> dict[str, Any]:
        """Do what is missing of every stage: the main process explores, all processes train."""
        training = self.settings.training(self.space, self.settings.supernet)
        supernet = pretrain(training, self.out / "supernet", label="supernet").to(self.machine.device)
        _stop_if(signals)
        if self.machine.is_main_process:
            self._describe(supernet)
            self._explore(supernet, signals)
        chosen = self._chosen(signals)
        plan = self._plan()
        # All with one seed before the next, so that what there is after a while can be compared.
        jobs = [(one, seed) for seed in range(self.settings.seeds) for one in chosen if seed < one["seeds"]]
        with track("from scratch", len(jobs)) as advance:
            for one, seed in jobs:
                self._retrain(one, plan, seed)
                advance(of=one["name"])
                _stop_if(signals)
        if self.machine.is_main_process:
            self._conclude()
        self.machine.wait_for_everyone()
        return self.results or dict(json.loads((self.out / "results.json").read_text(encoding="utf-8")))

    def _describe(self, supernet: Objective) -> None:
        """Begin the results with what is known before the search."""
        settings, run = self.settings, self.out / "supernet"
        if isinstance(supernet, MaskedLM):
            self.plateau = ranking.unigram_loss(self.corpus, self.held, supernet)
        self.results = {
            "title": self.out.resolve().name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "finished": False,
            "space": str(self.space),
            "corpus": {
                "folder": str(settings.corpus),
                "fingerprint": self.corpus.fingerprint,
                "tokens": len(self.corpus.tokens("train")),
                "vocab": self.corpus.vocab,
            },
            "settings": settings.model_dump(mode="json", exclude_none=True, exclude={"storage"}),
            "score_name": settings.score_name,
            "seconds": {"supernet": _result(run)["seconds"], "search": 0.0, "retrain": 0.0},
            "supernet_curve": ranking.curve(run, "loss"),
            "plateau": {"unigram_loss": self.plateau, "below": ranking.BELOW_PLATEAU},
            "trials": [],
            "random": [],
            "standalone": [],
            "failures": [],
            "winner": None,
            "finetune": None,
        }

    def _explore(self, supernet: Objective, signals: Signals) -> None:
        """Let the strategy and chance propose, and write what to train from scratch into chosen.json."""
        settings, judge = self.settings, self._judge(supernet)
        found = {}
        controls = settings.trials if settings.controls is None else settings.controls
        url = settings.storage or study_url(self.out.resolve() / "study.db")
        with opened(url) as storage:
            for name, strategy, trials, seed in (
                ("search", settings.strategy.strategy(), settings.trials, f"{settings.seed}"),
                ("random", at_random, controls, f"{settings.seed}/random"),
            ):
                # On a server there are other searches.
                study = name if settings.storage is None else f"{self.out.resolve().name}/{name}"
                history = History(storage, study, self.space, self._identity())
                exploring = explore(
                    history,
                    strategy,
                    lambda arch: self._score_of(judge.score(arch)),
                    trials=trials,
                    seed=seed,
                    costs=self.candidates.costs,
                    allowed=self.candidates.allowed,
                )
                for _ in exploring:
                    _stop_if(signals)
                found[name] = history.trials[:trials]
                self._record(name, history.rows()[:trials])
        self._write_chosen(judge, found["search"], found["random"])

    def _judge(self, supernet: Objective) -> Population | Proxy:
        """Return what scores candidates."""
        settings = self.settings
        if not settings.proxy:
            room = int(settings.gigabytes * 2**30)
            return Population(supernet, self.held, precision=settings.supernet.precision, room=room)
        plan = settings.supernet.model_copy(update={"steps": settings.proxy, "tokens": None, "minutes": None})
        return Proxy(supernet, self.held, self.corpus, settings.training(self.space, plan))

    def _record(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        self.results["trials" if name == "search" else name] = [row for row in rows if "failure" not in row]
        self.results["failures"] += [{"stage": name, **row} for row in rows if "failure" in row]
        self.results["seconds"]["search"] += sum(row["seconds"] for row in rows)

    def _write_chosen(self, judge: Population | Proxy, found: Sequence[Trial], control: Sequence[Trial]) -> None:
        if not found:
            raise ValueError(f"no architecture within {self.settings.limits!r} was found: together the limits leave too little")
        if not ranked(found):
            raise FloatingPointError(f"none of {len(found):,} candidates has a finite score: the supernet is of no use")
        known = {trial.arch: trial.score for trial in [*found, *control]}
        listed = []
        settings = self.settings
        numbers = {"top": settings.top, "spread": settings.spread, "seeds": settings.seeds, "seed": settings.seed}
        chosen = self.candidates.choose(found, control, **numbers)
        unknown = list(dict.fromkeys(one.arch for one in chosen if one.arch in self.space and one.arch not in known))
        known |= {arch: self._judged(judge, arch) for arch in unknown}
        for one in chosen:
            if one.arch not in self.space:
                warn(f"{one.name} is not in the space, so the supernet cannot score it: it is trained for comparison only")
            scored = known.get(one.arch, math.nan)
            told = {"supernet": scored if math.isfinite(scored) else None}
            listed.append({"name": one.name, "arch": one.arch.explicit(), "seeds": one.seeds, **told})
        self._write()
        write_atomically(self.out / "chosen.json", json.dumps(listed, indent=1))

    def _judged(self, judge: Population | Proxy, arch: Architecture) -> float:
        """Return the score of a baseline; one that has none is trained from scratch all the same."""
        try:
            return self._score_of(judge.score(arch))
        except FloatingPointError as error:
            warn(f"{arch} has no score: {error}")
            return math.nan

    def _chosen(self, signals: Signals) -> list[dict[str, Any]]:
        """Return what to train from scratch, once the main process has written it."""
        while not (self.out / "chosen.json").exists():
            time.sleep(0.5)
            _stop_if(signals)
        listed: list[dict[str, Any]] = json.loads((self.out / "chosen.json").read_text(encoding="utf-8"))
        return listed

    def _score_of(self, scores: Mapping[str, float]) -> float:
        # What answers are likeliest can be told of logits that are not finite, too.
        accurate = self.settings.fitness == "accuracy" and math.isfinite(scores["loss"])
        return scores["accuracy"] if accurate else -scores["loss"]

    def _plan(self) -> Plan:
        """Return the plan of retraining, minutes turned into the steps that the interleaved baseline takes in them."""
        plan, kept = self.settings.retrain, self.out / "budget.json"
        if plan.minutes is None:
            return plan
        if not kept.exists():
            seconds = step_seconds(self.settings, presets.interleaved(self.space.largest), plan, self.corpus)
            if self.machine.is_main_process:
                steps = max(1, int(plan.minutes * 60 / seconds))
                write_atomically(kept, json.dumps({"steps": steps, "seconds_per_step": seconds}))
            self.machine.wait_for_everyone()
        return plan.model_copy(update={"steps": json.loads(kept.read_text(encoding="utf-8"))["steps"], "minutes": None})

    def _retrain(self, one: Mapping[str, Any], plan: Plan, seed: int) -> None:
        """Train one architecture from scratch, and add it to the results; one that does not stay finite is a failure."""
        arch = Architecture.parse(one["arch"])
        run = self.out / "retrain" / f"{hashlib.sha256(one['arch'].encode()).hexdigest()[:12]}-seed{seed}"
        try:
            pretrain(self.settings.training(arch, plan, seed), run, label=f"{one['name']}, seed {seed}")
        except FloatingPointError as error:
            warn(f"{one['name']}, seed {seed}, failed: {error}")
            if self.machine.is_main_process:
                failure = {"stage": "retrain", "name": one["name"], "arch": str(arch), "seed": seed, "failure": str(error)}
                self.results["failures"].append(failure)
            return
        if self.machine.is_main_process:
            result = _result(run)
            scores = {name.removeprefix("held_out_"): value for name, value in result["score"].items()}
            learned = None if self.plateau is None else ranking.has_learned(scores["loss"], self.plateau)
            row = {"name": one["name"], "arch": str(arch), "supernet": one["supernet"], "score": self._score_of(scores)}
            row |= {"loss": scores["loss"], "learned": learned, **self.candidates.costs(arch), "seed": seed}
            row |= {"tokens": result["tokens"], "seconds": result["seconds"], "folder": str(run.relative_to(self.out))}
            self.results["standalone"].append(row | {"curve": ranking.curve(run, "held_out_loss")})
            self._write()

    def _conclude(self) -> None:
        """Name the winner, hand over its model, and print the table."""
        rows = self.results["standalone"]
        if not rows:
            raise FloatingPointError("nothing that was trained from scratch stayed finite; a lower retrain.rate may help")
        if holds_formulas(self.space):
            for row in rows:
                backbone = load(self.out / row["folder"])[1].backbone.to(self.machine.device)
                row["uniformity"] = token_uniformity.by_layer(backbone, self.held)
        winner = ranking.best(rows, [*self.candidates.baselines])
        _copy(self.out / next(row["folder"] for row in rows if row["name"] == winner) / "model", self.out / "model")
        self.results |= {"winner": winner, "finished": True}
        self._write()
        ranking.show(rows, self.settings.score_name)

    def _write(self) -> None:
        """Write what is known so far as results.json."""
        rows = self.results["standalone"]
        spent = {row["folder"]: row["seconds"] for row in rows}
        self.results["seconds"]["retrain"] = sum(spent.values())
        learned = ranking.agreement_of_learned(rows) if self.plateau is not None else None
        self.results["kendall"] = {"all": ranking.agreement(rows), "learned": learned}
        write_atomically(self.out / "results.json", json.dumps(self.results, indent=1))

    def _identity(self) -> dict[str, str]:
        """Return what a study must belong to: this space, searched like this, with this very supernet."""
        told = self.settings.model_dump(mode="json", include={"strategy", "limits", "fitness", "evaluate_rows", "seed"})
        # Studies of before there were such do not name them.
        if self.settings.strategy.name != "operation-priority":
            told["strategy"].pop("operation_priority", None)
        told |= {"proxy": self.settings.proxy} if self.settings.proxy else {}
        supernet = hashlib.sha256((self.out / "supernet" / "result.json").read_bytes()).hexdigest()
        return {"space": self.space.explicit(), "settings": json.dumps(told), "supernet": supernet}


def step_seconds(settings: SearchSettings, arch: Architecture | Space, plan: Plan, corpus: Corpus) -> float:
    """Measure a step of one training of a search."""
    training = settings.training(arch, plan)
    machine = make_accelerator(partial=isinstance(arch, Space))
    return seconds_per_step(training, corpus, make_objective(training, corpus), machine)


def _stop_if(signals: Signals) -> None:
    if signals.stop:
        raise Interrupted("the search stopped where it was; the same command goes on from there")


def _result(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return result


def _copy(source: Path, target: Path) -> None:
    """Copy a model folder so that its target is wholly there or not."""
    if target.exists() and (target / MANIFEST).read_bytes() == (source / MANIFEST).read_bytes():
        return
    unfinished = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished)
    shutil.rmtree(target, ignore_errors=True)
    os.rename(unfinished, target)
    sync_folder(target.parent)
