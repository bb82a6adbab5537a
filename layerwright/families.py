"""The families of transformers that Layerwright converts from and to: one declaration each, and nothing but tables.

A family is a network whose blocks are all alike: a layer that mixes tokens, then an `ffn`, each in its residual.  Its
declaration says which field of `config.json` holds what an architecture says, what each weight is called, and which class
holds which head.  The names are those of transformers 5 (its modeling and configuration files, one folder per family).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Their words for an activation, and ours; of two words for one function the first is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}

# Fields with which a model is no encoder that we have, and the values they have in one that is.
PLAIN: Mapping[str, tuple[object, ...]] = {
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "position_embedding_type": ("absolute", None),
    "pruned_heads": ({}, None),
    "tie_encoder_decoder": (False, None),
    "quantization_config": (None,),
}

# What both configurations call by the same name.
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
CARRIED = (*TOKENS, "problem_type")

# The heads whose classes have names.
LABELLED = ("classification", "tokens")


@dataclass(frozen=True)
class Head:
    """A class of a family: what it is called, and how its head's weights are.

    names: a module or weight of ours -> theirs.  act: of the hidden map in the head, one of ours, or "same" as in the layers.
    input_dropout: also before that map.  dropout: their field for it, where it is not that of the family; "" where none drops.
    tied: weights of theirs that repeat another, and which of ours that is.  needs: fields that must have this value.
    """

    model: str
    names: Mapping[str, str] = field(default_factory=dict)
    act: str | None = None
    input_dropout: bool = False
    dropout: str = "classifier_dropout"
    tied: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A family: how its configuration spells an architecture, and its weights ours.

    fields: a word of ours -> their field.  fixed: words that no field sets, and what they are.  names: a module or weight
    of ours -> theirs, within the base model; of a block the number of the layer in it (0 or 1) stands before ours.
    dropped: a pattern of their weights that a class may leave lying in a file -> what that is.
    """

    name: str
    title: str
    mixer: str
    fields: Mapping[str, str]
    fixed: Mapping[str, int | float]
    block: str
    names: Mapping[str, str]
    block_names: Mapping[str, str]
    heads: Mapping[str, Head]
    pooler: bool = False
    others: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> str:
        """The name of the class of its configuration."""
        return f"{self.title}Config"


FIELDS = {
    "width": "hidden_size",
    "blocks": "num_hidden_layers",
    "heads": "num_attention_heads",
    "inner": "intermediate_size",
    "act": "hidden_act",
    "vocab": "vocab_size",
    "positions": "max_position_embeddings",
    "segments": "type_vocab_size",
    "eps": "layer_norm_eps",
    "hidden_dropout_prob": "hidden_dropout_prob",
    "attention_probs_dropout_prob": "attention_probs_dropout_prob",
}

NAMES = {
    "embed.token": "embeddings.word_embeddings",
    "embed.position": "embeddings.position_embeddings",
    "embed.segment": "embeddings.token_type_embeddings",
    "embed.norm": "embeddings.LayerNorm",
}

BLOCK_NAMES = {
    "0.body.query": "attention.self.query",
    "0.body.key": "attention.self.key",
    "0.body.value": "attention.self.value",
    "0.body.out": "attention.output.dense",
    "0.norm": "attention.output.LayerNorm",
    "1.body.up": "intermediate.dense",
    "1.body.out": "output.dense",
    "1.norm": "output.LayerNorm",
}

BUFFERS = {
    r"embeddings\.(position_ids|token_type_ids)": "numbers that transformers counts up itself",
}
POOLERS = {r"pooler\.dense\.(weight|bias)": "the pooler, which this class does not use"}


def _generator(base: str) -> Head:
    """Return the masked-token head of ELECTRA's generator, which ConvBERT has too."""
    names = {"transform": "generator_predictions.dense", "norm": "generator_predictions.LayerNorm"}
    return Head(
        f"{base}ForMaskedLM",
        {f"head.{ours}": theirs for ours, theirs in names.items()} | {"head.bias": "generator_lm_head.bias"},
        act="gelu",
        tied={"generator_lm_head.weight": "embed.token.weight"},
    )


def _rows(base: str, act: str) -> Head:
    """Return the head for classes of rows that RoBERTa, ELECTRA and ConvBERT have."""
    names = {"head.hidden": "classifier.dense", "head.classes": "classifier.out_proj"}
    return Head(f"{base}ForSequenceClassification", names, act=act, input_dropout=True)


def _flat(base: str) -> dict[str, Head]:
    """Return the heads that are one linear map of each token, the same in all families."""
    return {
        "tokens": Head(f"{base}ForTokenClassification", {"head.classes": "classifier"}),
        "spans": Head(f"{base}ForQuestionAnswering", {"head.classes": "qa_outputs"}, dropout=""),
    }


def _pooled(base: str, task: str, dropout: str = "classifier_dropout") -> Head:
    """Return a head that stands on the pooler of the base model, which is its hidden map."""
    names = {"head.hidden": f"{base.lower()}.pooler.dense", "head.classes": "classifier"}
    return Head(f"{base}For{task}", names, act="tanh", dropout=dropout)


BERT = Family(
    name="bert",
    title="Bert",
    mixer="attn",
    fields=FIELDS,
    fixed={"offset": 0, "groups": 1},
    block="encoder.layer",
    names=NAMES | {"pooler.dense": "pooler.dense"},
    block_names=BLOCK_NAMES,
    heads={
        "backbone": Head("BertModel"),
        "mlm": Head(
            "BertForMaskedLM",
            {
                "head.transform": "cls.predictions.transform.dense",
                "head.norm": "cls.predictions.transform.LayerNorm",
                "head.bias": "cls.predictions.bias",
            },
            act="same",
            tied={
                "cls.predictions.decoder.weight": "embed.token.weight",
                "cls.predictions.decoder.bias": "head.bias",
            },
        ),
        "classification": _pooled("Bert", "SequenceClassification"),
        "choices": _pooled("Bert", "MultipleChoice"),
        **_flat("Bert"),
    },
    pooler=True,
    others={"BertForPreTraining": "mlm"},
    dropped=BUFFERS | POOLERS | {r"cls\.seq_relationship\.(weight|bias)": "the head that predicts the next sentence"},
)

ROBERTA = Family(
    name="roberta",
    title="Roberta",
    mixer="attn",
    fields=FIELDS,
    # RoBERTa counts positions from its padding token on: the rows up to that one are never those of a token.
    fixed={"groups": 1},
    block="encoder.layer",
    names=NAMES | {"pooler.dense": "pooler.dense"},
    block_names=BLOCK_NAMES,
    heads={
        "backbone": Head("RobertaModel"),
        "mlm": Head(
            "RobertaForMaskedLM",
            {"head.transform": "lm_head.dense", "head.norm": "lm_head.layer_norm", "head.bias": "lm_head.bias"},
            act="gelu",
            tied={
                "lm_head.decoder.weight": "embed.token.weight",
                "lm_head.decoder.bias": "head.bias",
            },
        ),
        "classification": _rows("Roberta", "tanh"),
        "choices": _pooled("Roberta", "MultipleChoice", dropout="hidden_dropout_prob"),
        **_flat("Roberta"),
    },
    pooler=True,
    dropped=BUFFERS | POOLERS,
)

DISTILBERT = Family(
    name="distilbert",
    title="DistilBert",
    mixer="attn",
    fields={
        "width": "dim",
        "blocks": "n_layers",
        "heads": "n_heads",
        "inner": "hidden_dim",
        "act": "activation",
        "vocab": "vocab_size",
        "positions": "max_position_embeddings",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    },
    fixed={"offset": 0, "segments": 0, "eps": 1e-12, "groups": 1},
    block="transformer.layer",
    names={ours: theirs for ours, theirs in NAMES.items() if ours != "embed.segment"},
    block_names={
        "0.body.query": "attention.q_lin",
        "0.body.key": "attention.k_lin",
        "0.body.value": "attention.v_lin",
        "0.body.out": "attention.out_lin",
        "0.norm": "sa_layer_norm",
        "1.body.up": "ffn.lin1",
        "1.body.out": "ffn.lin2",
        "1.norm": "output_layer_norm",
    },
    heads={
        "backbone": Head("DistilBertModel", dropout=""),
        "mlm": Head(
            "DistilBertForMaskedLM",
            {"head.transform": "vocab_transform", "head.norm": "vocab_layer_norm", "head.bias": "vocab_projector.bias"},
            act="same",
            dropout="",
            tied={"vocab_projector.weight": "embed.token.weight"},
        ),
        **{
            key: Head(
                f"DistilBertFor{task}",
                {"head.hidden": "pre_classifier", "head.classes": "classifier"},
                act="relu",
                dropout="seq_classif_dropout",
            )
            for key, task in (("classification", "SequenceClassification"), ("choices", "MultipleChoice"))
        },
        "tokens": Head("DistilBertForTokenClassification", {"head.classes": "classifier"}, dropout="dropout"),
        "spans": Head("DistilBertForQuestionAnswering", {"head.classes": "qa_outputs"}, dropout=""),
    },
    dropped=BUFFERS,
)

ELECTRA = Family(
    name="electra",
    title="Electra",
    mixer="attn",
    fields=FIELDS | {"embed": "embedding_size"},
    fixed={"offset": 0, "groups": 1},
    block="encoder.layer",
    names=NAMES | {"embed.widen": "embeddings_project"},
    block_names=BLOCK_NAMES,
    heads={
        "backbone": Head("ElectraModel"),
        "mlm": _generator("Electra"),
        "rtd": Head(
            "ElectraForPreTraining",
            {"head.hidden": "discriminator_predictions.dense", "head.replaced": "discriminator_predictions.dense_prediction"},
            act="same",
        ),
        "classification": _rows("Electra", "gelu"),
        "choices": Head(
            "ElectraForMultipleChoice",
            {"head.hidden": "sequence_summary.summary", "head.classes": "classifier"},
            act="gelu",
            dropout="summary_last_dropout",
            needs={"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"},
        ),
        **_flat("Electra"),
    },
    dropped=BUFFERS,
)

CONVBERT = Family(
    name="convbert",
    title="ConvBert",
    mixer="mixed",
    fields=FIELDS | {"embed": "embedding_size", "ratio": "head_ratio", "kernel": "conv_kernel_size", "groups": "num_groups"},
    fixed={"offset": 0},
    block="encoder.layer",
    names=NAMES | {"embed.widen": "embeddings_project"},
    block_names=BLOCK_NAMES
    | {
        # A convolution over single tokens, which is a linear map with its weight [P, D] written as [P, D, 1].
        "0.body.depthwise": "attention.self.key_conv_attn_layer.depthwise",
        "0.body.pointwise.weight": "attention.self.key_conv_attn_layer.pointwise.weight",
        "0.body.pointwise.bias": "attention.self.key_conv_attn_layer.bias",
        "0.body.kernels": "attention.self.conv_kernel_layer",
        "0.body.conv_value": "attention.self.conv_out_layer",
    },
    heads={
        "backbone": Head("ConvBertModel"),
        "mlm": _generator("ConvBert"),
        "classification": _rows("ConvBert", "same"),
        **_flat("ConvBert"),
    },
    dropped=BUFFERS,
)

FAMILIES = {family.name: family for family in (BERT, ROBERTA, DISTILBERT, ELECTRA, CONVBERT)}
