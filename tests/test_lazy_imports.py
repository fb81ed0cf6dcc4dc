"""What only some calls need is imported by them: one process imports all that must not."""

import subprocess
import sys

CODE = """
import sys
import gatelab.nn.attention, gatelab.ops.attention_stats.identities, gatelab.probes.training, gatelab.train.group
import gatelab.ops.gated_attention.hopper, gatelab.ops.gated_attention.short
print(*sys.modules)
"""


def test_no_compiler_no_kernel_and_no_transformers_is_imported_by_those_who_do_not_call_it() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", CODE], capture_output=True, text=True, timeout=120, check=True)
    found = set(done.stdout.split())
    assert {"gatelab.ops.gated_attention.short", "gatelab.probes.training"} <= found
    assert not {"triton", "torch._dynamo", "cutlass", "flash_attn", "transformers"} & found
    assert not [name for name in found if "attention_stats" in name and "kernels" in name]
