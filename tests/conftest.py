"""What every test runs under: no network, a home folder of its own, one thread a process, the same examples every time.

The environment is set while this file is imported, because libraries read it when they are imported.
"""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

HOME = tempfile.TemporaryDirectory(prefix="layerwright-home-")
os.environ |= {
    "HOME": HOME.name,
    "XDG_CACHE_HOME": f"{HOME.name}/cache",
    "XDG_CONFIG_HOME": f"{HOME.name}/config",
    "HF_HOME": f"{HOME.name}/huggingface",
    "HF_HUB_OFFLINE": "1",
    "LAYERWRIGHT_NATIVE": str(Path(__file__).parents[1] / ".cache" / "native"),  # built once for all processes
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",  # golden numbers are those of CPUs
    "TERM": "dumb",
    "COLUMNS": "120",
}
for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
    os.environ.pop(name, None)

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from tokenizers.pre_tokenizers import Whitespace  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from layerwright.corpus import Corpus, CorpusSettings, build  # noqa: E402

torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what takes minutes, unless it is asked for."""
    if not os.environ.get("LAYERWRIGHT_SLOW"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="it takes minutes: set LAYERWRIGHT_SLOW=1"))


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Make a connection to any other machine an error that names the address."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and str(address[0]) not in ("127.0.0.1", "::1", "localhost"):  # type: ignore[index]
            raise AssertionError(f"a test tried to connect to {address}")
        connect(self, address)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Start each test from the same random state, so that its order among the others does not matter."""
    torch.manual_seed(0)


WORDS = {
    "how": "small old quick red quiet heavy bright cold green empty",
    "who": "dog house river teacher stone garden train letter winter window bridge farmer",
    "does": "sees finds likes carries opens follows remembers paints",
    "where": "near under behind above with without",
}


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """About 14,000 tokens of made-up sentences in 300 documents, a tenth of them held out."""
    chance, words = Random(0), {kind: text.split() for kind, text in WORDS.items()}

    def sentence() -> str:
        said = [chance.choice(words[kind]) for kind in ("how", "who", "does", "how", "who", "where", "who")]
        return "The {} {} {} the {} {} {} the {}.".format(*said)

    documents = ["\n".join(sentence() for _ in range(chance.randint(2, 9))) for _ in range(300)]
    folder: Path = tmp_path_factory.mktemp("tiny")
    (folder / "sentences.txt").write_text("\n\n".join(documents) + "\n")
    return build([str(folder / "sentences.txt")], folder / "corpus", CorpusSettings(vocab=300, validation=0.1))


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A folder with a tokenizer of fourteen words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *["the", "cat", "dog", "sat", "on", "a", "mat", "and", "ran"]]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    names = {f"{name}_token": token for name, token in special.items()}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"
