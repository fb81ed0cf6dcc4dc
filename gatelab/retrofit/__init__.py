"""A gate put into a trained model, and both trained on beside an ungated control: starts, surgery, what is measured."""

from .arms import Arms, make_arms, trained
from .job import retrofit
from .measures import Measured, measure
from .sinks import FirstKey, FirstKeys, first_keys
from .starts import as_identity, identity
from .surgery import operated
from .texts import Texts, read_texts, written
from .tuning import Tuned, tune

__all__ = [
    "Arms",
    "FirstKey",
    "FirstKeys",
    "Measured",
    "Texts",
    "Tuned",
    "as_identity",
    "first_keys",
    "identity",
    "make_arms",
    "measure",
    "operated",
    "read_texts",
    "retrofit",
    "trained",
    "tune",
    "written",
]
