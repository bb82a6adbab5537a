import errno
import fcntl
import gzip
import json
import os
import random
import signal
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from layerwright import corpus as corpus_module
from layerwright import documents, packing, vocabulary
from layerwright.corpus import Corpus, CorpusSettings, build, python_documents
from layerwright.errors import DataError, IntegrityError, RunInUse
from layerwright.python_docs import prose
from layerwright.vocabulary import SPECIAL

WORDS = "the quick brown fox jumps over a lazy dog while seven small boats sail home, slowly; rain fell on café roofs.".split()  # noqa: SIM905
TINY = CorpusSettings(vocab=300, validation=0.2)


def document(seed: int) -> str:
    dice = random.Random(seed)
    return "\n".join(" ".join(dice.choices(WORDS, k=dice.randint(3, 30))) for _ in range(dice.randint(1, 3)))


DOCUMENTS = [document(seed) for seed in range(60)]


def as_text(texts: list[str]) -> bytes:
    return "\n\n".join(texts).encode()


def as_jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts).encode()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    paragraphs = [line for text in DOCUMENTS for line in text.splitlines()]
    vocabulary.save(vocabulary.learn(paragraphs, vocab=300, model="wordpiece", lowercase=True), folder)
    return folder / "tokenizer.json"


@pytest.fixture(scope="module")
def python() -> list[tuple[str, str]]:
    return list(python_documents())


@pytest.fixture
def given(tokenizer: Path) -> CorpusSettings:
    return TINY.model_copy(update={"tokenizer": tokenizer})


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(as_text(DOCUMENTS))
    return path


def decoded(corpus: Corpus, split: str) -> list[str]:
    tokenizer = corpus.fast_tokenizer()
    tokens, starts = corpus.tokens(split), corpus.starts(split)
    return [tokenizer.decode(tokens[start:end]) for start, end in pairwise(starts)]


def letters(text: str) -> str:
    return "".join(text.lower().replace("é", "e").split())


def test_word_pieces_decode_to_the_documents(text: Path, tmp_path: Path) -> None:
    corpus = build([str(text)], tmp_path / "out", TINY)
    found = decoded(corpus, "train") + decoded(corpus, "validation")
    assert sorted(map(letters, found)) == sorted(map(letters, DOCUMENTS))
    in_order = [letters(one) for one in decoded(corpus, "train")]
    assert in_order == [letters(one) for one in DOCUMENTS if letters(one) in set(in_order)]


def test_bytes_decode_to_the_documents_exactly(text: Path, tmp_path: Path) -> None:
    corpus = build([str(text)], tmp_path / "out", TINY.model_copy(update={"model": "bpe", "lowercase": False}))
    assert sorted(decoded(corpus, "train") + decoded(corpus, "validation")) == sorted(DOCUMENTS)


def test_every_kind_of_file_gives_the_same_tokens(tmp_path: Path, given: CorpusSettings) -> None:
    kinds = {"a.txt": as_text(DOCUMENTS), "a.jsonl": as_jsonl(DOCUMENTS)}
    kinds |= {f"{name}.gz": gzip.compress(content) for name, content in kinds.items()}
    for name, content in kinds.items():
        (tmp_path / name).write_bytes(content)
    pq.write_table(pa.table({"text": DOCUMENTS, "id": range(60)}), tmp_path / "a.parquet", row_group_size=7)
    first, *others = (build([str(tmp_path / name)], tmp_path / f"out-{name}", given) for name in [*kinds, "a.parquet"])
    for other in others:
        for split in packing.SPLITS:
            np.testing.assert_array_equal(first.tokens(split), other.tokens(split))
            np.testing.assert_array_equal(first.starts(split), other.starts(split))


def test_text_of_other_systems_is_read(tmp_path: Path, given: CorpusSettings) -> None:
    (tmp_path / "unix.txt").write_bytes(as_text(DOCUMENTS))
    (tmp_path / "other.txt").write_bytes(b"\xef\xbb\xbf" + as_text(DOCUMENTS).replace(b"\n", b"\r\n") + b"\r\n \r\n")
    unix, other = (build([str(tmp_path / f"{name}.txt")], tmp_path / name, given) for name in ("unix", "other"))
    np.testing.assert_array_equal(unix.tokens("train"), other.tokens("train"))


def test_folders_globs_and_repetitions(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.jsonl", "notes.md"):
        (tmp_path / name).write_text(name)
    names = [Path(source.name).name for source in documents.find([str(tmp_path)])]
    assert names == ["a.txt", "b.txt", "c.jsonl"]
    found = documents.find([str(tmp_path / "b.txt"), str(tmp_path / "*.txt"), f"{tmp_path}/deep/../b.txt"])
    assert [Path(source.name).name for source in found] == ["b.txt", "a.txt"]


def test_transformers_loads_the_tokenizer(text: Path, tmp_path: Path) -> None:
    corpus = build([str(text)], tmp_path / "out", TINY)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    pairs = tokenizer(["the dog", "the dog"], ["sail home, dog", "dog"], padding=True)
    assert tokenizer.decode(pairs["input_ids"][0]) == "[CLS] the dog [SEP] sail home, dog [SEP]"
    assert tokenizer.decode(pairs["input_ids"][1]) == "[CLS] the dog [SEP] dog [SEP]" + 3 * " [PAD]"
    assert pairs["token_type_ids"][0] == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert pairs["attention_mask"][1] == [1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert tokenizer.pad_token_id == corpus.special.pad
    assert tokenizer.mask_token_id == corpus.special.mask
    assert len(tokenizer) == corpus.vocab


def test_special_tokens_written_in_the_text_are_text(tmp_path: Path, given: CorpusSettings) -> None:
    (tmp_path / "a.txt").write_text("the [MASK] dog [SEP]\n\nthe fox [PAD] home")
    corpus = build([str(tmp_path / "a.txt")], tmp_path / "out", given)
    ids = {*corpus.tokens("train").tolist(), *corpus.tokens("validation").tolist()}
    assert ids.isdisjoint({corpus.special.pad, corpus.special.cls, corpus.special.sep, corpus.special.mask})


@pytest.mark.parametrize(("vocab", "kind"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_type_on_disk_is_the_smallest_that_holds_the_vocabulary(vocab: int, kind: type, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, *(f"w{number}" for number in range(vocab - 6)), "last"]) + "\n")
    (tmp_path / "a.txt").write_text("w7 last\n\nlast w8")
    corpus = build([str(tmp_path / "a.txt")], tmp_path / "out", CorpusSettings(tokenizer=tmp_path / "vocab.txt"))
    tokens = corpus.tokens("train")
    assert corpus.vocab == vocab
    assert tokens.dtype == kind
    assert sorted(tokens.tolist()) in ([12, vocab - 1], [13, vocab - 1])


def test_split_of_a_document_depends_on_its_text_alone(tmp_path: Path, given: CorpusSettings) -> None:
    (tmp_path / "all.txt").write_bytes(as_text(DOCUMENTS))
    (tmp_path / "some.txt").write_bytes(as_text(DOCUMENTS[::-2]))
    everything, some = (build([str(tmp_path / f"{name}.txt")], tmp_path / name, given) for name in ("all", "some"))
    assert 4 <= len(everything.starts("validation")) - 1 <= 22  # 12 expected
    for split in packing.SPLITS:
        assert set(decoded(some, split)) < set(decoded(everything, split))


@pytest.mark.parametrize("share", [1e-9, 0.5])
def test_no_split_is_empty(share: float, tmp_path: Path, given: CorpusSettings) -> None:
    held = [text for text in DOCUMENTS if packing._is_held_out(text, share)]
    texts = (held or DOCUMENTS)[:3]
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(texts))
    corpus = build([str(tmp_path / "a.jsonl")], tmp_path / "out", given.model_copy(update={"validation": share}))
    moved, rest = ("train", "validation") if held else ("validation", "train")
    assert list(map(letters, decoded(corpus, rest))) == list(map(letters, texts[:2]))
    assert list(map(letters, decoded(corpus, moved))) == [letters(texts[2])]
    corpus.verify()


def test_long_documents_are_cut_at_blanks(tmp_path: Path, given: CorpusSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LONGEST_DOCUMENT", 500)
    whole = " ".join(DOCUMENTS[:20])
    (tmp_path / "a.jsonl").write_bytes(as_jsonl([whole]))
    (tmp_path / "a.txt").write_bytes("\n".join(DOCUMENTS).encode())
    for name, text in (("a.jsonl", whole), ("a.txt", "\n".join(DOCUMENTS))):
        (source,) = documents.find([str(tmp_path / name)])
        parts = [part for part, _ in source.read()]
        assert max(map(len, parts)) <= 1000
        assert len(parts) > len(text) // 1000
        assert " ".join(parts).split() == text.split()


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("built again")


def test_rebuilding_the_same_does_nothing(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build([str(text)], tmp_path / "out", TINY)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    monkeypatch.setattr(corpus_module, "pack", refuse)
    assert build([str(text)], tmp_path / "out", TINY) == first
    (tmp_path / "moved").mkdir()
    moved = text.rename(tmp_path / "moved" / "renamed.txt")
    os.utime(moved)
    assert build([str(moved)], tmp_path / "out", TINY) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == stamps


@pytest.mark.parametrize("model", ["wordpiece", "bpe"])
def test_learning_twice_gives_the_same_vocabulary(model: str) -> None:
    # Rare letters, each as frequent as many others: the library's own order of these is random.
    dice = random.Random(0)
    paragraphs = DOCUMENTS + ["".join(dice.choices([chr(0x4C0 + letter) for letter in range(200)], k=9)) for _ in range(300)]
    first, second = (vocabulary.learn(paragraphs, vocab=600, model=model, lowercase=True).to_str() for _ in range(2))  # type: ignore[arg-type]
    assert first == second


def test_another_corpus_is_never_taken_for_the_same(text: Path, tmp_path: Path, given: CorpusSettings) -> None:
    out = tmp_path / "out"
    settings = given.model_copy(update={"tokenizer": tmp_path / "mine.json"})
    content = given.tokenizer.read_text()  # type: ignore[union-attr]
    settings.tokenizer.write_text(content)  # type: ignore[union-attr]
    second = tmp_path / "second.txt"
    second.write_text("a fox\n\na dog")
    sources = [str(text), str(second)]
    before = build(sources, out, settings).fingerprint

    with pytest.raises(ValueError, match=r"validation: 0\.2 -> 0\.3"):
        build(sources, out, settings.model_copy(update={"validation": 0.3}))
    with pytest.raises(ValueError, match=r"lowercase: True -> False"):
        build(sources, out, settings.model_copy(update={"lowercase": False}))
    with pytest.raises(ValueError, match=r"second.txt: \w+ -> not set"):
        build(sources[:1], out, settings)
    with pytest.raises(ValueError, match="order"):
        build(sources[::-1], out, settings)
    stamp = second.stat()
    second.write_text("a fox\n\na cat")  # as long, and as old
    os.utime(second, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(ValueError, match=r"second\.txt: "):
        build(sources, out, settings)
    second.write_text("a fox\n\na dog")
    settings.tokenizer.write_text(content.replace("##", "@@"))  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="tokenizer: "):
        build(sources, out, settings)
    assert Corpus.open(out).fingerprint == before


def test_same_bytes_of_another_kind_are_another_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(as_jsonl(DOCUMENTS))
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(DOCUMENTS))
    lines, records = documents.find([str(tmp_path / "a.txt"), str(tmp_path / "a.jsonl")])
    assert lines.digest != records.digest


@pytest.mark.parametrize("file", ["train.bin", "validation.starts", "tokenizer/tokenizer.json", "manifest.json"])
def test_torn_corpus_is_named_and_built_again(file: str, text: Path, tmp_path: Path, given: CorpusSettings) -> None:
    out = tmp_path / "out"
    before = build([str(text)], out, given)
    whole = (out / file).read_bytes()
    for content in (None, whole[:-2], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        (out / file).unlink() if content is None else (out / file).write_bytes(content)
        with pytest.raises(DataError if (file, content) == ("manifest.json", None) else IntegrityError, match=file):
            Corpus.open(out)
        assert build([str(text)], out, given) == before
        before.verify()


def test_verify_hashes_what_opening_does_not(
    text: Path, tmp_path: Path, given: CorpusSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = build([str(text)], tmp_path / "out", given)
    monkeypatch.setattr(corpus_module, "SMALL", 0)
    content = bytearray((tmp_path / "out" / "train.bin").read_bytes())
    content[100] ^= 1
    (tmp_path / "out" / "train.bin").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"train\.bin"):
        Corpus.open(tmp_path / "out").verify()
    assert corpus.tokens("train").shape


def test_other_files_are_never_overwritten(text: Path, tmp_path: Path, given: CorpusSettings) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert build([str(text)], out, given).folder == out  # an empty folder will do
    (out / "manifest.json").unlink()
    (out / "thesis.doc").write_text("mine")
    with pytest.raises(ValueError, match="something else"):
        build([str(text)], out, given)
    with pytest.raises(ValueError, match="something else"):
        build([str(text)], text, given)
    assert (out / "thesis.doc").read_text() == "mine"
    assert text.read_bytes() == as_text(DOCUMENTS)


BAD = {
    "empty.txt": (b"", "empty.txt: is empty"),
    "blank.txt": (b"\n \n\n", "blank.txt: holds no text"),
    "latin.txt": (b"fine\ncaf\xe9 here\n", r"latin.txt, line 2: not UTF-8 \(byte 4 is 0xe9\)"),
    "nul.txt": (b"fine\n\nfine\na\0b\n", "nul.txt, line 4: byte 2 is NUL"),
    "long.txt": (b"fine\n" + b"a " * 2000, "long.txt, line 2: longer than 2,000 bytes"),
    "cut.txt.gz": (gzip.compress(as_text(DOCUMENTS))[:-200], "cut.txt.gz: cut short or not gzip, after line"),
    "flipped.txt.gz": (gzip.compress(b"fine\n\nfine")[:-6] + b"123456", "flipped.txt.gz: cut short or not gzip"),
    "plain.txt.gz": (b"not gzip", "plain.txt.gz: cut short or not gzip, after line 0"),
    "empty.jsonl.gz": (b"", "empty.jsonl.gz: is empty"),
    "broken.jsonl": (b'{"text": "fine"}\n{"text" "fi"}\n', "broken.jsonl, line 2: not JSON .*column 9"),
    "deep.jsonl": (b"[" * 1900, "deep.jsonl, line 1: not JSON"),
    "digits.jsonl": (b'{"text": "fine"}\n\n' + b"1" * 1900, "digits.jsonl, line 3: int where an object"),
    "lacks.jsonl": (b'{"text": "fine"}\n{"Text": "x", "id": 1}\n', "lacks.jsonl, line 2: lacks 'text'; it has 'Text', 'id'"),
    "list.jsonl": (b'["text"]\n', "list.jsonl, line 1: list where an object"),
    "number.jsonl": (b'{"text": 3}\n', "number.jsonl, line 1: 'text' is int, not a string"),
    "null.jsonl": (b'{"text": null}\n', "null.jsonl, line 1: 'text' is NoneType"),
    "nul.jsonl": (b'{"text": "a\\u0000"}\n', "nul.jsonl, line 1: character 2 of 'text' is NUL"),
    "half.jsonl": (b'{"text": "\\ud83d"}\n', "half.jsonl, line 1: character 1 of 'text' is half a surrogate"),
    "not.parquet": (b"PAR1 or not", "not.parquet: damaged or not Parquet"),
    "single.txt": (b"a single\ndocument", "single document"),
    "table.csv": (b"a,b", r"table.csv: not a kind of text that can be read; known: .txt, .txt.gz, .jsonl"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_text_is_named(name: str, tmp_path: Path, given: CorpusSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LONGEST_LINE", 2000)
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    for settings in (given, TINY):
        with pytest.raises(DataError, match=message):
            build([str(tmp_path / name)], tmp_path / "out", settings)
    assert os.listdir(tmp_path) == [name]  # nothing half-written


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    def read(**columns: list[object]) -> None:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        list(documents.find([str(tmp_path / "a.parquet")])[0].read())

    with pytest.raises(DataError, match=r"a.parquet: lacks a column 'text'; it has body, id"):
        read(body=["a"], id=[1])
    with pytest.raises(DataError, match="row 2: 'text' is NoneType"):
        read(text=["a", None])
    with pytest.raises(DataError, match="row 1: 'text' is int"):
        read(text=[1])
    with pytest.raises(DataError, match=r"a.parquet: holds no text"):
        read(text=["", " "])


def test_missing_text_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "train.txt").write_text("text")
    with pytest.raises(DataError, match=r"there is no .*/shards/trian.txt; did you mean 'train.txt'\?"):
        documents.find([str(tmp_path / "shards" / "trian.txt")])
    with pytest.raises(DataError, match=r"there is no .*/shrads; did you mean 'shards'\?"):
        documents.find([str(tmp_path / "shrads" / "train.txt")])
    with pytest.raises(DataError, match="no text there"):
        documents.find([str(tmp_path / "*.txt")])
    with pytest.raises(DataError, match="no text is named"):
        documents.find([])


def test_text_that_changes_while_it_is_read_is_refused(text: Path) -> None:
    (source,) = documents.find([str(text)])
    text.write_bytes(as_text(DOCUMENTS[:-1]))
    with pytest.raises(DataError, match="was changed while it was read"):
        list(source.read())


def test_bad_vocabularies_are_named(text: Path, tmp_path: Path, tokenizer: Path) -> None:
    def built_with(name: str, content: str | bytes) -> None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        build([str(text)], tmp_path / "out", CorpusSettings(tokenizer=tmp_path / name))

    with pytest.raises(DataError, match=r"vocab.txt: the vocabulary lacks \[MASK\]"):
        built_with("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n")
    with pytest.raises(DataError, match=r"vocab.txt, line 7: 'the' stands there a second time"):
        built_with("vocab.txt", "\n".join([*SPECIAL, "the", "the"]))
    with pytest.raises(DataError, match=r"vocab.txt: not UTF-8 \(byte 2\)"):
        built_with("vocab.txt", b"a\xff")
    with pytest.raises(DataError, match=r"t.json: not a tokenizer.json"):
        built_with("t.json", "{}")
    with pytest.raises(DataError, match=r"t.json: the vocabulary lacks \[CLS\], \[SEP\]"):
        built_with("t.json", tokenizer.read_text().replace("[CLS]", "<s>").replace("[SEP]", "</s>"))
    with pytest.raises(DataError, match="there is no tokenizer"):
        build([str(text)], tmp_path / "out", CorpusSettings(tokenizer=tmp_path / "none.json"))
    for model, vocab, needed in (("wordpiece", 30, r"\d\d"), ("bpe", 260, "261")):
        with pytest.raises(DataError, match=f"vocab={vocab} is too small: .* are {needed} already"):
            build([str(text)], tmp_path / "out", CorpusSettings(vocab=vocab, model=model))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_given_tokenizer_neither_truncates_nor_pads(text: Path, tmp_path: Path, given: CorpusSettings) -> None:
    limited = vocabulary.load(given.tokenizer, True)  # type: ignore[arg-type]
    limited.enable_truncation(4)
    limited.enable_padding(length=8)
    limited.save(str(tmp_path / "limited.json"))
    plain = build([str(text)], tmp_path / "plain", given)
    other = build([str(text)], tmp_path / "other", given.model_copy(update={"tokenizer": tmp_path / "limited.json"}))
    np.testing.assert_array_equal(plain.tokens("train"), other.tokens("train"))


def fake_hub(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, object]]) -> list[object]:
    calls: list[object] = []
    datasets, hub = ModuleType("datasets"), ModuleType("huggingface_hub")

    def load_dataset(*arguments: object, **named: object) -> list[dict[str, object]]:
        calls.append((arguments, named))
        return rows

    def dataset_info(name: str) -> SimpleNamespace:
        if name != "me/mine":
            raise RuntimeError("404")
        return SimpleNamespace(sha="abc")

    datasets.load_dataset = load_dataset  # type: ignore[attr-defined]
    hub.HfApi = lambda: SimpleNamespace(dataset_info=dataset_info)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return calls


def test_data_set_is_streamed_at_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: CorpusSettings) -> None:
    calls = fake_hub(monkeypatch, [{"text": text} for text in DOCUMENTS])
    corpus = build(["hf:me/mine:small"], tmp_path / "out", given)
    assert calls == [(("me/mine", "small"), {"split": "train", "streaming": True, "revision": "abc"})]
    (tmp_path / "a.txt").write_bytes(as_text(DOCUMENTS))
    same = build([str(tmp_path / "a.txt")], tmp_path / "same", given)
    np.testing.assert_array_equal(corpus.tokens("train"), same.tokens("train"))


def test_bad_data_sets_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, [{"text": "fine"}, {"body": "x"}])
    with pytest.raises(DataError, match=r"hf:me/mine, row 2: lacks 'text'; it has 'body'"):
        list(documents.find(["hf:me/mine"])[0].read())
    with pytest.raises(DataError, match=r"hf:me/yours: cannot be found on the hub \(404\)"):
        documents.find(["hf:me/yours"])


@pytest.mark.parametrize(("name", "module"), [("hf:me/mine", "datasets"), ("a.parquet", "pyarrow")])
def test_missing_extra_is_named(name: str, module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"needs {module}: pip install 'layerwright\[data\]'"):
        list(documents.find([name])[0].read())


SLOW = """
import sys, time
from pathlib import Path
from layerwright import corpus, settings
def slowly(function):
    def wrapped(*arguments, **named):
        time.sleep(0.05)
        result = function(*arguments, **named)
        print(function.__name__, flush=True)
        time.sleep(0.05)
        return result
    return wrapped
corpus.pack, corpus._seal = slowly(corpus.pack), slowly(corpus._seal)
corpus.vocabulary.save, corpus.os.rename = slowly(corpus.vocabulary.save), slowly(corpus.os.rename)
corpus.build([sys.argv[1]], Path(sys.argv[2]), corpus.CorpusSettings(vocab=300, validation=0.2))
"""


def test_killed_build_leaves_nothing_believed(text: Path, tmp_path: Path) -> None:
    out, expected = tmp_path / "out", build([str(text)], tmp_path / "expected", TINY)
    for last_words in ("save", "pack", "_seal"):
        command = [sys.executable, "-c", SLOW, str(text), str(out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout
            assert any(line.strip() == last_words for line in process.stdout)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not out.exists()
        assert (tmp_path / ".out.building").exists()
    (tmp_path / ".out.building" / "left").mkdir()
    corpus = build([str(text)], out, TINY)
    assert corpus.fingerprint == expected.fingerprint
    corpus.verify()
    assert {path.name for path in tmp_path.iterdir()} == {"expected", "out", "text.txt"}


def test_full_disk_leaves_nothing(text: Path, tmp_path: Path, given: CorpusSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(corpus_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        build([str(text)], tmp_path / "out", given)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_one_process_builds_at_a_time(text: Path, tmp_path: Path, given: CorpusSettings) -> None:
    folder = tmp_path / ".out.building"
    folder.mkdir()
    (folder / "theirs").touch()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(RunInUse, match="another process is building"):
        build([str(text)], tmp_path / "out", given)
    assert (folder / "theirs").exists()
    os.close(descriptor)
    build([str(text)], tmp_path / "out", given)


def test_python_carries_about_two_megabytes_of_english(python: list[tuple[str, str]]) -> None:
    found = python
    packages, texts = {package for package, _ in found}, [text for _, text in found]
    assert 1_400_000 < sum(map(len, texts)) < 2_500_000
    assert len(texts) > 2500
    assert len(set(texts)) == len(texts)
    assert {"asyncio", "email", "json", "pydoc_data", "statistics"} < packages
    assert not any(">>>" in text or "\n\n" in text for text in texts)
    words = " ".join(texts).lower().split()
    assert words.count("the") > 0.05 * len(words)


def test_python_documents_are_always_the_same(python: list[tuple[str, str]]) -> None:
    assert list(islice(python_documents(), 800)) == python[:800]


def test_prose_leaves_code_out() -> None:
    docstring = """Return the mean of the
    numbers given.

    Usage
    -----

        x = mean([1, 2], key=f(x)[0])

    Example of some use:
    >>> mean([1, 2])
    1.5
    """
    assert list(prose(docstring)) == ["Return the mean of the numbers given.", "Example of some use:"]


def test_python_becomes_a_corpus(tmp_path: Path, python: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "python_documents", lambda: iter(python))
    corpus = build(["python"], tmp_path / "out", CorpusSettings(vocab=2048))
    assert corpus.vocab == 2048
    assert 300_000 < len(corpus.tokens("train")) < 600_000
    assert 10 < len(corpus.starts("validation")) < 100
    assert (corpus.tokens("train") == corpus.special.unk).mean() < 1e-3


@pytest.mark.large
def test_wikipedia_and_the_vocabulary_of_bert(tmp_path: Path) -> None:
    root = os.environ.get("LAYERWRIGHT_DATA")
    if not root:
        pytest.skip("LAYERWRIGHT_DATA names no folder of texts")
    text = Path(root, "text", "enwiki-2015", "valid.txt.gz")
    settings = CorpusSettings(tokenizer=Path(root, "vocab", "bert-base-uncased.txt"))
    corpus = build([str(text)], tmp_path / "out", settings)
    assert (corpus.vocab, corpus.special) == (30522, (0, 100, 101, 102, 103))
    assert (corpus.tokens("train") == corpus.special.unk).mean() < 0.01
    first = next(documents.find([str(text)])[0].read())[0]
    assert letters(decoded(corpus, "train")[0])[:100] == letters(first)[:100]
