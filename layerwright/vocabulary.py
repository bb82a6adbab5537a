"""Learn a vocabulary from text, or take one that exists, and make the tokenizer that uses it.

The library `tokenizers` does the work. What is added is that learning WordPiece twice from one text gives the same
vocabulary, so that a corpus can be rebuilt bit for bit, and that a tokenizer without the special tokens is refused here
instead of failing in training.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from layerwright.console import track
from layerwright.errors import DataError
from layerwright.settings import write_atomically

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Special(NamedTuple):
    """Hold the ids of the special tokens."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


def learn(paragraphs: Sequence[str], *, vocab: int, model: Literal["wordpiece", "bpe"], lowercase: bool) -> Tokenizer:
    """Learn a tokenizer of at most `vocab` tokens; the same text gives the same tokenizer.

    Raises: DataError where the special tokens and the characters alone are more than that.
    """
    if model == "wordpiece":
        tokenizer = _wordpiece(_pieces(paragraphs, vocab, lowercase), lowercase)
    else:
        tokenizer = _byte_level(lowercase)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_shown(paragraphs, "learning the vocabulary"), trainer)
    if (needed := size(tokenizer)) > vocab:
        raise DataError(f"vocab={vocab} is too small: the special tokens and the characters of this text are {needed} already")
    return _finished(tokenizer)


def load(path: Path, lowercase: bool) -> Tokenizer:
    """Load a tokenizer from a tokenizer.json, or from a WordPiece vocabulary with one token a line.

    `lowercase` is for the latter; a tokenizer.json says itself how text is normalised, but is rid of truncation and padding.
    Raises: DataError naming what is wrong with the file, a missing special token included.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"there is no tokenizer {path}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start + 1})") from None
    if path.suffix == ".json":
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # noqa: BLE001 - the library raises no narrower one
            raise DataError(f"{path}: not a tokenizer.json ({error})") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
    else:
        ids: dict[str, int] = {}
        for number, token in enumerate(text.removesuffix("\n").split("\n")):
            if ids.setdefault(token.rstrip("\r"), number) != number:
                raise DataError(f"{path}, line {number + 1}: {token!r} stands there a second time")
        tokenizer = _wordpiece(ids, lowercase)
    if missing := [token for token in SPECIAL if tokenizer.token_to_id(token) is None]:
        raise DataError(f"{path}: the vocabulary lacks {', '.join(missing)}")
    return _finished(tokenizer)


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer so that transformers' AutoTokenizer loads it."""
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        **names,
    }
    folder.mkdir(exist_ok=True)
    write_atomically(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_atomically(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")


def size(tokenizer: Tokenizer) -> int:
    """Count the rows an embedding needs: the greatest id plus one."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def special(tokenizer: Tokenizer) -> Special:
    """Look up the ids of the special tokens."""
    ids = tokenizer.get_vocab()
    return Special(*(ids[token] for token in SPECIAL))


def _pieces(paragraphs: Sequence[str], vocab: int, lowercase: bool) -> dict[str, int]:
    """Learn word pieces, one-character pieces first.

    The library's trainer meets words in the random order of a hash table and numbers the pieces of one character in that
    order, which then decides between equally frequent pairs. So a first pass only finds these pieces, and the second is
    handed them in order.
    """
    alphabet = _alphabet(paragraphs, lowercase, limit=min(1000, max(100, vocab // 16)))
    pieces = dict.fromkeys(SPECIAL, 0)
    for goal, label in ((0, "collecting the characters"), (vocab, "learning the vocabulary")):
        tokenizer = _wordpiece({}, lowercase)
        trainer = trainers.WordPieceTrainer(
            vocab_size=goal,
            special_tokens=[*SPECIAL, *sorted(pieces.keys() - set(SPECIAL))],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_shown(paragraphs, label), trainer)
        pieces = tokenizer.get_vocab(with_added_tokens=False)
    return pieces


def _alphabet(paragraphs: Sequence[str], lowercase: bool, limit: int) -> list[str]:
    """Choose the most frequent characters, as normalised."""
    written: Counter[str] = Counter()
    for paragraph in paragraphs:
        written.update(paragraph)
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    counts: Counter[str] = Counter()
    for character, count in written.items():
        for letter in normalizer.normalize_str(character):
            counts[letter] += count
    return sorted(filter(str.strip, counts), key=lambda letter: (-counts[letter], letter))[:limit]


def _wordpiece(ids: dict[str, int], lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _byte_level(lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _finished(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(list(SPECIAL))
    if tokenizer.post_processor is None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
        )
    return tokenizer


def _shown(paragraphs: Sequence[str], label: str) -> Iterator[str]:
    with track(label, len(paragraphs)) as advance:
        for paragraph in paragraphs:
            yield paragraph
            advance()
