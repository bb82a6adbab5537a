"""Tell what a search would do, and how long it would take here, before it is begun."""

from . import cost, presets
from .console import about
from .corpus import Corpus
from .search import SearchSettings, step_seconds
from .train import Plan


def outlook(settings: SearchSettings) -> list[tuple[str, str]]:
    """Return what a search would do, for people: sizes, lengths, and the expected time, measured on a few steps.

    Raises:
        ValueError: what would stop the search, too.
    """
    candidates, corpus = settings.candidates(), Corpus.open(settings.corpus)
    space, ordinary = candidates.space, presets.interleaved(candidates.space.largest)
    rows = [("space", str(space)), ("architectures", about(space.size) if space.values_open else f"{space.size:,}")]
    for name, measure in (("smallest", cost.smallest), ("largest", cost.largest)):
        arch = measure(space, cost.parameters)
        costs = candidates.costs(arch)
        rows.append((name, f"{costs['parameters']:,} parameters, {costs['flops']:,} FLOPs: {arch}"))
    rows += [(f"limit on {name}", f"{limit:,}") for name, limit in candidates.limits.items()]
    per_step = settings.batch * settings.length
    each = {"supernet": step_seconds(settings, space, settings.supernet, corpus)}
    each["retrain"] = step_seconds(settings, ordinary, settings.retrain, corpus)
    steps = {name: _steps(getattr(settings, name), per_step, seconds) for name, seconds in each.items()}
    controls = settings.trials if settings.controls is None else settings.controls
    runs = settings.seeds * (settings.top + len(settings.baselines)) + settings.spread
    # A forward pass is about a third of a training step; steps of a candidate's own are steps of one path of the supernet.
    trying = (settings.trials + controls) * each["supernet"] * (settings.proxy + settings.evaluate_rows / settings.batch / 3)
    seconds = steps["supernet"] * each["supernet"], trying, runs * steps["retrain"] * each["retrain"]
    said = [f"{spent / 60:,.1f} minutes" for spent in (*seconds, sum(seconds))]
    rows.append(("supernet", f"{steps['supernet']:,} steps, {steps['supernet'] * per_step:,} tokens, {said[0]}"))
    tried = f"{settings.trials:,} trials and {controls:,} at random"
    tried += f" after {settings.proxy:,} steps each" if settings.proxy else ""
    rows.append((f"search by {settings.strategy.name}", f"{tried}, {said[1]}"))
    rows.append(("from scratch", f"{runs} runs of {steps['retrain']:,} steps, {steps['retrain'] * per_step:,} tokens, {said[2]}"))
    return [*rows, ("expected time", said[3])]


def _steps(plan: Plan, per_step: int, seconds: float) -> int:
    return plan.steps or (plan.tokens or 0) // per_step or max(1, int((plan.minutes or 0) * 60 / seconds))
