"""The simulated numbers of docs/statistics.md, by the tests' own studies: python tests/analysis/numbers_of_the_page.py [part …]"""

import sys
from dataclasses import replace
from functools import partial

import numpy as np
from simulated import evidence, normal
from stored_noise import as_stored, noise_of, skewed
from test_anomaly_rules import ON_LOSSES, RULES, alarms, by_name, named, names_one, rule_p
from test_best_rate import false_alarms
from test_cause_dependence import BENT, found_in, planted_share, verdict_shares
from test_dispersion import DRAWS, over_seeds, pitman_morgan
from test_graded import EQUAL, METRIC, OTHER
from test_graded import rates as told_apart
from test_heterogeneity import SIZES, dependences, pooled
from test_heterogeneity import study as sizes_study
from test_optimum import coverage
from test_skew_notices import named as skew_named
from test_stages import two_stages
from tried_for_skew import TRIED, over_cells

from gatelab.analysis.anomalies.seeds import p_split
from gatelab.analysis.student import q_values

NOISES = {
    "normal": normal,
    "skew -2.5": skewed(),
    "-1.8": noise_of("backcopy-key", "1-layer-bos-lr0.002", "elementwise-open"),
    "+0.7": noise_of("backcopy-key", "1-layer-bos-lr0.008", "headwise-half"),
    "+2.5": skewed(-1),
}


def rules():
    for rule in RULES:
        print(
            f"{rule.name}: {alarms(rule, False, 4000):.1%} under its null, {alarms(rule, True, 1000):.1%} where planted"
        )


def screens():
    rng = np.random.default_rng(1)
    print(f"a screen of thirty null cells names one: {np.mean([names_one(rng) for _ in range(400)]):.1%}")
    for name in ("normal", "skew -2.5", "+2.5"):
        power, false = np.mean([named(rng, 4, NOISES[name]) for _ in range(300)], axis=0)
        none = np.mean([named(rng, 0, NOISES[name])[1] > 0 for _ in range(300)])
        print(f"a screen of thirty cells, four worse, {name}: {power:.1%} named, {false:.1%} false; of none {none:.1%}")


def losses():
    for name in ON_LOSSES:
        for n in (5, 16):
            found = {k: alarms(by_name(name), False, 2000, how=(n, noise)) for k, noise in NOISES.items()}
            print(f"{name}, {n} seeds, at 5%: " + ", ".join(f"{k} {x:.1%}" for k, x in found.items()))


def tried():
    rng = np.random.default_rng(0)
    for n in (5, 8, 16):
        seen = 2 + normal(rng, 4000 * n).reshape(4000, n)
        null = {k: noise(rng, 4000 * n).reshape(4000, n) for k, noise in NOISES.items()}
        for name, test in TRIED.items():
            at = ", ".join(
                f"{k} {(test(d) < 0.05).mean():.1%}, {(test(d) < 0.005).mean():.1%}" for k, d in null.items()
            )
            print(f"{name}, {n} seeds, at 5% and 0.5%: {at}; two deviations at 0.5% {(test(seen) < 0.005).mean():.1%}")


def pooled_skew():
    noise, spread = as_stored()
    for name, noises, nu0 in (("normal", [normal], 4), ("skew -2.5", [skewed()], 8), ("as stored", noise, None)):
        for is_corrected in (False, True):
            rng, out = np.random.default_rng(2), []
            for _ in range(500):
                sigma = np.array(spread) if nu0 is None else (nu0 / rng.chisquare(nu0, 48)) ** 0.5
                effect = 2.0 * rng.choice((-1, 1), 48) * (rng.permutation(48) < 6)
                d = sigma[:, None] * (effect[:, None] + np.array([noises[i % len(noises)](rng, 5) for i in range(48)]))
                is_seen = q_values(over_cells(d, is_corrected=is_corrected)) <= 0.10
                is_true = is_seen & (np.sign(d.mean(1)) == effect / 2)
                out.append((is_true.sum() / 6, (is_seen & ~is_true).sum() / max(1, is_seen.sum())))
            power, false = np.mean(out, axis=0)
            print(
                f"48 cells, {name}, {'corrected by the pooled skew' if is_corrected else 't'}: {power:.1%}, false {false:.1%}"
            )


def notices():
    rng = np.random.default_rng(1)
    for n, n_cells in ((5, 1), (5, 12), (5, 48), (16, 1), (16, 12), (64, 12), (64, 48)):
        found = {k: np.mean([skew_named(rng, n, [x] * n_cells) for _ in range(400)]) for k, x in NOISES.items()}
        print(f"skew is named, {n_cells} cells of {n} seeds: " + ", ".join(f"{k} {x:.1%}" for k, x in found.items()))


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


def spreads_of_losses():
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


def two_stages_of(name, nu0, n_studies=500, **how):
    rng = np.random.default_rng(1)
    found = np.mean([two_stages(rng, nu0, **how) for _ in range(n_studies)], axis=0)
    print(f"two stages, {name}: " + ", ".join(f"{x:.1%}" for x in found))


def stages():
    for nu0 in (4, 8, np.inf):
        two_stages_of(f"nu0 = {nu0}", nu0, 1000)


def gates():
    for nu0 in (4, 8):
        for n_true, n in ((6, 5), (6, 6), (6, 7), (18, 5)):
            two_stages_of(
                f"three gates, {n_true} true, {n} seeds, nu0 = {nu0}", nu0, n_gates=3, n_true=n_true, seeds=(n, n)
            )


def families():
    """Of three gates: one family of tests, or one each."""
    for nu0 in (4, 8):
        for where, n_among in (("anywhere", 144), ("of one gate", 48)):
            rng, out = np.random.default_rng(3), []
            for _ in range(500):
                sigma = (nu0 / rng.chisquare(nu0, (3, 48))) ** 0.5
                is_true = np.isin(np.arange(144), rng.permutation(n_among)[:6]).reshape(3, 48)
                d = sigma[..., None] * (rng.normal(size=(3, 48, 5)) - 2.0 * is_true[..., None])
                p = np.array([over_cells(of_gate, is_corrected=False) for of_gate in d])
                for q in (q_values(p.ravel()).reshape(3, 48), np.array([q_values(of_gate) for of_gate in p])):
                    seen = q <= 0.10
                    out.append(((seen & is_true).sum() / 6, (seen & ~is_true).sum() / max(1, seen.sum())))
            (one, false), (each, false_each) = (np.mean(out[i::2], axis=0) for i in (0, 1))
            print(
                f"six true {where}, nu0 = {nu0}: {one:.1%}, false {false:.1%}; a family a gate {each:.1%}, {false_each:.1%}"
            )


def own_variances():
    for is_shrunk in (True, False):
        words, how = "shrunk" if is_shrunk else "not shrunk", {"is_shrunk": is_shrunk, "n_studies": 300}
        two_stages_of(f"three gates, 18 true, 8 fresh, {words}", 4, n_gates=3, n_true=18, seeds=(5, 8), **how)
        two_stages_of(f"skew -2.5, 16 seeds, 8 fresh, {words}", 8, noises=[skewed()], seeds=(16, 8), **how)


def noises():
    noise, spread = as_stored()
    for effect in (-2.0, 2.0):
        for fresh in (5, 8, 16):
            two_stages_of(
                f"skew -2.5, {effect:+g}, {fresh} fresh", 8, effect=effect, noises=[skewed()], seeds=(5, fresh)
            )
        two_stages_of(f"as stored, {effect:+g}", 8, effect=effect, noises=noise, seeds=(5, 8))
        two_stages_of(f"as stored, spreads too, {effect:+g}", spread, effect=effect, noises=noise, seeds=(5, 8))


def without_effects():
    noise, spread = as_stored()
    for name, nu0, noise_of_cells in (("skew -2.5", 8, [skewed()]), ("as stored, spreads too", spread, noise)):
        for n in (5, 16, 64):
            two_stages_of(f"{name}, none true, {n} seeds", nu0, 300, n_true=0, noises=noise_of_cells, seeds=(n, 8))


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


PARTS = (
    rules, screens, losses, tried, pooled_skew, notices, regimes, cells, spreads, spreads_of_losses, stages, gates, families,
    own_variances, noises, without_effects, rates, accuracies, optima, causes, bends,
)  # fmt: skip

if __name__ == "__main__":
    for part in PARTS:
        if part.__name__ in sys.argv[1:] or len(sys.argv) == 1:
            part()
