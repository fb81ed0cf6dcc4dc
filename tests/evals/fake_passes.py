"""A tokenizer of bytes, and passes without a model."""

from types import SimpleNamespace

import torch
from torch import Tensor

from gatelab.evals.harness.passes import Passes
from gatelab.evals.harness.tokens import Tokens

V = 256 + 2**16


class OfBytes:
    """A tokenizer of transformers, as far as it is asked; of one byte a token, or of two where it can."""

    eos_token_id = bos_token_id = None
    is_fast = False

    def __init__(self, n: int = 1):
        self.n = n

    def __call__(self, texts: str | list[str], **_given: object) -> SimpleNamespace:
        if isinstance(texts, str):
            return SimpleNamespace(input_ids=self._ids(texts))
        return SimpleNamespace(input_ids=[self._ids(text) for text in texts])

    def _ids(self, text: str) -> list[int]:
        pieces = [text.encode()[i : i + self.n] for i in range(0, len(text.encode()), self.n)]
        return [p[0] if len(p) == 1 else 256 + 256 * p[0] + p[1] for p in pieces]

    def decode(self, ids: list[int], **_given: object) -> str:
        return b"".join(bytes([i]) if i < 256 else bytes(divmod(i - 256, 256)) for i in ids).decode()


class Fake(Passes):
    """Passes without a model."""

    shares = False

    def __init__(self, n: int = 1, max_tokens: int | None = None):
        self.model, self.n_ids, self.max_tokens, self.device = torch.nn.Identity(), V, max_tokens, torch.device("cpu")
        self.tokens = Tokens(OfBytes(n), V)
        self.longest = 0

    def begin(self, contexts):
        raise AssertionError("contexts are not shared")

    go_on = begin

    def whole(self, rows):
        self.longest = max([self.longest, *map(len, rows)])
        return torch.stack(
            [torch.nn.functional.pad(x, (0, max(map(len, rows)) - len(x)), value=0) for x in map(self.next, rows)]
        )[:, :, None].double()

    def logits(self, x_ND: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(x_ND[:, 0].long(), V).float() * 40
