"""What the guide shows of the layer runs as it stands, one example after another."""

import re
from pathlib import Path

import torch

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


def test_the_guides_examples_of_the_layer_run() -> None:
    section = GUIDE.read_text(encoding="utf-8").partition("## In your own training loop\n")[2].partition("\n## ")[0]
    codes, names = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL), {}
    for code in codes:
        exec(compile(code, "docs/guide.md", "exec"), names)
    assert len(codes) == 4 and names["rows"] and names["cache"].length == 10
    attention, x_BTD, is_token_BS = names["attention"].eval(), torch.randn(2, 5, 512), names["attention_mask"].bool()
    padded_BTD = attention(x_BTD, is_token_BS=is_token_BS)
    torch.testing.assert_close(padded_BTD[:1, 3:], attention(x_BTD[:1, 3:]))
