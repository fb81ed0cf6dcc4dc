"""Every test computes with one torch thread, from the same seed. Code that comes with a model is copied by transformers to one
folder a session, not into the user's cache. Files are written and not forced to the disk: no test cuts the power, and those that
make studies would wait for it thousands of times."""

import atexit
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
# Read when transformers is imported; its package of copied modules is imported once.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="gatelab-modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)
