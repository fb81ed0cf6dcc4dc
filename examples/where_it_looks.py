"""Where do queries that need nothing from attention look? Bigram-Backcopy, one run a seed, taps read by plain hooks.

Run it: `.venv/bin/python examples/where_it_looks.py 0 4`. Seed 0 looks at BOS; seed 4 at the trigger tokens.
"""

import sys

import torch

from gatelab import override
from gatelab.ops.gated_attention.reference import attention_weights
from gatelab.studies.quickstart import toy
from gatelab.train.group import Group
from gatelab.train.loop import train


def look(seed: int, tokens: int = toy.train.tokens) -> dict[str, float]:
    """Attention of dormant queries from position 8 on, by kind of key; mean value norm by kind of key."""
    group = Group([override(toy, {"seed": seed, "train.tokens": tokens})])
    for _ in train(group):
        pass
    member = group.members[0]
    batch = member.source.heldout_batch(0, 64, toy.train.seq_len)
    tokens_BT = torch.from_numpy(batch.inputs_BT)
    attention, seen = member.model.blocks[0].attention, {}
    for name in ("q", "k", "v"):
        tap = getattr(attention, f"tap_{name}")
        tap.register_forward_hook(lambda _module, _inputs, output, name=name: seen.__setitem__(name, output))
    with torch.no_grad():
        member.model(tokens_BT)
    weights_BHTS, _ = attention_weights(seen["q"], seen["k"])
    dormant_BT = torch.from_numpy(batch.domain_BT) == 0
    dormant_BT[:, :8] = False
    norm_BS = seen["v"][:, :, 0].norm(dim=-1)
    is_bos = tokens_BT == member.source.bos_id
    is_trigger = tokens_BT < toy.data.n_triggers
    kinds = {"BOS": is_bos, "triggers": is_trigger, "others": ~is_bos & ~is_trigger}
    found = {}
    for kind, is_kind_BS in kinds.items():
        mass_BT = (weights_BHTS[:, 0] * is_kind_BS[:, None, :]).sum(-1)
        found[f"mass on {kind}"] = mass_BT[dormant_BT].mean().item()
        found[f"value norm of {kind}"] = norm_BS[is_kind_BS].mean().item()
    return found


def main(*seeds: int, tokens: int = toy.train.tokens) -> dict[int, dict[str, float]]:
    """One line a seed."""
    out = {}
    for seed in seeds or (0, 4):
        out[seed] = look(seed, tokens)
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.3g}" for name, value in out[seed].items()), flush=True)
    return out


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
