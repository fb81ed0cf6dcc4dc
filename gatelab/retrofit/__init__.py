"""A gate put into a trained model, and both trained on beside an ungated control: starts, surgery, what is measured."""

from .arms import Arms, make_arms, trained
from .job import retrofit
from .measures import Measured, measure
from .sinks import FirstKey, FirstKeys, first_keys
from .starts import as_identity, identity
from .surgery import operated, variants
from .texts import Texts, beginnings, cut, firsts, in_turn, read_texts, tokenizer_of, written
from .tuning import Tuned, tune

__all__ = [
    "Arms",
    "FirstKey",
    "FirstKeys",
    "Measured",
    "Texts",
    "Tuned",
    "as_identity",
    "beginnings",
    "cut",
    "first_keys",
    "firsts",
    "identity",
    "in_turn",
    "make_arms",
    "measure",
    "operated",
    "read_texts",
    "retrofit",
    "tokenizer_of",
    "trained",
    "tune",
    "variants",
    "written",
]
