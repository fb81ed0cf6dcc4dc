"""What things cost on this device, beside what they must cost: the op, training, a decoding step, the probes.

A plan says what to time (`plan`), a kind times it (`ops`, `train`, `decode`, `probe`) into rows (`timing`), each with its
floor from rates measured in the same run (`floors`) and the project's goal (`goals`); `write` makes the files. Notable: a
candidate is held to the numeric contract first, and one that fails it has no time and no ratio.
"""
