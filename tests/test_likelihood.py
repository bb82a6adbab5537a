"""How likely a model finds sentences is what minicons and plain loops say, whatever the batch; no tie or bad row is lost."""

import gzip
import json
import math
import os
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import typer
from minicons.scorer import MaskedLMScorer
from scipy import stats
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from layerwright import cli, vocabulary
from layerwright.errors import DataError
from layerwright.handover import save_model
from layerwright.inference import Opened, open_model
from layerwright.likelihood import score_sentences
from layerwright.minimal_pairs import PairResults, judge_pairs, read_pairs
from layerwright.models import FACES, LayerwrightConfig
from layerwright.perplexity import measure_text
from layerwright.similarity import judge_similarity, pooled

TEXT_OF_PIECES = "the a cat dog house runs sings like ##ly un ##like ##ness hap ##pi ##est ##s . , ' t don in on red"
PIECES = TEXT_OF_PIECES.split()
SENTENCES = [
    "The cat runs.",
    "the dog don't like a house",
    "Unlikeness runs, the happiest dogs sings in the red house on the house.",
    "cat",
    "the unlikely cats, the houses like unknowable zzz.",
    "a cat sings on a dog in a house.",
]
ARCHITECTURES = {
    "bert": "32 vocab=40 positions=32: 2x(attn[heads=4] ffn[inner=48])",
    "conv": "32 embed=24 vocab=40 positions=32 norm=pre: attn[heads=2] conv[heads=4,kernel=3] ffn[inner=48] ffn[inner=16]",
    "mixed": "32 vocab=40 positions=32 segments=0: ffn[inner=48] mixed[heads=4,kernel=5]",
}
LARGE = os.environ.get("LAYERWRIGHT_DATA")


def saved(root: Path, head: str, arch: str = ARCHITECTURES["bert"]) -> Path:
    """A model folder with weights far from where they begin, and a tokenizer of word pieces."""
    (root / "vocab.txt").write_text("\n".join([*vocabulary.SPECIAL, *PIECES]))
    vocabulary.save(vocabulary.load(root / "vocab.txt", lowercase=True), root / "tokenizer")
    torch.manual_seed(1)
    model = FACES[head].model(LayerwrightConfig(architecture=arch, pad_token_id=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    save_model(root / head, model, tokenizer=root / "tokenizer")
    return root / head


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("mlm"), "mlm")


@pytest.fixture(scope="module")
def opened(folder: Path) -> Opened:
    return open_model(folder, ["mlm"])


@pytest.fixture(scope="module")
def discriminator(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return open_model(saved(tmp_path_factory.mktemp("rtd"), "rtd"), ["rtd"])


def totals(opened: Opened, sentences: list[str], **more: Any) -> list[float]:
    return [score.total for score in score_sentences(opened, sentences, **more)]


def write_pairs(path: Path, *rows: dict[str, object]) -> Path:
    text = "\n".join(json.dumps(row) for row in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def pair(good: str, bad: str, paradigm: str = "p", field: str = "f") -> dict[str, object]:
    return {"sentence_good": good, "sentence_bad": bad, "UID": paradigm, "field": field}


def command(*words: object) -> None:
    typer.main.get_command(cli.app)([str(word) for word in words], standalone_mode=False)


@pytest.mark.parametrize("variant", ["original", "within_word_l2r"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scores_are_those_of_minicons(arch: str, variant: str, tmp_path: Path):
    folder = saved(tmp_path, "mlm", ARCHITECTURES[arch])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.batch_encode_plus = tokenizer.__call__  # minicons 0.3.39 knows it by the name of transformers 4
    oracle = MaskedLMScorer(AutoModelForMaskedLM.from_pretrained(folder), "cpu", tokenizer=tokenizer)
    wanted = [oracle.sequence_score([one], reduction=lambda x: x.sum().item(), PLL_metric=variant)[0] for one in SENTENCES]
    assert len({round(one, 3) for one in wanted}) == len(SENTENCES)
    opened = open_model(folder, ["mlm"])
    for batch in (1, 3, 64):
        assert totals(opened, SENTENCES, variant=variant, batch=batch) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


def test_the_variants_differ_only_where_a_word_has_several_pieces(opened: Opened):
    plain, within = (totals(opened, ["the cat sings .", "the unlikely cat"], variant=v) for v in ("original", "within_word_l2r"))
    assert plain[0] == within[0]
    assert abs(plain[1] - within[1]) > 0.01


def test_a_discriminator_scores_by_how_original_each_token_looks(discriminator: Opened):
    model = AutoModelForPreTraining.from_pretrained(discriminator.folder)
    tokenizer = AutoTokenizer.from_pretrained(discriminator.folder)
    wanted = []
    for sentence in SENTENCES:
        with torch.no_grad():
            replaced = model(**tokenizer(sentence, return_tensors="pt")).logits[0, 1:-1].sigmoid()
        wanted.append(float((1 - replaced).log().sum()))
    for batch in (1, 4):
        found = list(score_sentences(discriminator, SENTENCES, batch=batch))
        assert [one.total for one in found] == pytest.approx(wanted, rel=1e-4)
        assert [one.tokens for one in found] == [len(tokenizer(text)["input_ids"]) - 2 for text in SENTENCES]


def test_what_looks_like_a_special_token_is_text(opened: Opened):
    found = list(score_sentences(opened, ["the cat [SEP] runs [MASK]", "the cat runs"]))
    assert found[0].tokens > found[1].tokens + 2


def test_sentences_come_in_a_stream(opened: Opened):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield SENTENCES[taken % len(SENTENCES)]

    first = next(score_sentences(opened, endless()))
    assert first.total == pytest.approx(totals(opened, [SENTENCES[1]])[0], rel=1e-4)
    assert taken < 20_000


def test_bf16_is_near(folder: Path, opened: Opened):
    near = totals(open_model(folder, ["mlm"], precision="bf16"), SENTENCES)
    exact = totals(opened, SENTENCES)
    assert near != exact
    assert near == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize(
    ("sentence", "reason"), [("the cat " * 20, "42 tokens, and the model 32 positions"), ("\u200b", "has no tokens")]
)
def test_a_sentence_that_cannot_be_read_whole_is_refused(sentence: str, reason: str, opened: Opened, tmp_path: Path):
    with pytest.raises(DataError, match=reason):
        totals(opened, ["cat", sentence])
    path = write_pairs(tmp_path / "pairs.jsonl", pair("the cat", "a dog"), pair("cat", sentence))
    with pytest.raises(DataError, match=rf"^pairs\.jsonl row 2 (has )?{reason}"):
        judge_pairs(opened, read_pairs(path))


def test_models_and_variants_that_do_not_serve_are_refused(opened: Opened, folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"no variant 'orginal'; did you mean 'original'"):
        totals(opened, ["cat"], variant="orginal")
    with pytest.raises(ValueError, match=r"has the head 'mlm', and this needs 'rtd'"):
        open_model(folder, ["rtd"])
    classifier = open_model(saved(tmp_path, "classification"), ["classification"])
    with pytest.raises(ValueError, match=r"has the head 'classification', and sentences are scored by"):
        totals(classifier, ["cat"])


def judged(opened: Opened, *rows: dict[str, object], folder: Path, **more: Any) -> PairResults:
    return judge_pairs(opened, read_pairs(write_pairs(folder / "pairs.jsonl", *rows)), **more)


def test_accuracies_are_means_over_paradigms_and_fields(opened: Opened, tmp_path: Path):
    likelier, other = _ordered(opened)
    right, wrong = (likelier, other), (other, likelier)
    rows = [pair(*right, "a", "syntax/semantics"), pair(*wrong, "a", "syntax_semantics"), pair(*right, "b", "syntax_semantics")]
    rows += [pair(*right, "c", "syntax"), pair(*wrong, "c", "syntax"), pair(*wrong, "c", "syntax"), pair(*wrong, "c", "syntax")]
    found = judged(opened, *rows, folder=tmp_path)
    assert {name: one.accuracy for name, one in found.paradigms.items()} == {"a": 0.5, "b": 1.0, "c": 0.25}
    assert found.fields == {"syntax": 0.25, "syntax_semantics": 0.75}
    assert (found.accuracy, found.mean_of_fields) == (pytest.approx(3 / 7), 0.5)
    assert found.mean == pytest.approx((0.5 + 1 + 0.25) / 3)
    assert (found.pairs, found.right, found.ties, found.head, found.variant) == (7, 3, 0, "mlm", "original")


def _ordered(opened: Opened) -> tuple[str, str]:
    first, second = "the cat runs.", "a dog sings."
    one, two = totals(opened, [first, second])
    return (first, second) if one > two else (second, first)


@pytest.mark.parametrize("head", ["mlm", "rtd"])
def test_identical_sentences_tie_whatever_stands_around_them(head: str, opened: Opened, discriminator: Opened, tmp_path: Path):
    chance = Random(0)
    rows = [pair(*(" ".join(chance.choices(PIECES[:7], k=chance.randint(3, 12))) for _ in range(2))) for _ in range(30)]
    same = [pair("The cat sings on a house.", "The cat sings on a house."), pair("the  dog runs", "The dog runs")]
    rows[3:3], rows[20:20] = same[:1], same[1:]
    for batch in (1, 7):
        found = judged(opened if head == "mlm" else discriminator, *rows, folder=tmp_path, batch=batch)
        assert (found.ties, found.pairs) == (2, 32)
        assert found.paradigms["p"].right + found.paradigms["p"].ties <= 32
        assert found.accuracy == found.right / 32


def test_pairs_are_found_in_files_and_folders(tmp_path: Path):
    write_pairs(tmp_path / "one.jsonl.gz", pair("a", "b", "x"), pair("c", "d", "x"))
    write_pairs(tmp_path / "two.jsonl", {"sentence_good": "e", "sentence_bad": "f"})
    (tmp_path / "readme.md").write_text("no pairs")
    found = read_pairs(tmp_path)
    assert [(one.good, one.paradigm, one.field) for one in found.pairs] == [("a", "x", "f"), ("c", "x", "f"), ("e", "two", "")]
    assert read_pairs(tmp_path / "one.jsonl.gz").pairs == found.pairs[:2]


def test_bad_rows_of_pairs_are_named(tmp_path: Path):
    rows = [
        pair("a", "b"),
        {"sentence_good": "a", "sentence_baad": "b"},
        pair("a", ""),
        pair("a", "b", "p", "other"),
        pair("c", "d"),
    ]
    path = write_pairs(tmp_path / "pairs.jsonl", *rows)
    path.write_text(path.read_text() + "not json\n")
    with pytest.raises(DataError) as error:
        read_pairs(path)
    assert re.findall(r"row (\d)", str(error.value)) == ["2", "3", "4", "6"]
    assert "has no sentence_bad; did you mean 'sentence_baad'?" in str(error.value)
    found = read_pairs(path, on_bad_row="skip")
    assert (len(found.pairs), len(found.skipped)) == (2, 4)
    assert found.skipped[0].startswith("pairs.jsonl row 2 has no sentence_bad")


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_no_pairs_at_all_is_an_error(content: str | None, tmp_path: Path):
    if content is not None:
        (tmp_path / "pairs.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"holds no|row 1 is blank"):
        read_pairs(tmp_path)


TEXT = "The cat runs.\n\nthe dog don't like a house in the red house\nunlikely cats sings\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT * 4)
    return tmp_path / "text.txt"


def test_pseudo_perplexity_is_that_of_the_pseudo_log_likelihoods(opened: Opened, text: Path):
    scores = list(score_sentences(opened, [line for line in (TEXT * 4).splitlines() if line]))
    found = measure_text(opened, text, length=32, sample=None)
    tokens = sum(score.tokens for score in scores)
    assert (found.tokens, found.sampled, found.rows, found.standard_error) == (tokens, tokens, 12, 0.0)
    assert found.pseudo_nats == pytest.approx(-sum(score.total for score in scores) / tokens, rel=1e-5)
    assert found.pseudo_perplexity == pytest.approx(math.exp(found.pseudo_nats))


def test_masked_accuracy_is_that_of_a_plain_loop(opened: Opened, text: Path):
    found = measure_text(opened, text, length=32, share=1.0, sample=5)
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(opened.folder), AutoTokenizer.from_pretrained(opened.folder)
    nats, right = [], []
    for line in (TEXT * 4).split("\n"):
        if line:
            ids = tokenizer(line, return_tensors="pt")["input_ids"]
            masked = ids.clone()
            masked[:, 1:-1] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = model(masked).logits[0, 1:-1]
            nats += F.cross_entropy(logits, ids[0, 1:-1], reduction="none").tolist()
            right += (logits.argmax(-1) == ids[0, 1:-1]).tolist()
    assert found.masked == len(nats)
    assert found.nats == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert found.accuracy == pytest.approx(sum(right) / len(right))


def test_what_is_masked_depends_on_the_seed_alone(opened: Opened, text: Path):
    def found(**more: Any) -> tuple[float, ...]:
        one = measure_text(opened, text, length=32, **{"sample": 10} | more)
        return round(one.nats, 5), one.accuracy, round(one.pseudo_nats, 5)

    assert found() == found(batch=3)
    assert len({found(), found(seed=1), found(seed=2)}) == 3
    one = measure_text(opened, text, length=32, share=0.15, sample=10)
    assert 0.1 < one.masked / one.tokens < 0.3
    assert one.sampled == 10
    assert one.standard_error > 0


def test_long_lines_are_read_in_parts(opened: Opened, tmp_path: Path):
    (tmp_path / "long.txt").write_text("the cat runs on a house . " * 9)
    found = measure_text(opened, tmp_path / "long.txt", length=12, sample=3)
    assert (found.tokens, found.rows) == (63, 7)
    with pytest.raises(ValueError, match=r"length=33, and .* reads rows of 3 to 32 tokens"):
        measure_text(opened, tmp_path / "long.txt", length=33)


def test_a_text_needs_a_model_of_masked_tokens_and_text(opened: Opened, discriminator: Opened, text: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"takes a model with the head 'mlm'"):
        measure_text(discriminator, text)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"empty.txt holds no text"):
        measure_text(opened, tmp_path / "empty.txt", length=32)
    (tmp_path / "latin.txt").write_bytes(b"the cat\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"line 2 is not UTF-8"):
        measure_text(opened, tmp_path / "latin.txt", length=32)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_vectors_are_those_of_sentences_alone(pool: str, opened: Opened):
    model, tokenizer = AutoModel.from_pretrained(opened.folder), AutoTokenizer.from_pretrained(opened.folder)
    found = pooled(opened, SENTENCES, pool=pool, layers=[0, 2, -1], batch=4)
    assert found.shape == (3, len(SENTENCES), 32)
    for place, sentence in enumerate(SENTENCES):
        with torch.no_grad():
            states = model(**tokenizer(sentence, return_tensors="pt"), output_hidden_states=True).hidden_states
        for at, layer in enumerate((0, 2, -1)):
            wanted = states[layer][0].mean(0) if pool == "mean" else states[layer][0, 0]
            torch.testing.assert_close(found[at, place], wanted, rtol=1e-4, atol=1e-4)


def test_similarity_is_correlated_with_what_people_say(opened: Opened, tmp_path: Path):
    chance = Random(0)
    rows = [(*chance.sample(SENTENCES, 2), chance.uniform(0, 5)) for _ in range(20)]
    lines = [f"{one}\t{two}\t{number:.3f}" for one, two, number in rows]
    (tmp_path / "alike.tsv").write_text("\n".join(["sentence1\tsentence2\tlabel", *lines]) + "\n")
    found = judge_similarity(opened, tmp_path / "alike.tsv", layers=[1, -1])
    assert ([one.layer for one in found.layers], found.rows) == ([1, 4], 20)
    first, second = (pooled(opened, [row[side] for row in rows])[0] for side in (0, 1))
    cosines = F.cosine_similarity(first, second)
    truth = [float(f"{row[2]:.3f}") for row in rows]
    assert found.layers[1].spearman == pytest.approx(stats.spearmanr(cosines, truth).statistic)
    assert found.layers[1].pearson == pytest.approx(stats.pearsonr(cosines, truth).statistic)


def test_similarity_refuses_what_has_none(opened: Opened, tmp_path: Path):
    (tmp_path / "one.tsv").write_text("sentence1\tlabel\nthe cat\t1.0\na dog\t2.0\n")
    with pytest.raises(DataError, match="one sentence a row"):
        judge_similarity(opened, tmp_path / "one.tsv")
    for wrong, message in (({"layers": [5]}, "there is no layer 5: .* has 0 to 4"), ({"pool": "men"}, "did you mean 'mean'")):
        with pytest.raises(ValueError, match=message):
            pooled(opened, ["cat"], **wrong)


def test_the_command_prints_and_writes_the_results(folder: Path, text: Path, tmp_path: Path, capsys: Any):
    pairs = write_pairs(tmp_path / "pairs.jsonl", pair("the cat", "a dog"), pair("cat", "cat"))
    command("score", folder, "--pairs", pairs, "--variant", "within_word_l2r", "--out", tmp_path / "pairs.json")
    printed = capsys.readouterr()
    assert "mean of paradigms" in printed.out
    assert "1 ties, which count as wrong" in printed.err
    found = PairResults.model_validate_json((tmp_path / "pairs.json").read_text())
    assert (found.pairs, found.ties, found.variant) == (2, 1, "within_word_l2r")
    command("score", folder, "--text", text, "--sample", 4, "--seed", 3)
    assert "pseudo-perplexity" in capsys.readouterr().out
    with pytest.raises(ValueError, match="give one of --pairs, --text and --similarity"):
        command("score", folder, "--text", text, "--pairs", pairs)


@pytest.mark.large
@pytest.mark.skipif(not LARGE, reason="LAYERWRIGHT_DATA names no folder")
def test_blimp_is_whole_and_its_identical_pairs_tie(discriminator: Opened):
    found = read_pairs(Path(LARGE or "") / "blimp")
    counts = {name: sum(one.paradigm == name for one in found.pairs) for name in {one.paradigm for one in found.pairs}}
    assert len(counts) == 67
    assert set(counts.values()) == {1000}
    assert {one.field for one in found.pairs} == {"morphology", "semantics", "syntax", "syntax_semantics"}
    assert sum(one.good == one.bad for one in found.pairs) == 7
    some = found._replace(pairs=tuple(one for one in found.pairs if one.paradigm in ("passive_1", "principle_A_case_2")))
    ties = judge_pairs(discriminator, some).paradigms
    # Words that the toy's tokenizer does not know are all alike, so that more pairs than these tie.
    assert ties["passive_1"].ties >= 2
    assert ties["principle_A_case_2"].ties >= 5
