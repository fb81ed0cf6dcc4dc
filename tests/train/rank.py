"""One of several processes that share a run: prints what it saw, as JSON. RANK, WORLD_SIZE, MASTER_* say which it is."""

import json
from dataclasses import asdict
from itertools import islice

import tiny
import torch

from gatelab.config import Execution
from gatelab.train.group import Group
from gatelab.train.loop import train

torch.set_num_threads(1)
group = Group([tiny.run(steps=4, seed=s) for s in (0, 1)], Execution(micro_batch=1))
steps = [asdict(step) for step in islice(train(group), 4)]
group.ranks.wait()
agreed = [group.ranks.any_says(said, group.device) for said in (False, group.ranks.rank == 1, True)]
weights = sum(p.double().sum().item() for m in group.members for p in m.model.parameters())
print(json.dumps({"steps": steps, "agreed": agreed, "weights": weights, "writer": group.ranks.is_writer}))
torch.distributed.destroy_process_group()
