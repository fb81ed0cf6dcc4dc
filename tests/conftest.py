"""Every test computes with one torch thread, from the same seed. Code that comes with a model is copied by transformers to one
folder a session, not into the user's cache. Files are written and not forced to the disk: no test cuts the power, and those that
make studies would wait for it thousands of times. Without a GPU Triton's own functions are made for its interpreter: they are
what they were when first imported, whoever does so, and what some test file imports may."""

import atexit
import importlib.util
import os
import shutil
import signal
import tempfile

import pytest
import torch

torch.set_num_threads(1)
# A shell starts what runs in the background deaf to Ctrl-C, which tests send to what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.fsync = lambda fd: None
if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRITON_INTERPRET", "1")
        import triton.language  # noqa: F401
# Read when transformers is imported; its package of copied modules is imported once.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="gatelab-modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)
