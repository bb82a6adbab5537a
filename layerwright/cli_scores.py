"""The command that scores a model folder without training it; `cli` adds it to its own."""

from pathlib import Path
from typing import Annotated, NamedTuple, cast

import typer
from pydantic import BaseModel

from .console import say, table, warn
from .inference import BATCH, Opened, Precision, open_model
from .likelihood import HEADS, VARIANTS, Variant
from .minimal_pairs import PairResults, judge_pairs, read_pairs
from .models import FACES
from .options import BadRow, Batch, Imports, Precise, import_modules
from .perplexity import TextResults, measure_text
from .settings import write_atomically
from .similarity import POOLS, Pool, SimilarityResults, judge_similarity
from .tasks.examples import OnBadRow

app = typer.Typer()


@app.command("score")
def score_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, such as DIR/model of a pre-training.")],
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="FILE|DIR", help="Minimal pairs, .jsonl or .jsonl.gz, such as the folder of BLiMP."),
    ] = None,
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="A text to predict masked tokens of.")] = None,
    similar: Annotated[
        Path | None,
        typer.Option("--similarity", metavar="FILE", help="A table of pairs of sentences and how alike they are, such as STS-B."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the results as JSON.")] = None,
    variant: Annotated[str, typer.Option(help=f"Of the pseudo-log-likelihood of pairs: {' or '.join(VARIANTS)}.")] = "original",
    sample: Annotated[int, typer.Option(min=0, help="Tokens of the text to mask one at a time; 0 masks all of them.")] = 2_000,
    length: Annotated[int, typer.Option(min=3, help="Most tokens of a row of the text.")] = 128,
    seed: Annotated[int, typer.Option(help="Decides which tokens of the text are masked.")] = 0,
    pool: Annotated[str, typer.Option(help=f"What stands for a sentence: {' or '.join(POOLS)}.")] = "mean",
    layers: Annotated[
        list[int] | None,
        typer.Option("--layer", help="Compare sentences after this layer: 0 before the first, -1 after the last. Repeatable."),
    ] = None,
    batch: Batch = BATCH,
    precision: Precise = "float32",
    on_bad_row: BadRow = "stop",
    imports: Imports = None,
) -> None:
    """Score a model on what it learned without labels: one of --pairs, --text and --similarity.

    Minimal pairs, such as BLiMP's, by the pseudo-log-likelihood of a model of masked tokens or the judgement of a
    discriminator; a text by how well masked tokens are predicted; the similarity of sentences by the states of any model.
    """
    import_modules(imports)
    if sum(given is not None for given in (pairs, text, similar)) != 1:
        raise ValueError("give one of --pairs, --text and --similarity")
    given = Given(pairs, text, similar, layers=tuple(layers or [-1]), sample=sample, length=length, seed=seed, batch=batch)
    given = given._replace(variant=cast(Variant, variant), pool=cast(Pool, pool), on_bad_row=cast(OnBadRow, on_bad_row))
    found = judge(open_model(model, HEADS if similar is None else tuple(FACES), precision=cast(Precision, precision)), given)
    if out is not None:
        write_atomically(out, found.model_dump_json(indent=1) + "\n")
        say(f"results {out}")


class Given(NamedTuple):
    """What to score, one of three files, and how."""

    pairs: Path | None
    text: Path | None
    similar: Path | None
    variant: Variant = "original"
    pool: Pool = "mean"
    layers: tuple[int, ...] = (-1,)
    sample: int = 0
    length: int = 128
    seed: int = 0
    batch: int = BATCH
    on_bad_row: OnBadRow = "stop"


def judge(opened: Opened, given: Given) -> BaseModel:
    """Score a model on the file that is given, print the results and return them."""
    if given.pairs is not None:
        pairs = read_pairs(given.pairs, on_bad_row=given.on_bad_row)
        return _print_pairs(judge_pairs(opened, pairs, variant=given.variant, batch=given.batch))
    if given.text is not None:
        how = {"length": min(given.length, opened.positions), "seed": given.seed, "batch": given.batch}
        return _print_text(measure_text(opened, given.text, sample=given.sample or None, **how))
    assert given.similar is not None
    return _print_similarity(
        judge_similarity(
            opened, given.similar, pool=given.pool, layers=given.layers, batch=given.batch, on_bad_row=given.on_bad_row
        )
    )


def _print_pairs(found: PairResults) -> PairResults:
    rows: list[list[object]] = [
        [name, one.field, one.pairs, one.ties or None, one.accuracy] for name, one in found.paradigms.items()
    ]
    table(f"{found.pairs:,} minimal pairs", ["paradigm", "field", "pairs", "ties", "accuracy"], rows)
    means: list[list[object]] = [[name or "none", accuracy] for name, accuracy in found.fields.items()]
    means += [["mean of fields", found.mean_of_fields], ["mean of paradigms", found.mean], ["all pairs", found.accuracy]]
    table("Accuracy by field, the mean of its paradigms", ["field", "accuracy"], means)
    if found.ties:
        warn(f"{found.ties:,} ties, which count as wrong: both sentences of a pair are equally likely")
    _print_skipped(found.skipped)
    return found


def _print_text(found: TextResults) -> TextResults:
    rows: list[list[object]] = [
        ["tokens", found.tokens],
        [f"masked, {found.share:.0%} of each row", found.masked],
        ["accuracy", found.accuracy],
        ["nats a token", found.nats],
        ["masked one at a time", found.sampled],
        ["nats a token", found.pseudo_nats],
        ["standard error", found.standard_error],
        ["pseudo-perplexity", found.pseudo_perplexity],
    ]
    table(found.text, ["", "value"], rows)
    return found


def _print_similarity(found: SimilarityResults) -> SimilarityResults:
    rows = [[one.layer, one.spearman, one.pearson] for one in found.layers]
    table(f"{found.rows:,} pairs, {found.pool} of states", ["layer", "Spearman", "Pearson"], rows)
    _print_skipped(found.skipped)
    return found


def _print_skipped(reasons: tuple[str, ...]) -> None:
    for reason in reasons:
        warn(f"left out  {reason}")
    if reasons:
        warn(f"{len(reasons):,} rows were left out")
