"""The tokenizer of a run of ours as files that `AutoTokenizer.from_pretrained` reads: bytes, or a tokenizer.json.

Notable: bytes are a byte-level BPE without merges, whose 256 letters have the ids of their bytes; where training began
every sequence with BOS, the tokenizer puts it there.
"""

from pathlib import Path
from typing import Any

from .destination import write_json

_BYTES = {"<|bos|>": 256, "<|endoftext|>": 257, "<|pad|>": 258}
_ROLES = {
    "bos": ("<|bos|>", "<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]", "[CLS]"),
    "eos": ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|eos|>", "[EOS]", "[SEP]"),
    "pad": ("<|pad|>", "<pad>", "[PAD]"),
}


def write_tokenizer(folder: Path, tokenizer_json: Path | None, *, begins: bool) -> dict[str, int]:
    """tokenizer.json and tokenizer_config.json; returns the special ids by the names that transformers gives them.

    Args:
        tokenizer_json: in the format of the tokenizers library; None: bytes.
        begins: every text starts with BOS, as the model was trained.
    """
    from tokenizers import Tokenizer, processors

    library: Any = byte_tokenizer() if tokenizer_json is None else Tokenizer.from_file(str(tokenizer_json))
    ids = library.get_vocab(with_added_tokens=True)
    named = {role: next((n for n in names if n in ids), None) for role, names in _ROLES.items()}
    special = {role: name for role, name in named.items() if name is not None}
    if begins and "bos" in special:
        word = special["bos"]
        library.post_processor = processors.TemplateProcessing(single=f"{word} $A", special_tokens=[(word, ids[word])])
    library.save(str(folder / "tokenizer.json"))
    tokens = {f"{role}_token": name for role, name in special.items()}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **tokens},
    )
    return {f"{role}_token_id": ids[name] for role, name in special.items()}


def byte_tokenizer() -> Any:
    """Ids 0 … 255 are bytes; BOS 256, end of document 257, padding 258, as in `gatelab.data.ByteTokenizer`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    library: Any = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(_letters())}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(word, special=True) for word in _BYTES])
    assert {word: library.token_to_id(word) for word in _BYTES} == _BYTES
    return library


def _letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE (GPT-2): itself where it prints, else one from 256 on."""
    prints = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    silent = [byte for byte in range(256) if byte not in prints]
    return [chr(byte) if byte in prints else chr(256 + silent.index(byte)) for byte in range(256)]
