"""How often does a gate end the sink, and what does it cost, to the last per cent? Two settings of `backcopy-phases`, 256 seeds.

One layer with a BOS, at the learning rate that is best there and at four times that: where gates helped and where they harmed.

    gatelab run backcopy-key execution.group=512 execution.slots=6
"""

from gatelab.studies.backcopy_phases import recipe

study = recipe((2e-3, 8e-3), (1,), with_bos=(True,), seeds=256, name="backcopy-key")
