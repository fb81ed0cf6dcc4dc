"""How a checkpoint is to be loaded, as one value. What could run somebody's code is off unless asked for."""

from typing import Literal

from ...config.base import Config
from .positions import Extension


class Loading(Config):
    """`head`: with the language-model head, which losses need. `dtype`: of the weights in memory; `auto` is as they are
    stored. `allow_pickle`: pickled weights may be opened, as weights only. `extension`: positions beyond the trained ones."""

    head: bool = False
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    trust_remote_code: bool = False
    allow_pickle: bool = False
    extension: Extension | None = None
