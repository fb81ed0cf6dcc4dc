"""Train one run from Python and look at it: no study, no folder.

Run it: `.venv/bin/python examples/one_run.py`. A toy in which softmax attention forms a sink, half a minute on one core.
"""

from gatelab import override
from gatelab.evals.heldout import measure
from gatelab.studies.quickstart import toy
from gatelab.train.group import Group
from gatelab.train.loop import train


def main(tokens: int = 256_000) -> dict[str, float]:
    """First-token mass of the queries that need nothing from attention, without a gate and with one."""
    masses = {}
    for gate in ("none", "sdpa-headwise"):
        group = Group([override(toy, {"model.gate": gate, "train.tokens": tokens})])
        for step in train(group):
            if step.step % 100 == 0:
                print(f"{gate}: step {step.step}, loss {step.loss[0]:.3f}")
        member = group.members[0]
        rows = measure(member.model, member.source, member.run, fingerprint="", step=group.step)
        dormant = next(r for r in rows if r.metric == "first_token_mass" and r.domain == "bigram" and r.layer == 0)
        masses[gate] = dormant.value
        print(f"{gate}: {dormant.value:.2f} of the attention of dormant queries goes to the first token")
    return masses


if __name__ == "__main__":
    main()
