"""What an installed package must do, with nothing but what it requires: `python tests/smoke.py`.

Wheels are tried with it where there is neither pytest nor a compiler.
"""

import subprocess
import sys

import torch

import spectramind_fused
from spectramind_fused import FusedAdamW


def main():
    print(f"{spectramind_fused.__version__} in {spectramind_fused.__path__[0]}", flush=True)
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 1000)) for _ in range(2))
    fused, plain = FusedAdamW([ours], lr=0.1), torch.optim.AdamW([theirs], lr=0.1)
    for step in range(5):
        for param, optimizer in ((ours, fused), (theirs, plain)):
            param.grad = torch.linspace(-1, 2, 1000) + step
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
    if fused.backends() != {"cpu": "cpu"}:
        sys.exit(f"the C++ kernels do not step: {fused.backends()}")
    for words in (["doctor"], ["train", "--help"]):  # which is Hydra's, and finds the configs
        subprocess.run([sys.executable, "-m", "spectramind_fused", *words], check=True)


if __name__ == "__main__":
    main()
