"""What the atlas flags: by kind, a line a study, sentences with the same words once."""

from gatelab.report.atlas_flags import LEANING, by_kind

SKEW = (
    "of the held-out loss a few seeds {} far more than the others (skewness of the differences {}): there t says {} too often, on"
    " fresh seeds too (docs/statistics.md); look at the seeds"
)


def test_flags_stand_by_kind_and_places_with_the_same_words_are_one():
    said = [
        ("A one", "gate in easy mqar: no learning rate at which all its runs are done"),
        ("A one", SKEW.format("gain", "-2.4 in c0 of gate", "worse")),
        ("A one", "late in easy cite: no learning rate at which all its runs are done"),
        ("A one", SKEW.format("lose", "+1.9 in c1 of gate", "better")),
        ("B two", "val_loss is missing in 1 of 2 cells (x); what is said of it speaks of the others alone"),
        ("B two", "something new"),
    ]
    assert by_kind(said) == {
        "Runs that are not done, or lost": {
            "A one": ["gate in easy mqar, late in easy cite: no learning rate at which all its runs are done"]
        },
        "Readings that some cells lack": {"B two": [said[4][1]]},
        LEANING: {
            "A one": [
                "-2.4 in c0 of gate (held-out loss, a few gain)",
                "+1.9 in c1 of gate (held-out loss, a few lose)",
            ]
        },
        "Others": {"B two": ["something new"]},
    }
