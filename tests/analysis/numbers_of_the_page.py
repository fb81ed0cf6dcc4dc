"""The simulated numbers of docs/statistics.md, by the tests' own studies: python tests/analysis/numbers_of_the_page.py [part …]"""

import sys
from dataclasses import replace
from functools import partial

import numpy as np
from simulated import evidence
from test_anomaly_rules import RULES, alarms, names_one, rule_p
from test_best_rate import false_alarms
from test_cause_dependence import BENT, found_in, planted_share, verdict_shares
from test_dispersion import DRAWS, over_seeds, pitman_morgan
from test_graded import EQUAL, METRIC, OTHER
from test_graded import rates as told_apart
from test_heterogeneity import SIZES, dependences, pooled
from test_heterogeneity import study as sizes_study
from test_optimum import coverage
from test_stages import two_stages

from gatelab.analysis.anomalies.seeds import p_split


def rules():
    for rule in RULES:
        print(
            f"{rule.name}: {alarms(rule, False, 4000):.1%} under its null, {alarms(rule, True, 1000):.1%} where planted"
        )


def screens():
    rng = np.random.default_rng(1)
    print(f"a screen of thirty null cells names one: {np.mean([names_one(rng) for _ in range(400)]):.1%}")


def regimes():
    rng = np.random.default_rng(0)
    print(
        f"two regimes in lognormal samples of 8: {np.mean([p_split(rng.lognormal(size=8)) < 0.05 for _ in range(2000)]):.1%}"
    )
    apart = [p_split(rng.standard_normal(8) + 6 * (np.arange(8) < 4)) < 0.05 for _ in range(2000)]
    print(f"in those six standard deviations apart: {np.mean(apart):.1%}")
    for n in (3, 5):

        def half(n=n):
            return 0.5 * (rng.random(n) < 0.4) + rng.normal(0, 0.005, n)

        p = [rule_p("new-bias", evidence({"sink_elsewhere": {"c0": (half(), half())}})) for _ in range(4000)]
        print(f"new-bias, a bias in 0.4 of the seeds of both arms, {n} seeds: {np.mean(np.array(p) < 0.05):.1%}")


def cells():
    rng = np.random.default_rng(6)
    p = [dependences(sizes_study(rng, between=2), {"size": SIZES}, ["val_loss"])[0].p for _ in range(2000)]
    print(f"a factor of cells that differ for other reasons: {np.mean(np.array(p) < 0.05):.1%}")

    def shared():
        seeds = rng.normal(size=5)
        groups = {c: (np.zeros(5), seeds + rng.normal(size=5)) for c in "abcdef"}
        return pooled(evidence({"val_loss": groups}), "val_loss", "gated").p

    print(f"pooled, seeds that move six cells alike: {np.mean([shared() < 0.05 for _ in range(2000)]):.1%}")


def spreads():
    rng = np.random.default_rng(2)
    p = [
        over_seeds([(*(10.0**k * rng.normal(size=(2, 5))), range(5)) for k in (0, 1, 2, 3, 4, 4)]).p
        for _ in range(4000)
    ]
    print(f"spread over six cells of other scales: {np.mean(np.array(p) < 0.05):.1%}")
    for share in (0.5, 0.9):

        def study(share=share):
            both = share**0.5 * rng.normal(size=(2, 1, 5)) + (1 - share) ** 0.5 * rng.normal(size=(2, 6, 5))
            return [(*pair, range(5)) for pair in both.transpose(1, 0, 2)]

        p = [over_seeds(study()).p for _ in range(2000)]
        print(f"spread, {share:.0%} of the variance shared by cells: {np.mean(np.array(p) < 0.05):.1%}")


def skewed():
    rng = np.random.default_rng(3)

    def alarms(test, draw, n, ratio=1):
        found = [test([(draw(n), ratio * draw(n), range(n))]) for _ in range(2000)]
        return np.mean([f is not None and f.p < 0.05 for f in found])

    def solved(n):
        return np.where(rng.random(n) < 0.9, 1e-3 * np.exp(rng.normal(0, 0.5, n)), 1 + 0.1 * rng.normal(size=n))

    for name, draw in (DRAWS | {"solved in nine of ten": lambda _, n: solved(n)}).items():
        for n in (5, 16, 64):
            alone, together = (alarms(test, partial(draw, rng), n) for test in (pitman_morgan, over_seeds))
            seen = alarms(over_seeds, partial(draw, rng), n, 3)
            print(
                f"spread of losses, {name}, {n} seeds: {together:.1%}; Pitman and Morgan's alone {alone:.1%}; three times as"
                f" large {seen:.0%}"
            )


def stages():
    for nu0 in (4, 8, np.inf):
        rng = np.random.default_rng(1)
        found = np.mean([two_stages(rng, nu0) for _ in range(1000)], axis=0)
        print(f"two stages, nu0 = {nu0}: " + ", ".join(f"{x:.1%}" for x in found))


def rates():
    for gap in (0, 1, 4):
        for n_seeds in (3, 5, 16):
            best, cost, mean = false_alarms(np.random.default_rng([gap, n_seeds]), n_seeds, gap, 4000)
            print(
                f"best of three rates {gap} apart, {n_seeds} seeds: {best:.1%}; cost of the largest {cost:.1%}, by {mean:.2f}"
            )


def accuracies():
    for name, (one, other) in {**{k: (v, v) for k, v in EQUAL.items()}, **OTHER}.items():
        for n in (3, 5, 8, 16):
            new, counted = told_apart(one, other, n, 1000)
            old, _ = told_apart(one, other, n, 1000, replace(METRIC, graded=False))
            print(f"accuracies {name}, {n} seeds: {new:.1%}, in two groups {counted:.1%}; always counted {old:.1%}")


def optima():
    for n in (3, 5, 16):
        for noise in (0.02, 0.1, 0.3):
            inside, unbounded = coverage(n, noise, 2000)
            print(
                f"optimum of three rates, {n} seeds, noise {noise}: covered {inside:.1%}, not bounded {unbounded:.1%}"
            )


def causes():
    for n_seeds in (20, 64):
        alarms, seen = (found_in(1000, n_seeds, share) for share in (lambda *_: 0.5, planted_share))
        for name in alarms:
            print(
                f"{name} of two states, {n_seeds} seeds: {alarms[name]:.1%} under its null, {seen[name]:.1%} where planted"
            )


def bends():
    for effects in ((0.0, 0.0, 0.0), (0.0, 0.005, 0.01), BENT):
        for n_seeds in (5, 16, 64):
            shares = verdict_shares(effects, n_seeds, 0.01, 2000)
            print(
                f"effects {effects} at three rates, {n_seeds} seeds: {', '.join(f'{v} {x:.1%}' for v, x in shares.items())}"
            )


PARTS = (rules, screens, regimes, cells, spreads, skewed, stages, rates, accuracies, optima, causes, bends)

if __name__ == "__main__":
    for part in PARTS:
        if part.__name__ in sys.argv[1:] or len(sys.argv) == 1:
            part()
