"""Maths on tensors, without parameters. One folder an op: `reference.py` is the specification, `cases.py` the inputs
that tests and benchmarks share, other files are implementations; `contract.py` is the numeric contract of all."""
