"""Architectures as stacks of the one block. One entry here and the file it names add one. Free of torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """A stack of blocks: its name in the model and in rows, whether its self-attention is causal, whether it has
    cross-attention, and the model fields that say its depth and gates."""

    blocks: str
    name: str
    is_causal: bool = True
    has_cross: bool = False
    depth: str = "n_layers"
    gates: str = "gate"


@dataclass(frozen=True)
class Architecture:
    """`module` is `file:Class` in gatelab.models; `objectives` those it can be trained with, the default first."""

    what: str
    module: str
    stacks: tuple[Stack, ...]
    objectives: tuple[str, ...]


ARCHITECTURES: dict[str, Architecture] = {
    "decoder": Architecture(
        "a causal stack that predicts the next token", "decoder:Decoder", (Stack("blocks", "self"),), ("next-token",)
    ),
    "encoder": Architecture(
        "a stack that sees both ways and fills in what was masked",
        "encoder:Encoder",
        (Stack("blocks", "encoder", is_causal=False),),
        ("masked", "answers"),
    ),
    "encoder-decoder": Architecture(
        "an encoder, and a causal decoder that looks at its output by cross-attention",
        "encoder_decoder:EncoderDecoder",
        (
            Stack("encoder_blocks", "encoder", is_causal=False, depth="n_encoder_layers", gates="encoder_gate"),
            Stack("blocks", "self", has_cross=True),
        ),
        ("span-corruption", "continuation"),
    ),
}
