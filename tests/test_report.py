"""The report page: what is said, that it is drawn right, that nothing is missing silently, and that a browser shows it."""

import json
import math
import re
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerwright import learning, report
from layerwright.architecture import Architecture
from layerwright.drawings import Axis, Chart, colour, strip
from layerwright.findings import best_so_far, pareto
from layerwright.learning import thinned
from layerwright.page import compact, duration
from layerwright.registry import KINDS, layer

SPACE = "32 vocab=64: 4x{conv|attn|ffn}"
VOID = {"meta", "link", "input", "br", "img", "hr"}
finite = st.floats(-1e9, 1e9, allow_subnormal=False)


class Page(HTMLParser):
    """A page as a browser reads it: elements in order, visible text, and a failure where tags do not pair up."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[list[tuple[str, dict[str, str | None]]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs)), f"an attribute twice: {attrs}"
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += text

    def all(self, tag: str, css: str = "") -> Iterator[dict[str, str | None]]:
        return (attrs for name, attrs in self.elements if name == tag and css in ("", *(attrs.get("class") or "").split()))

    def charts(self) -> list[list[dict[str, str | None]]]:
        """The circles of each chart."""
        charts: list[list[dict[str, str | None]]] = []
        for tag, attrs in self.elements:
            if tag == "svg" and attrs.get("class") == "chart":
                charts.append([])
            elif tag == "circle" and charts and "data-trial" in attrs:
                charts[-1].append(attrs)
        return charts


def candidates(count: int, seed: int) -> list[dict[str, Any]]:
    rng = Random(seed)
    return [
        {
            "number": number,
            "arch": "32 vocab=64: " + " ".join(rng.choices(("conv", "attn", "ffn"), k=4)),
            "score": round(rng.random(), 3),
            "parameters": rng.randrange(10_000, 90_000, 1000),
            "flops": rng.randrange(10**6, 10**7),
            "seconds": 0.5,
        }
        for number in range(count)
    ]


def alone(name: str, arch: str, score: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    curve = [[tokens, 9 - tokens / 1e4 - (score or 0)] for tokens in range(0, 50_000, 1000)]
    row = {"name": name, "arch": arch, "supernet": 0.4, "score": score, "parameters": 5000, "flops": 10**6, "seed": seed}
    return row | {"curve": curve} | more


def results(**changed: Any) -> dict[str, Any]:
    top, plain = "32 vocab=64: conv attn ffn conv", "32 vocab=64: 2x(attn ffn)"
    standalone = [alone("top-1", top, 0.5 + seed / 100, seed, learned=True) for seed in range(3)]
    standalone += [alone("interleaved", plain, 0.3 + seed / 100, seed, supernet=0.2, learned=False) for seed in range(3)]
    standalone += [alone("sandwich", "32 vocab=64: 2xattn 2xffn", 0.4, supernet=0.3, learned=True)]
    whole = {
        "title": "A search",
        "created": "2026-01-05T14:33:12",
        "space": SPACE,
        "corpus": {"folder": "my corpus", "fingerprint": "f", "tokens": 1_234_567, "vocab": 64},
        "settings": {"search": {"strategy": "evolution", "population": 20}},
        "seconds": {"supernet": 100.0, "search": 20.0, "retrain": 3600.0},
        "trials": candidates(30, 1),
        "random": candidates(30, 2),
        "standalone": standalone,
        "kendall": {"all": {"tau": 0.333, "p": 0.04, "n": 3}, "learned": {"tau": -1.0, "p": 1.0, "n": 2}},
        "supernet_curve": [[step * 100, 9 - step / 50 + step % 3] for step in range(300)],
        "winner": "top-1",
        "score_name": "masked-token accuracy",
        "finetune": None,
    }
    return whole | changed


def written(folder: Path, content: dict[str, Any]) -> str:
    (folder / "results.json").write_text(json.dumps(content))
    path = report.write(folder)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def test_the_page_says_who_won_by_how_much_and_how_sure_that_is(tmp_path: Path):
    page = Page(written(tmp_path, results()))
    assert "reaches 0.5100 (0.5000 to 0.5200 over 3 seeds) in masked-token accuracy" in page.text
    assert "the interleaved baseline reaches 0.3100 (0.3000 to 0.3200 over 3 seeds), 0.2000 less" in page.text
    assert "still on the unigram plateau: at this budget the lead only tells who left it first" in page.text
    both = [row | {"learned": True} for row in results()["standalone"]]
    assert "Their ranges over seeds do not overlap." in Page(written(tmp_path, results(standalone=both))).text
    assert "Kendall’s τ: 0.33 (p = 0.04, n = 3). Without those still on the unigram plateau: −1.00 (p = 1, n = 2)." in page.text
    assert "1 h 02 min" in page.text
    assert "search.population" in page.text


def test_the_plateau_is_drawn_where_it_is_known(tmp_path: Path):
    known = Page(written(tmp_path, results(plateau={"unigram_loss": 6.5, "below": 0.3})))
    (line,) = known.all("polyline", "plateau")
    assert len({place.split(",")[1] for place in (line["points"] or "").split()}) == 1
    for unknown in ({"unigram_loss": None, "below": 0.3}, None):
        assert not list(Page(written(tmp_path, results(plateau=unknown))).all("polyline", "plateau"))


def test_overlapping_ranges_and_single_seeds_are_not_sold_as_a_win(tmp_path: Path):
    top, plain = "32 vocab=64: 4xconv", "32 vocab=64: 2x(attn ffn)"
    rows = [alone("top-1", top, score, seed) for seed, score in enumerate((0.30, 0.40))]
    rows += [alone("interleaved", plain, score, seed) for seed, score in enumerate((0.36, 0.38))]
    page = Page(written(tmp_path, results(standalone=rows)))
    assert "0.0200 more" in page.text
    assert "Their ranges over seeds overlap." in page.text
    assert "chance" in Page(written(tmp_path, results(standalone=rows[::2]))).text
    beaten = Page(written(tmp_path, results(standalone=rows, winner="interleaved")))
    assert "nothing that was found beats attention and feed-forward in turn" in beaten.text


def test_the_command_to_paste_gives_the_shell_the_architecture(tmp_path: Path):
    page = Page(written(tmp_path, results()))
    line = next(line for line in re.findall(r"layerwright pretrain[^\n]*?--out RUN", page.text))
    words = shlex.split(line)
    assert Architecture.parse(words[words.index("--arch") + 1]) == Architecture.parse("32 vocab=64: conv attn ffn conv")
    assert words[words.index("--corpus") + 1] == "my corpus"
    assert {"--objective", "--steps"} <= set(words), "without them it trains something else, or not at all"


def test_every_candidate_is_drawn_once_a_chart_and_the_front_is_ringed(tmp_path: Path):
    content = results()
    page = Page(written(tmp_path, content))
    over_time, by_parameters, by_flops = (chart for chart in page.charts() if chart)
    names = {f"search-{number}" for number in range(30)} | {f"control-{number}" for number in range(30)}
    for chart in (over_time, by_parameters, by_flops):
        assert Counter(dot["data-trial"] for dot in chart) == Counter(names)
    rows = content["trials"] + content["random"]
    for chart, cost in ((by_parameters, "parameters"), (by_flops, "flops")):
        ringed = {dot["data-trial"] for dot in chart if "on-front" in (dot["class"] or "").split()}
        front = {place for place in range(60) if not any(beats(one, rows[place], cost) for one in rows)}
        assert ringed == {f"{'search' if place < 30 else 'control'}-{place % 30}" for place in front}
    # Higher scores stand higher, dearer candidates further right.
    places = {dot["data-trial"]: (float(dot["cx"][:-1]), float(dot["cy"][:-1])) for dot in by_parameters}
    for one, two in pairwise(rows[:30]):
        (x1, y1), (x2, y2) = (places[f"search-{row['number']}"] for row in (one, two))
        assert (x1 > x2) == (one["parameters"] > two["parameters"])
        assert (y1 < y2) == (one["score"] > two["score"])


def beats(one: dict[str, Any], other: dict[str, Any], cost: str) -> bool:
    as_good = one[cost] <= other[cost] and one["score"] >= other["score"]
    return as_good and (one[cost] < other[cost] or one["score"] > other["score"])


@given(st.lists(st.tuples(st.integers(0, 5) | st.just(math.nan), st.integers(0, 5) | st.just(math.nan)), max_size=12))
def test_the_front_is_what_comparing_all_pairs_gives(points: list[tuple[float, float]]):
    known = [place for place, (x, y) in enumerate(points) if math.isfinite(x) and math.isfinite(y)]
    rows = {place: {"cost": points[place][0], "score": points[place][1]} for place in known}
    front = pareto(points)
    assert sorted(front) == [place for place in known if not any(beats(rows[one], rows[place], "cost") for one in known)]
    assert [points[place][0] for place in front] == sorted(points[place][0] for place in front)


@given(st.lists(finite | st.just(math.nan)))
def test_the_best_so_far_only_rises_and_is_the_maximum(scores: list[float]):
    best = best_so_far(scores)
    assert len(best) == len(scores)
    for place, value in enumerate(best):
        known = [score for score in scores[: place + 1] if math.isfinite(score)]
        assert value == max(known) if known else math.isnan(value)


@given(st.lists(finite | st.integers(0, 10**13), min_size=1, max_size=5))
def test_ticks_are_few_even_on_the_axis_and_told_apart(values: list[float]):
    axis = Axis.over("anything", values)
    ticks, labels = axis.ticks(), axis.labels()
    assert all(0 <= axis.at(value) <= 100 for value in values)
    assert 1 <= len(ticks) <= 6
    assert all(axis.low <= tick <= axis.high or math.isclose(axis.at(tick), round(axis.at(tick))) for tick in ticks)
    steps = [later - tick for tick, later in pairwise(ticks)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps)
    if axis.high - axis.low > 1e-4 * abs(axis.high):
        assert len({text for _, text in labels}) == len(labels)


def test_numbers_are_written_for_people():
    assert [compact(value) for value in (0.123456, 12, 999.96, 12_345_678, 1.5e9, math.nan)] == [
        "0.123", "12", "1.00k", "12.3M", "1.50G", "–"
    ]  # fmt: skip
    assert [duration(value) for value in (0, 59.6, 3599, 3660, math.nan)] == [
        "0 s",
        "1 min 00 s",
        "59 min 59 s",
        "1 h 01 min",
        "–",
    ]
    assert Axis("", 0, 3, whole=True).labels() == [(0, "0"), (33.33, "1"), (66.67, "2"), (100, "3")]
    assert [text for _, text in Axis("", 0.9e6, 2.1e6).labels()] == ["1.0M", "1.2M", "1.4M", "1.6M", "1.8M", "2.0M"]


def test_a_curve_keeps_its_ends_and_its_spikes_when_thinned():
    points = [(float(step), math.sin(step / 500)) for step in range(5000)]
    points[1234] = (1234.0, 99.0)
    kept = thinned(points)
    assert len(kept) <= 210
    assert kept == sorted(set(kept))
    assert {points[0], points[1234], points[-1]} <= set(kept)
    assert thinned(points[:50]) == points[:50]
    assert thinned([]) == []


def test_names_beside_points_do_not_cover_each_other_and_the_important_ones_are_kept():
    chart = Chart(Axis("", 0, 1), Axis("", 0, 1))
    crowd = [((0.5, 0.5), f"name {number}", "minor") for number in range(20)]
    drawn = chart.names([((0.5, 0.5), "winner", "winner"), *crowd])
    assert "winner</text>" in drawn
    assert drawn.count("<text") < 6


def test_a_strip_has_a_block_a_layer_in_order_with_its_options():
    arch = Architecture.parse("64 vocab=64: conv attn conv[kernel=3] ffn[inner=128]")
    drawn = ElementTree.fromstring(strip(arch))
    blocks = drawn.findall("svg")
    assert [block.get("data-kind") for block in blocks] == ["conv", "attn", "conv", "ffn"]
    assert [block.find("rect").get("fill") for block in blocks] == [colour(kind) for kind in ("conv", "attn", "conv", "ffn")]
    texts = [[text.text for text in block.findall("text")] for block in blocks]
    assert texts == [["conv"], ["attn"], ["conv", "kernel=3"], ["ffn", "inner=128"]]
    assert [block.find("title").text for block in blocks] == [f"layer {place}: {one}" for place, one in enumerate(arch.layers)]
    ends = [float(block.get("x")[:-1]) + float(block.get("width")[:-1]) for block in blocks]
    assert all(end < float(later.get("x")[:-1]) for end, later in zip(ends, blocks[1:], strict=False))
    assert math.isclose(ends[-1], 100, abs_tol=0.01)


def test_strips_below_each_other_line_up_and_long_ones_stay_legible():
    short, long = Architecture.parse("32 vocab=64: 2xconv"), Architecture.parse("32 vocab=64: 30x(attn ffn)")
    blocks = ElementTree.fromstring(strip(short, slots=60)).findall("svg")
    same = ElementTree.fromstring(strip(long)).findall("svg")
    assert [block.get("x") for block in blocks] == [block.get("x") for block in same[:2]]
    assert "<text" not in strip(long)
    letters = ElementTree.fromstring(strip(Architecture.parse("32 vocab=64: 12x(attn ffn)"))).iter("text")
    assert [text.text for text in letters] == ["a", "f"] * 12
    assert "<text" not in strip(short, labels=False)


def test_known_kinds_have_different_colours_and_others_the_same_every_time():
    assert len({colour(kind) for kind in ("attn", "ffn", "conv", "sdconv", "mixed", "glu", "grouped", "formula")}) == 8
    assert colour("mine") == colour("mine") != colour("attn")


NASTY = "</title><script>alert(1)</script>&\"'<img src=x onerror=alert(2)>"


def test_words_of_users_stay_words(tmp_path: Path):
    @layer("nasty", text="a")
    class _(object):  # noqa: UP004
        def __init__(self, width: int, text: str) -> None: ...

    try:
        arch = "32 vocab=64: nasty[text='</svg><script>alert(3)</script>'] ffn"
        content = results(
            title=NASTY,
            space=NASTY,
            winner=NASTY,
            score_name=NASTY,
            corpus={"folder": NASTY},
            settings={NASTY: NASTY},
            standalone=[alone(NASTY, arch, 0.5), alone("interleaved", NASTY, 0.3)],
            trials=[dict(row, arch=arch if row["number"] else NASTY) for row in candidates(3, 1)],
            failures=[{"stage": NASTY, "failure": NASTY}],
            finetune={NASTY: {NASTY: 1}},
        )
        page = Page(written(tmp_path, content))
    finally:
        del KINDS["nasty"]
    assert len(list(page.all("script"))) == 1
    assert not list(page.all("img"))
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert page.text.count(NASTY) > 5
    assert "alert(3)" in page.text


def test_the_page_loads_nothing(tmp_path: Path):
    source = written(tmp_path, results())
    page = Page(source)
    assert not re.search(r"(?:https?:)?//\w", source.replace("// ", ""))
    assert "url(" not in source
    assert "@import" not in source
    assert [attrs["href"] for attrs in page.all("link")] == ["data:,"]
    assert not [attrs for _, attrs in page.elements if "src" in attrs or "srcset" in attrs or "action" in attrs]
    policy = next(attrs["content"] for attrs in page.all("meta") if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


NAN = math.nan
ODD = {
    "nothing at all": ({}, ["No candidate has a score.", "Nothing has been trained from scratch."]),
    "no trials": (results(trials=[], random=[]), ["No candidate has a score.", "No candidate has both a score and a cost."]),
    "one trial": (results(trials=candidates(1, 1), random=[]), ["The best 1 of 1 different candidates"]),
    "no control": (results(random=[]), ["There is no random control"]),
    "only a control": (results(trials=[]), ["and 30 at random"]),
    "no standalone": (
        results(standalone=[], winner=None, kendall=None),
        ["The best so far", "so this is a guess", "Nothing has been trained from scratch.", "has left a curve"],
    ),
    "scores that are not finite": (
        results(
            trials=[dict(row, score=score) for row, score in zip(candidates(4, 1), (NAN, None, math.inf, 0.5), strict=True)],
            standalone=[alone("top-1", "32 vocab=64: conv", NAN), alone("interleaved", "32 vocab=64: ffn", None)],
        ),
        ["3 without a finite score are not drawn.", "top-1 has no finite score."],
    ),
    "no costs": (
        results(trials=[dict(row, parameters=None, flops=None) for row in candidates(4, 1)], random=[]),
        ["No candidate has both a score and a cost."],
    ),
    "no tau": (results(kendall={"all": {"tau": None, "p": None, "n": 2}, "learned": None}), ["Kendall’s τ: not defined"]),
    "NaN tau": (results(kendall={"all": {"tau": NAN, "p": NAN, "n": 2}, "learned": {}}), ["Kendall’s τ: not defined"]),
    "no curves": (
        results(standalone=[alone("top-1", "32 vocab=64: conv", 0.5, curve=[])], supernet_curve=[]),
        ["No standalone training has left a curve.", "The supernet has left no training curve.", "no interleaved baseline"],
    ),
    "no supernet scores": (
        results(standalone=[alone("top-1", "32 vocab=64: conv", 0.5, supernet=None)]),
        ["No architecture has both a supernet score and a standalone score."],
    ),
    "curves that are not finite": (
        results(standalone=[alone("top-1", "32 vocab=64: conv", 0.5, curve=[[0, NAN], [10, None], [20, 5.0]])]),
        ["Held-out loss while training"],
    ),
    "all on the plateau": (
        results(standalone=[alone("top-1", "32 vocab=64: conv", 0.5, learned=False)]),
        ["still on the unigram plateau"],
    ),
    "unknown kinds": (results(trials=[dict(row, arch="32: warp warp") for row in candidates(3, 1)], random=[]), ["Not drawn"]),
    "all the same": (
        results(trials=[dict(candidates(1, 1)[0], number=number) for number in range(5)], random=[]),
        ["best 1 of 1"],
    ),
    "failures": (results(failures=[{"stage": "random", "failure": "loss is nan"}]), ["1 candidates or trainings", "loss is nan"]),
    "not finished": (results(winner=None, finished=False), ["not finished", "The best so far: top-1", "Trained from scratch it"]),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_missing_is_said(case: str, tmp_path: Path):
    content, said = ODD[case]
    page = Page(written(tmp_path, content))
    for text in said:
        assert text in page.text
    assert not [attrs for tag, attrs in page.elements if tag in ("circle", "polyline", "line") and "nan" in str(attrs)]


def test_a_thousand_candidates_make_a_page_of_bearable_size(tmp_path: Path):
    source = written(tmp_path, results(trials=candidates(500, 1), random=candidates(500, 2)))
    assert len(source) < 700_000


def test_a_ranking_has_each_architecture_once_with_its_best_score_and_the_last_ones_at_the_end(tmp_path: Path):
    kinds = ("conv", "attn", "ffn")
    archs = [f"32 vocab=64: {one} {two} {three}" for one in kinds for two in kinds for three in kinds]
    rows = [
        dict(row, arch=arch, score=0.9 - number / 100)
        for number, (row, arch) in enumerate(zip(candidates(27, 1), archs, strict=True))
    ]
    again = [dict(row, score=row["score"] - 0.005) for row in rows]
    source = written(tmp_path, results(trials=rows, random=again, standalone=[]))
    ranks = re.findall(r'class="rank">(\d+)<.*?score <b>([\d.]+)<', source)
    assert [int(rank) for rank, _ in ranks] == [*range(1, 11), 25, 26, 27]
    assert [float(value) for _, value in ranks] == [pytest.approx(0.91 - rank / 100) for rank in (*range(1, 11), 25, 26, 27)]


def test_a_ranking_matches_standalone_runs_written_in_another_form(tmp_path: Path):
    arch = Architecture.parse(candidates(1, 1)[0]["arch"])
    content = results(trials=candidates(1, 1), random=[], standalone=[alone("top-1", arch.explicit(), 0.123)])
    page = Page(written(tmp_path, content))
    assert "trained alone 0.1230 (top-1)" in page.text
    assert str(arch) in page.text
    assert arch.explicit() not in page.text


def pretraining(folder: Path, steps: int = 300) -> Path:
    (folder / "settings.toml").write_text('arch = "bert-tiny"\ncorpus = "wiki"\n[plan]\nrate = 0.001\n')
    lines = []
    for step in range(1, steps + 1):
        row = {
            "step": step,
            "tokens": step * 64,
            "seconds": step / 2,
            "loss": 9 - step / 100 + step % 3,
            "rate": step / 1e5,
            "norm": 1.0,
        }
        row |= {"held_out_loss": 9.5 - step / 100, "held_out_accuracy": step / 1000} if step % 100 == 0 else {}
        lines.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 30']))
    return folder


def test_a_plain_run_is_drawn_from_its_settings_and_metrics(tmp_path: Path):
    page = Page(report.write(pretraining(tmp_path)).read_text(encoding="utf-8"))
    for text in ("Loss", "Learning rate", "Gradient norm", "Accuracy", "held-out", "plan.rate", "0.001", "19,200", "2 min 30 s"):
        assert text in page.text
    assert "Lines of metrics.jsonl that cannot be read and are left out: 1." in page.text
    assert len(list(page.all("svg", "chart"))) == 4
    assert [attrs["data-kind"] for attrs in page.all("svg") if "data-kind" in attrs] == ["attn", "ffn"] * 2
    assert len(list(page.all("polyline", "held"))) == 2


@pytest.mark.parametrize("lines", ["", "\n", "[1]\n", '{"step": 1, "loss": NaN}\n', '{"step": 1, "loss": 2.0}\n'])
def test_a_run_that_logged_next_to_nothing_has_a_page(lines: str, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(lines)
    page = Page(report.write(tmp_path).read_text(encoding="utf-8"))
    assert "settings.toml names no architecture." in page.text
    assert "2.0" in lines or "metrics.jsonl holds no numbers." in page.text


def test_a_folder_without_a_run_and_torn_results_are_errors_that_name_the_file(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        report.write(tmp_path)
    (tmp_path / "results.json").write_text('{"title": ')
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "results.json"))):
        report.write(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no results"):
        report.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


# What a reader does: points at a dot, at a curve and at a layer, and turns to FLOPs. What they see is left in the page.
READER = """<script>
const seen = {};
const point = (target, x, y) => {
  target.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: y, bubbles: true }));
  const tip = document.getElementById("tip");
  return tip.hidden ? null : tip.textContent;
};
const middle = mark => { const box = mark.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; };
const [first, cost] = document.querySelectorAll("svg.chart");
const dot = first.querySelector("[data-trial='search-3']");
seen.dot = point(first, ...middle(dot));
seen.lit = dot.classList.contains("lit");
seen.again = point(cost, ...middle(cost.querySelector("[data-trial='search-3']")));
seen.nothing = point(first, 1, 1);
const layer = document.querySelector(".strip [data-tip]");
seen.layer = point(layer, ...middle(layer));
const curves = [...document.querySelectorAll("svg.chart")].find(chart => chart.querySelector("polyline.winner"));
const line = curves.querySelector("polyline.winner"), box = curves.getBoundingClientRect();
const [x, y] = line.getAttribute("points").split(" ").at(-1).split(",").map(Number);
seen.curve = point(curves, box.x + box.width * x / 100, box.y + box.height * y / 100);
const seenFlops = () => document.querySelector(".pane.second").getBoundingClientRect().height > 0;
seen.before = seenFlops();
document.querySelector("label[for=cost-second]").click();
seen.after = seenFlops();
seen.wider = document.documentElement.scrollWidth - innerWidth;
document.documentElement.dataset.seen = JSON.stringify(seen);
</script></body>"""

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


def browse(page: Path, folder: Path, *options: str) -> str:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    shutil.rmtree(folder / "profile", ignore_errors=True)
    return done.stdout


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_and_answers_its_reader(tmp_path: Path):
    source = written(tmp_path, results())
    (tmp_path / "read.html").write_text(source.replace("</body>", READER), encoding="utf-8")
    shown = browse(tmp_path / "read.html", tmp_path, "--dump-dom", "--window-size=500,900")
    root = next(attrs for tag, attrs in Page(shown).elements if tag == "html")
    assert root.get("data-error") is None
    assert root.get("data-ready") == "yes"
    seen = json.loads(root["data-seen"] or "{}")
    row = results()["trials"][3]
    assert seen["dot"].startswith(f"search, number 3: {row['score']:.4f}")
    assert seen["lit"]
    assert seen["again"] == seen["dot"]
    assert seen["nothing"] is None
    assert seen["layer"].startswith("layer 0: conv[")
    assert seen["curve"] == "top-1, seed 1 of 3\ntokens: 49k\nheld-out loss, nats: 3.6"
    assert (seen["before"], seen["after"]) == (False, True)
    assert seen["wider"] <= 0, "the page is wider than a phone"


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_draws_the_page_on_a_phone(tmp_path: Path):
    written(tmp_path, results())
    image = tmp_path / "page.png"
    browse(tmp_path / "report.html", tmp_path, f"--screenshot={image}", "--window-size=400,3000")
    assert image.read_bytes().startswith(b"\x89PNG")
    assert image.stat().st_size > 60_000


def test_a_run_of_short_rows_has_its_numbers():
    told = learning._key_numbers("16 vocab=20 positions=8: attn", [{"loss": 1.0}])
    assert [note for name, _, note in told if name == "FLOPs"] == ["forward, 8 tokens"]
