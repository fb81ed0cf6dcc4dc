"""The names that `gatelab` promises exist and are what they say."""

import gatelab
from gatelab import Run, override, train


def test_every_public_name_resolves():
    for name in gatelab.__all__:
        assert getattr(gatelab, name) is not None


def test_train_is_a_function_of_a_run_although_a_package_has_its_name():
    run = override(Run(), {"data": "bigram-backcopy", "train.tokens": 4_096, "model.d_model": 16, "model.n_layers": 1})
    steps = list(train(run))
    assert [s.step for s in steps] == [1, 2]
    assert steps[-1].tokens == 4_096


def test_the_design_s_library_lines_work():
    from gatelab import probe
    from gatelab.train.loop import train as loop

    assert callable(probe.capture)
    assert loop is not gatelab.train
