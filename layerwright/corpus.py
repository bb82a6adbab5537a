"""Turn text into a corpus: a tokenizer, and the tokens of the text in memory-mapped files.

Two corpora are the same if their recipes are: the contents of the text and of a given tokenizer, and the settings. A corpus
is written beside its place and moved there when it is whole, so a folder of that name is never half of one.

    manifest.json      the recipe, size and SHA-256 of every file, and the fingerprint of it all
    tokenizer/         what transformers' AutoTokenizer loads
    train.bin          uint16 or uint32: the tokens of one document after another, without special ones between them
    train.starts       int64: where each document starts, and where the last one ends
    validation.*       the same for the documents held out
"""

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from layerwright import documents, vocabulary
from layerwright.console import warn
from layerwright.documents import Source
from layerwright.errors import DataError, IntegrityError, RunInUse, nearest
from layerwright.packing import SPLITS, pack, token_type
from layerwright.python_docs import python_documents
from layerwright.settings import differences, sync_folder, write_atomically
from layerwright.vocabulary import Special

__all__ = ["Corpus", "CorpusSettings", "Special", "build", "python_documents"]

MANIFEST = "manifest.json"
SMALL = 8 << 20  # bytes; what is larger is hashed by `Corpus.verify` only

_OURS = {MANIFEST, "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"} | {
    f"{split}.{kind}" for split in SPLITS for kind in ("bin", "starts")
}


class CorpusSettings(BaseModel):
    """Say how text becomes tokens.

    `vocab`, `model` and `sample` are for learning a tokenizer, from at most `sample` characters spread evenly over the
    sources, `tokenizer` is one to take instead: a tokenizer.json or a vocab.txt. `lowercase` also strips accents in word
    pieces. `validation` is the share of documents held out, chosen by a hash of their text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab: int = Field(default=30522, gt=0)
    model: Literal["wordpiece", "bpe"] = "wordpiece"
    lowercase: bool = True
    tokenizer: Path | None = None
    sample: int = Field(default=50_000_000, gt=0)
    validation: float = Field(default=0.01, gt=0, le=0.5)


@dataclass(frozen=True)
class Corpus:
    """Hold the tokens of a text and the tokenizer they came from; every id is below `vocab`."""

    folder: Path
    fingerprint: str
    vocab: int
    special: Special

    @classmethod
    def open(cls, folder: Path) -> "Corpus":
        """Open a corpus, after checking the size of every file and the hash of the small ones.

        Raises: DataError where there is no corpus; IntegrityError naming the file that is torn or altered.
        """
        folder = Path(folder)
        manifest = _manifest(folder)
        _check(folder, manifest, up_to=SMALL)
        return cls(folder, manifest["fingerprint"], manifest["vocab"], Special(**manifest["special"]))

    def tokens(self, split: str) -> np.memmap[Any, Any]:
        """Map the tokens of "train" or "validation"."""
        return np.memmap(self._file(split, "bin"), dtype=token_type(self.vocab), mode="r")

    def starts(self, split: str) -> NDArray[np.int64]:
        """Map where each document starts in the tokens; one more entry than documents, the last is the end."""
        return np.memmap(self._file(split, "starts"), dtype=np.int64, mode="r")

    @property
    def tokenizer_file(self) -> Path:
        """Name the tokenizer.json; its folder is what AutoTokenizer loads."""
        return self.folder / "tokenizer" / "tokenizer.json"

    def fast_tokenizer(self) -> PreTrainedTokenizerFast:
        """Load the tokenizer as transformers' class."""
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(self.tokenizer_file.parent)
        return tokenizer

    def verify(self) -> None:
        """Check the hash of every file, the tokens too.

        Raises: IntegrityError naming the file that is torn or altered.
        """
        _check(self.folder, _manifest(self.folder))

    def _file(self, split: str, kind: str) -> Path:
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}{nearest(split, SPLITS)}")
        return self.folder / f"{split}.{kind}"


def build(sources: Sequence[str], out: Path, settings: CorpusSettings = CorpusSettings()) -> Corpus:  # noqa: B008 - frozen
    """Build a corpus in the folder `out`, or open the one there if it is the same.

    `sources` are files, folders, globs, `hf:NAME[:CONFIG]` or `python`, as `documents.find` reads them. All cores tokenize,
    unless RAYON_NUM_THREADS or TOKENIZERS_PARALLELISM says otherwise.
    Raises: DataError for text or a tokenizer that cannot be used; ValueError where `out` is something else;
    RunInUse while another process builds there.
    """
    out = Path(out).resolve()
    found = documents.find(sources)
    given = vocabulary.load(settings.tokenizer, settings.lowercase) if settings.tokenizer else None
    recipe = {
        **settings.model_dump(mode="json"),
        "tokenizer": _digest(settings.tokenizer) if settings.tokenizer else None,
        "text": [source.digest for source in found],
    }
    names = [source.name for source in found]
    if corpus := _standing(out, recipe, names):
        return corpus
    with _building(out) as folder:
        tokenizer = given or vocabulary.learn(
            _sample(found, settings.sample), vocab=settings.vocab, model=settings.model, lowercase=settings.lowercase
        )
        vocabulary.save(tokenizer, folder / "tokenizer")
        pack(found, tokenizer, folder, validation=settings.validation)
        _seal(folder, tokenizer, recipe, names)
    return Corpus.open(out)


def _sample(sources: Sequence[Source], characters: int) -> list[str]:
    """Take the first documents of every source, as paragraphs."""
    paragraphs: list[str] = []
    for index, source in enumerate(sources):
        share = characters // (len(sources) - index)
        for text, _ in source.read():
            paragraphs += text.splitlines()
            characters -= len(text)
            share -= len(text)
            if share <= 0:
                break
    return paragraphs


def _seal(folder: Path, tokenizer: Tokenizer, recipe: dict[str, Any], names: list[str]) -> None:
    """Put the files on the disk, and the manifest that vouches for them."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
        files[path.relative_to(folder).as_posix()] = (path.stat().st_size, _digest(path))
    manifest = {
        "recipe": recipe,
        "sources": names,
        "vocab": vocabulary.size(tokenizer),
        "special": vocabulary.special(tokenizer)._asdict(),
        "files": files,
    }
    manifest["fingerprint"] = _fingerprint(manifest)
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _fingerprint(manifest: dict[str, Any]) -> str:
    # Names of sources stay out: text that was moved is the same text.
    content = [manifest.get(key) for key in ("recipe", "vocab", "special", "files")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder} is not a corpus: there is no {path}") from None
    except ValueError:
        raise IntegrityError(f"{path} is torn: it is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("fingerprint") != _fingerprint(manifest):
        raise IntegrityError(f"{path} was altered: its fingerprint is not that of what it says")
    return manifest


def _check(folder: Path, manifest: dict[str, Any], up_to: float = math.inf) -> None:
    """Check every file's size, and its hash if it has at most `up_to` bytes."""
    for name, (size, digest) in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise IntegrityError(f"{path} is missing")
        if (actual := path.stat().st_size) != size:
            raise IntegrityError(f"{path} is torn: it has {actual:,} bytes, not {size:,}")
        if size <= up_to and _digest(path) != digest:
            raise IntegrityError(f"{path} was altered: its SHA-256 is not the manifest's")


def _standing(out: Path, recipe: dict[str, Any], names: list[str]) -> Corpus | None:
    """Open the corpus that stands at `out` if it is of this recipe; None where there is nothing or a torn one."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        corpus, manifest = Corpus.open(out), _manifest(out)
    except (DataError, IntegrityError) as error:
        found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
        if not found or found - _OURS:
            raise ValueError(f"{out} holds something else than a corpus: choose another folder") from None
        warn(f"{error}; it is built again")
        return None
    if manifest["recipe"] != recipe:
        tables = [
            {**one, "text": dict(zip(of, one["text"], strict=True))}
            for one, of in ((manifest["recipe"], manifest["sources"]), (recipe, names))
        ]
        changed = "; ".join(differences(*tables)) or "the order of the text"
        raise ValueError(f"{out} holds another corpus ({changed}): choose another folder, or remove this one")
    return corpus


@contextmanager
def _building(out: Path) -> Iterator[Path]:
    """Give an empty folder to build in that becomes `out` at the end; what a killed build has left there goes."""
    folder = out.with_name(f".{out.name}.building")
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder, f"another process is building {out}"):
        try:
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield folder
            if out.exists():
                shutil.rmtree(out)  # empty or torn, as `_standing` has made sure
            os.rename(folder, out)
            sync_folder(out.parent)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextmanager
def _held(folder: Path, otherwise: str) -> Iterator[None]:
    """Hold a folder against other processes; the system lets go of it when this one dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunInUse(otherwise) from None
        if not folder.exists() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise RunInUse(otherwise)  # its owner has just moved it into place
        yield
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
