"""Draw what a run left behind as one HTML page that needs nothing else: no network, no script or font of others.

A search is drawn from its results.json, a pre-training run from its settings.toml and metrics.jsonl.  How things look
is in page.html and drawings.py; here is what is said.  There is always a page: a part that is missing, or a number
that is not finite, is named as missing.
"""

import math
from collections.abc import Iterable
from html import escape
from pathlib import Path
from shlex import quote

from .drawings import Axis, Chart, kinds, read_architecture, short, spread, strip_of
from .findings import Agreement, Candidate, Findings, Standing, best_so_far, number, pareto
from .formula_findings import formula_sections
from .learning import learning, pretraining_page, thinned, training_chart
from .page import compact, copyable, details, duration, figure, legend, missing, page, pair, score, section, tiles, toggle
from .settings import write_atomically

_TOP, _BOTTOM = 10, 3
_SERIES = {"search": "search", "control": "random control"}
# In the order they are drawn in: the last lies on top.
_ROLES = {
    "other": "other candidates",
    "random": "random",
    "sandwich": "sandwich",
    "winner": "the winner",
    "interleaved": "interleaved (ordinary BERT)",
}


def write(run: Path) -> Path:
    """Write report.html into the folder of a run, and return its path.

    Raises:
        FileNotFoundError: the folder holds neither results.json nor metrics.jsonl.
        ValueError: results.json cannot be read.
    """
    if (run / "results.json").exists():
        content = _search_page(Findings.read(run / "results.json", short))
    elif (run / "metrics.jsonl").exists():
        content = pretraining_page(run)
    else:
        raise FileNotFoundError(f"{run} holds no run to report: neither results.json nor metrics.jsonl")
    write_atomically(run / "report.html", content)
    return run / "report.html"


def _search_page(found: Findings) -> str:
    folder, tokens, vocab = (found.corpus.get(name) for name in ("folder", "tokens", "vocab"))
    space = f"<p>The space searched:</p>{copyable(found.space)}" if found.space else missing("The space is not recorded.")
    facts = [
        "" if found.finished else "not finished",
        found.created.replace("T", " ")[:16],
        f"corpus {folder}" if folder else "",
        f"{compact(number(tokens))} tokens" if tokens else "",
        f"{number(vocab):,.0f} word pieces" if vocab else "",
    ]
    return page(
        "search report",
        found.title,
        facts,
        _headline(found),
        section("The search", pair(_over_time(found), _cost(found))),
        section("The best and the last", _ranking(found)),
        section("Trained from scratch", pair(_agreement(found), _curves(found)), _table(found)),
        formula_sections(found),
        section("The supernet", _supernet(found)),
        section("Fine-tuning", details("Scores", found.finetune)) if found.finetune else "",
        section("What failed", _failures(found)) if found.failures else "",
        section("Settings", space, details("Every setting", found.settings)),
    )


def _headline(found: Findings) -> str:
    """Return the winner: its layers, how it stands, its text and command to copy, and the key numbers."""
    scored = [one for one in found.candidates if math.isfinite(one.score)]
    if found.winner:
        arch, said = found.winner.arch, _verdict(found, found.winner)
        heading = f"The {'winner' if found.winner.role == 'winner' else 'best so far'}: {found.winner.name}"
    elif scored:
        arch, heading = max(scored, key=lambda one: one.score).arch, "The best so far"
        said = f"Best of {len(scored):,} by the supernet’s score. Nothing has been trained from scratch, so this is a guess."
    else:
        return section("No winner", missing("No candidate has a score."), _key_numbers(found))
    corpus = quote(str(found.corpus.get("folder") or "CORPUS"))
    objective = quote(str(found.settings.get("objective") or "rtd"))
    command = f"layerwright pretrain --arch {_quoted(arch)} --corpus {corpus} --objective {objective} --steps N --out RUN"
    drawn = strip_of(arch) + kinds([arch])
    return section(heading, drawn, f'<p class="lead">{escape(said)}</p>', copyable(arch), copyable(command), _key_numbers(found))


def _verdict(found: Findings, winner: Standing) -> str:
    """Say how the winner stands against the ordinary backbone, and how sure that is."""
    if not winner.scores:
        return f"{winner.name} has no finite score."
    said = f"Trained from scratch it reaches {_over_seeds(winner)} in {found.score_name}"
    if winner.name == "interleaved":
        return f"{said}: nothing that was found beats attention and feed-forward in turn."
    rival = found.baseline
    if rival is None:
        return f"{said}. There is no interleaved baseline to compare it with."
    gain = winner.score - rival.score
    said += f"; the interleaved baseline reaches {_over_seeds(rival)}, {score(abs(gain))} {'less' if gain >= 0 else 'more'}. "
    if rival.learned is False and winner.learned:
        return said + "But that baseline is still on the unigram plateau: at this budget the lead only tells who left it first."
    if min(len(winner.scores), len(rival.scores)) < 2:
        return said + "One seed cannot tell whether that is chance."
    apart = min(winner.scores) > max(rival.scores) or max(winner.scores) < min(rival.scores)
    return said + f"Their ranges over seeds {'do not overlap' if apart else 'overlap'}."


def _key_numbers(found: Findings) -> str:
    winner, rival, spent = found.winner, found.baseline, found.seconds
    numbers = []
    if winner:
        seeds = f"mean of {len(winner.scores)} seeds" if len(winner.scores) > 1 else "one seed" if winner.scores else "not finite"
        numbers.append((f"score of {winner.name}", score(winner.score), seeds))
    if winner and rival:
        gain = score(winner.score - rival.score, signed=True)
        numbers.append(("interleaved baseline", score(rival.score), f"{gain} for {winner.name}"))
    if winner:
        numbers.append(("parameters", compact(winner.parameters), "embeddings included"))
        numbers.append(("FLOPs", compact(winner.flops), "forward, one sequence"))
    runs = sum(one.seeds for one in found.standings)
    numbers.append(("candidates tried", f"{len(found.search):,}", f"and {len(found.control):,} at random"))
    numbers.append(("trained from scratch", f"{len(found.standings):,}", f"{runs:,} runs in all"))
    numbers.append(("Kendall’s τ", _signed(found.agreement[0].tau), "supernet and standalone"))
    if spent:
        parts = ", ".join(f"{name} {duration(spent[name])}" for name in spent)
        numbers.append(("time in all", duration(sum(spent.values())), parts))
    return tiles(numbers)


def _over_time(found: Findings) -> str:
    """Return the picture of the search: every candidate, and the best so far of the strategy and of random."""
    drawn = [one for one in found.candidates if math.isfinite(one.score)]
    if not drawn:
        return figure("Best so far", missing("No candidate has a score."))
    both = [series for series in (found.control, found.search) if series]
    chart = Chart(
        Axis.over("evaluations", range(1, max(map(len, both)) + 1)), Axis.over("supernet score", [one.score for one in drawn])
    )
    marks = [
        chart.dot((place, one.score), _tip(one), one.series, trial=f"{one.series}-{one.number}")
        for series in both
        for place, one in enumerate(series, 1)
    ]
    for series in both:
        best = best_so_far([one.score for one in series])
        marks.append(chart.steps([*enumerate(best, 1)], f"best of {_SERIES[series[0].series]} so far", series[0].series))
    left_out = len(found.candidates) - len(drawn)
    return figure(
        "Best so far",
        chart.draw(marks, "scores of the candidates in the order they were tried, and the best so far"),
        legend((series[0].series, _SERIES[series[0].series]) for series in reversed(both)),
        "" if found.control else missing("There is no random control, so nothing tells how much the strategy helped."),
        missing(f"{left_out:,} without a finite score are not drawn.") if left_out else "",
        read="A dot is a candidate, a line the best up to there: the search helps as far as its line runs above that of random.",
    )


def _cost(found: Findings) -> str:
    """Return the picture of score against cost, once for parameters and once for FLOPs."""
    panes = {}
    for name, label in (("parameters", "parameters"), ("flops", "FLOPs, forward, one sequence")):
        points = [(float(getattr(one, name)), one.score) for one in found.candidates]
        known = [point for point in points if all(map(math.isfinite, point))]
        if not known:
            continue
        chart = Chart(Axis.over(label, [x for x, _ in known]), Axis.over("supernet score", [y for _, y in known]))
        front = pareto(points)
        dots = [
            chart.dot(point, css=one.series + " on-front" * (place in front), trial=f"{one.series}-{one.number}")
            for place, (point, one) in enumerate(zip(points, found.candidates, strict=True))
        ]
        line = chart.steps([points[place] for place in front], css="front")
        behind = [dot for place, dot in enumerate(dots) if place not in front]
        title = {"parameters": "Parameters", "flops": "FLOPs"}[name]
        panes[title] = chart.draw([*behind, line, *(dots[place] for place in front)], f"supernet score against {label}")
    if not panes:
        return figure("Score and cost", missing("No candidate has both a score and a cost."))
    series = [(name, said) for name, said in _SERIES.items() if any(one.series == name for one in found.candidates)]
    return figure(
        "Score and cost",
        toggle("cost", panes),
        legend([*series, ("front", "Pareto front")]),
        read="Higher is better, further left is cheaper: nothing tried is both cheaper and better than a ringed dot.",
    )


def _ranking(found: Findings) -> str:
    """Return the best and the worst candidates, drawn as strips of layers."""
    scored = sorted((one for one in found.candidates if math.isfinite(one.score)), key=lambda one: one.score)
    # Of an architecture that was tried several times, the last of these is the best.
    ranked = sorted({one.arch: one for one in scored}.values(), key=lambda one: -one.score)
    if not ranked:
        return missing("No candidate has a score.")
    last = max(len(ranked) - _BOTTOM, _TOP)
    archs = [one.arch for one in ranked[:_TOP] + ranked[last:]]
    alone = {one.arch: one for one in reversed(found.standings)}
    rows = [
        _ranked(rank, one, alone.get(one.arch), _slots(archs))
        for rank, one in enumerate(ranked, 1)
        if rank <= _TOP or rank > last
    ]
    best, worst = rows[:_TOP], rows[_TOP:]
    said = (
        f"The best {len(best)} of {len(ranked):,} different candidates by the supernet’s score, first layer on the left: "
        "what they share and the last ones lack is what the supernet believes in."
    )
    tail = f'<h3>The last {len(worst)}</h3><ol class="ranking">{"".join(worst)}</ol>' if worst else ""
    return f'<p class="read">{escape(said)}</p>{kinds(archs)}<ol class="ranking">{"".join(best)}</ol>{tail}'


def _slots(texts: Iterable[str]) -> int:
    return max((len(arch) for arch in map(read_architecture, texts) if arch), default=0)


def _ranked(rank: int, one: Candidate, alone: Standing | None, slots: int) -> str:
    trained = f"<span>trained alone <b>{score(alone.score)}</b> ({escape(alone.name)})</span>" if alone else ""
    return (
        f'<li><span class="rank">{rank}</span><div>{strip_of(one.arch, slots=slots)}</div><div class="facts">'
        f"<span>score <b>{score(one.score)}</b></span>{trained}<span>{compact(one.parameters)} parameters</span>"
        f"<span>{compact(one.flops)} FLOPs</span><code>{escape(one.arch)}</code></div></li>"
    )


def _agreement(found: Findings) -> str:
    """Return the picture of the supernet's scores against those of training from scratch."""
    heading = "Supernet and standalone scores"
    known = [one for one in found.standings if math.isfinite(one.supernet) and one.scores]
    if not known:
        return figure(heading, missing("No architecture has both a supernet score and a standalone score."))
    panes = {"All": _against(found, known)}
    stuck = [one for one in known if one.learned is False]
    if 0 < len(stuck) < len(known):
        panes["Off the plateau"] = _against(found, [one for one in known if one not in stuck])
    everyone, learned = map(_tau, found.agreement)
    return figure(
        heading,
        toggle("agreement", panes) if len(panes) > 1 else panes["All"],
        legend([*_roles(known), *[("plateau", "still on the unigram plateau")] * bool(stuck)]),
        f"<p>Kendall’s τ: {everyone}. Without those still on the unigram plateau: {learned}.</p>",
        read="A dot is an architecture: the nearer the dots lie to one rising line, the more the supernet’s ranking is worth.",
    )


def _against(found: Findings, standings: Iterable[Standing]) -> str:
    """Return the chart of supernet scores against standalone scores, with names."""
    known = sorted(standings, key=_layer_of_drawing)
    points = [(one.supernet, one.score) for one in known]
    chart = Chart(
        Axis.over("supernet score", [x for x, _ in points]), Axis.over(f"standalone {found.score_name}", [y for _, y in points])
    )
    dots, names = [], []
    for point, one in zip(points, known, strict=True):
        tip = f"{one.name}\nalone {_over_seeds(one)}\nin the supernet {score(one.supernet)}\n{one.arch}"
        dots.append(chart.dot(point, tip, one.role + " plateau" * (one.learned is False), name=one.name))
        names.append((point, one.name, "minor" if one.role == "other" else one.role))
    return chart.draw([*dots, chart.names(reversed(names))], "supernet score against standalone score, a dot an architecture")


def _curves(found: Findings) -> str:
    """Return the held-out loss of every standalone training, the winner and the baseline on top."""
    heading = "Held-out loss while training"
    drawn = [(one, seed, points) for one in found.standings for seed, points in enumerate(one.curves, 1) if points]
    if not drawn:
        return figure(heading, missing("No standalone training has left a curve."))
    drawn.sort(key=lambda entry: _layer_of_drawing(entry[0]))
    chart = training_chart("tokens", "held-out loss, nats", [points for _, _, points in drawn], cut=True)
    marks = [
        chart.curve(thinned(points), one.name + f", seed {seed} of {one.seeds}" * (one.seeds > 1), one.role)
        for one, seed, points in drawn
    ]
    plateau = [("plateau line", "unigram plateau")] if math.isfinite(found.plateau) else []
    edges = [(place, found.plateau) for place in (chart.x.low, chart.x.high)]
    marks.append(chart.curve(edges, "unigram plateau", "plateau"))
    return figure(
        heading,
        chart.draw(marks, "held-out loss over tokens of training, a line a run"),
        legend([*((f"{role} line", said) for role, said in _roles([one for one, _, _ in drawn])), *plateau]),
        read="Lower is better, and the first fall is cut off: while a line is flat on the unigram plateau, its rank says little.",
    )


def _table(found: Findings) -> str:
    """Return the standalone results, best first, with every seed as a dot."""
    if not found.standings:
        return missing("Nothing has been trained from scratch.")
    texts = [one.arch for one in found.standings]
    slots = _slots(texts)
    axis = Axis.over("", [value for one in found.standings for value in one.scores])
    rows = []
    for rank, one in enumerate(found.standings, 1):
        span = f"{score(min(one.scores))} to {score(max(one.scores))}" if len(one.scores) > 1 else "–"
        numbers = (span, str(one.seeds), score(one.supernet), compact(one.parameters), compact(one.flops))
        cells = [str(rank), escape(one.name), score(one.score), spread(one.scores, axis, _over_seeds(one)), *numbers]
        cells.append(
            strip_of(one.arch, slots=slots, labels=False) if read_architecture(one.arch) else f"<code>{escape(one.arch)}</code>"
        )
        rows.append(f'<tr class="{one.role}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    names = ("", "name", "mean score", "each seed", "least to greatest", "seeds", "supernet", "parameters", "FLOPs", "layers")
    head = "".join(f"<th>{name}</th>" for name in names)
    return figure(
        "Best first",
        f'<div class="scroll"><table class="standings"><thead><tr>{head}</tr></thead>',
        f"<tbody>{''.join(rows)}</tbody></table></div>",
        kinds(texts),
        read=f"The score is {found.score_name}, and a dot is a seed: where the dots of two rows mix, their order may be chance.",
    )


def _supernet(found: Findings) -> str:
    if not found.supernet_curve:
        return missing("The supernet has left no training curve.")
    said = "Every step trains another path, so single losses jump; the strong line is their mean over neighbouring steps."
    return learning("Training loss", "tokens", "loss, nats", found.supernet_curve, read=said)


def _roles(standings: Iterable[Standing]) -> list[tuple[str, str]]:
    present = {one.role for one in standings}
    return [(role, said) for role, said in reversed(_ROLES.items()) if role in present]


def _layer_of_drawing(one: Standing) -> int:
    return list(_ROLES).index(one.role)


def _failures(found: Findings) -> str:
    said = f"{len(found.failures):,} candidates or trainings ended without a score and are in no picture."
    rows = {f"{place}. {row.get('stage', '')}": row for place, row in enumerate(found.failures, 1)}
    return missing(said) + details("Each of them", rows)


def _tip(one: Candidate) -> str:
    said = f"{_SERIES[one.series]}, number {one.number}: {score(one.score)}"
    return f"{said}\n{compact(one.parameters)} parameters, {compact(one.flops)} FLOPs\n{one.arch}"


def _over_seeds(one: Standing) -> str:
    if len(one.scores) < 2:
        return score(one.score)
    return f"{score(one.score)} ({score(min(one.scores))} to {score(max(one.scores))} over {len(one.scores)} seeds)"


def _signed(tau: float) -> str:
    return f"{tau:.2f}".replace("-", "−") if math.isfinite(tau) else "–"


def _tau(agreement: Agreement) -> str:
    known = math.isfinite(agreement.tau)
    return f"{_signed(agreement.tau)} (p = {compact(agreement.p, 2)}, n = {agreement.n})" if known else "not defined"


def _quoted(text: str) -> str:
    """Return a text as one word of a shell command, in double quotes where nothing in it means anything there."""
    return quote(text) if set(text) & set('"$`\\!') else f'"{text}"'
