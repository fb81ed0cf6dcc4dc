"""BERT and RoBERTa as encoders of ours: LayerNorm after each part and on the sum of the embeddings, learned positions, segments.

Layout: `bert.encoder.layer.0.attention.self.query`, `attention.output` o_proj and its norm, `intermediate.dense` w1,
`output.dense` w2. A model saved without a head has no `bert.` before its names, and early ones call a LayerNorm's gain gamma.
Rows 0 to pad_token_id of RoBERTa's positions belong to padding, and text begins after them. Ours has no pooler and no layers
between the last block and the words: its head is the table of the embeddings, and only its hidden states are theirs.
"""

import re
from typing import Any

from ...config import ModelConfig, validate
from .family import Family, refusal
from .tensors import Origin, Tensors

_NAMES = (
    (r"^embedding\.", "embeddings.word_embeddings."),
    (r"^position_embedding\.", "embeddings.position_embeddings."),
    (r"^token_type_embedding\.", "embeddings.token_type_embeddings."),
    (r"^embedding_norm\.", "embeddings.LayerNorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.self.query."),
    (r"\.attention\.k_proj\.", ".attention.self.key."),
    (r"\.attention\.v_proj\.", ".attention.self.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.attention_post_norm\.", ".attention.output.LayerNorm."),
    (r"\.mlp\.w1\.", ".intermediate.dense."),
    (r"\.mlp\.w2\.", ".output.dense."),
    (r"\.mlp_post_norm\.", ".output.LayerNorm."),
)
_OLD = ((r"\.gamma$", ".weight"), (r"\.beta$", ".bias"))


def model(config: Any) -> ModelConfig:
    """Our configuration of such an encoder.

    Raises:
        ValueError: naming the key of the configuration that cannot be expressed.
    """
    c = config
    fields = {
        "arch": "encoder",
        "vocab_size": c.vocab_size,
        "max_seq_len": c.max_position_embeddings - _n_unread(c),
        "d_model": c.hidden_size,
        "n_layers": c.num_hidden_layers,
        "n_heads": c.num_attention_heads,
        "n_kv_heads": c.num_attention_heads,
        "head_dim": c.hidden_size // c.num_attention_heads,
        "d_ff": c.intermediate_size,
        "norm": "layer",
        "norm_position": "post",
        "norm_eps": c.layer_norm_eps,
        "embedding_norm": "layer",
        "positions": "learned",
        "n_token_types": c.type_vocab_size,
        "mlp": "gelu",
        "bias": True,
        "tied_embeddings": True,
    }
    return validate(ModelConfig, fields)


def origin(name: str, shape: tuple[int, ...], ours: ModelConfig, config: Any) -> Origin:
    """Where one of our parameters comes from."""
    theirs, n_unread = name, _n_unread(config)
    for pattern, replacement in _NAMES:
        theirs = re.sub(pattern, replacement, theirs)
    theirs = f"{config.model_type}.{theirs}"
    if name == "position_embedding.weight" and n_unread:
        return Origin(theirs, (shape[0] + n_unread, shape[1]), move=lambda table: table[n_unread:])
    return Origin(theirs, shape)


def with_prefix(tensors: Tensors, config: Any) -> Tensors:
    """The tensors under the names that a model with a head and of today gives them."""
    prefix = f"{config.model_type}."
    bare = () if any(name.startswith(prefix) for name in tensors.shapes) else ("embeddings.", "encoder.", "pooler.")
    own = {prefix + name if name.startswith(bare) else name: name for name in tensors.shapes}
    for pattern, replacement in _OLD:
        own = {re.sub(pattern, replacement, name): stored for name, stored in own.items()}
    shapes = {name: tensors.shapes[stored] for name, stored in own.items()}
    dtypes = {name: tensors.dtypes[stored] for name, stored in own.items()}
    return Tensors(tensors.title, shapes, dtypes, lambda name: tensors.read(own[name]))


def _n_unread(config: Any) -> int:
    """Rows at the start of the table of positions that no text reads."""
    if config.model_type != "roberta":
        return 0
    if config.pad_token_id is None:
        raise refusal(config, "pad_token_id", "does not say where positions begin, which is after it")
    return config.pad_token_id + 1


def _notes(config: Any) -> tuple[str, ...]:
    return (
        "its hidden states are those of its model; for words its head here is the table of its embeddings, as ours has no "
        "layers between",
    )


def _family(prefix: str) -> Family:
    return Family(
        model,
        origin,
        exact={
            "hidden_act": ("gelu",),
            "position_embedding_type": ("absolute",),
            "is_decoder": (False,),
            "add_cross_attention": (False,),
        },
        unused={
            rf"^{prefix}\.pooler\.": "pooler",
            r"^(cls\.|lm_head\.)": "head for words",
            r"^(classifier|qa_outputs)\.": "head of another task",
        },
        view=with_prefix,
        notes=_notes,
    )


BERT, ROBERTA = _family("bert"), _family("roberta")
