"""What an installed package must do, with nothing but what it requires: `python tests/smoke.py`.

Wheels are tried with it where there is neither pytest nor a compiler.
"""

import os
import subprocess
import sys

import torch

import spectramind_fused
from spectramind_fused import FusedAdamW

COMMAND = [sys.executable, "-m", "spectramind_fused"]


def steps_as_torch_does():
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 1000)) for _ in range(2))
    fused, plain = FusedAdamW([ours], lr=0.1), torch.optim.AdamW([theirs], lr=0.1)
    for step in range(5):
        for param, optimizer in ((ours, fused), (theirs, plain)):
            param.grad = torch.linspace(-1, 2, 1000) + step
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
    if fused.backends() != {"cpu": "cpu"}:
        sys.exit(f"the C++ kernels do not step: {fused.backends()}")


def finds_its_configs():
    """Through Hydra, as a shell asks for what completes a line."""
    line = {**os.environ, "COMP_LINE": "spectramind train optimizer=li"}
    query = [*COMMAND, "-sc", "query=bash"]
    found = subprocess.run(query, env=line, stdout=subprocess.PIPE, text=True, check=True).stdout
    if found.split() != ["optimizer=lion"]:
        sys.exit(f"the configs have no optimizer=lion: {found!r}")


if __name__ == "__main__":
    print(f"{spectramind_fused.__version__} in {spectramind_fused.__path__[0]}", flush=True)
    steps_as_torch_does()
    finds_its_configs()
    subprocess.run([*COMMAND, "doctor"], check=True)
