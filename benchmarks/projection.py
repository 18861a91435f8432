"""Expected step times on GPUs that were not here: a projection, not a measurement.

python -m benchmarks.projection
python -m benchmarks.projection --efficiency 0.8 --gap 5
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

from spectramind_fused.bench.programs import K
from spectramind_fused.bench.traffic import of_norm, of_update
from spectramind_fused.bench.workloads import Workload, gpt2_small, llama

# Bytes per second, as NVIDIA's data sheets of the A100 80GB SXM and the H100 SXM give them.
BANDWIDTH = {"A100": 2.039e12, "H100": 3.35e12}
EFFICIENCY = 0.9  # which part of that a kernel that streams is assumed to get
GAP = 3.0  # microseconds that each launch is assumed to add
MODELS = (
    Workload("GPT-2 small", gpt2_small()),
    Workload("Llama 3.2 1B", llama(16, 2048, 8192, 512, tied=True)),
    Workload("Llama 3.1 8B", llama(32, 4096, 14336, 1024, tied=False)),
)
# What torch's multi_tensor_apply puts into one launch of fused AdamW (four lists), in the builds
# for CUDA 12 and for CUDA 13, which pass larger parameters; a block steps 65,536 elements.
TORCHS_LIMITS = {"CUDA 12": (36, 320), "CUDA 13": (252, 2240)}
TORCHS_COUNTERS = {"CUDA 12": 110, "CUDA 13": 770}  # step counters that one launch adds 1 to
_TORCHS_CHUNK = 65536
# Bytes per fp32 parameter of the whole tail as torch's passes after its fused step: unscaling 8,
# clipping 12, the step 28, Lookahead 20 on every k-th step, EMA 12, zeroing 4.
TORCHS_TAIL = 8 + 12 + 28 + 20 / K + 12 + 4
_STEP = of_update(2)
TAIL = of_update(2, syncs=1 / K, ema=True, zero_grads=True).plus(of_norm())


class Projected(NamedTuple):
    """One line: a model on a GPU.

    Attributes:
        ours: milliseconds of our plain step.
        torchs: of torch's fused one, of the build for CUDA 13.
        our_tail: of our whole tail.
        torchs_tail: of torch's passes, of whose launches only the update's are counted.
    """

    gpu: str
    model: Workload
    ours: float
    torchs: float
    our_tail: float
    torchs_tail: float


def torchs_launches(workload: Workload, build: str) -> int:
    """Launches of torch's fused AdamW, filled as multi_tensor_apply fills them, and its counters'.

    Args:
        workload: the shapes.
        build: a key of TORCHS_LIMITS.
    """
    tensors, blocks = TORCHS_LIMITS[build]
    launches = -(-len(workload.shapes) // TORCHS_COUNTERS[build])
    held_tensors = held_blocks = 0
    for shape in workload.shapes:
        held_tensors += 1
        chunks = -(-math.prod(shape) // _TORCHS_CHUNK)
        for chunk in range(1, chunks + 1):
            held_blocks += 1
            last = chunk == chunks
            if held_blocks == blocks or (held_tensors == tensors and last):
                launches += 1
                held_blocks, held_tensors = 0, 0 if last else 1  # the tensor goes on
    return launches + (held_blocks > 0)


def projected(efficiency: float = EFFICIENCY, gap: float = GAP) -> list[Projected]:
    """Every model on every GPU.

    Args:
        efficiency: which part of the published bandwidth is reached.
        gap: microseconds per launch.
    """
    rows = []
    for gpu, bandwidth in BANDWIDTH.items():
        for model in MODELS:
            torchs = torchs_launches(model, "CUDA 13")
            per_byte = 1e3 * model.parameters / (efficiency * bandwidth)
            times = [
                per_parameter * per_byte + 1e-3 * gap * launches
                for per_parameter, launches in (
                    (_STEP.total, 2),
                    (_STEP.total, torchs),
                    (TAIL.total, 4),  # `reduce` among them: these models are large enough
                    (TORCHS_TAIL, torchs),
                )
            ]
            rows.append(Projected(gpu, model, *times))
    return rows


def markdown(efficiency: float = EFFICIENCY, gap: float = GAP) -> str:
    """Launches and times as tables, the assumptions above them."""
    speeds = ", ".join(f"{name} {speed / 1e9:,.0f} GB/s" for name, speed in BANDWIDTH.items())
    lines = [
        f"Assumed: {speeds} (NVIDIA's data sheets, 80 GB SXM), of which both",
        f"reach {efficiency:.0%}; {gap:g} µs for each launch; AdamW in float32, k = {K}; bytes per",
        f"parameter: {_STEP.total:g} for the plain step, {TAIL.total:g} for our whole tail,",
        f"{TORCHS_TAIL:g} for torch's passes. Torch's step is the fused one of its build for CUDA",
        "13; the launches of its other passes are not counted.",
        "",
        "| launches of AdamW's plain step | ours | torch, CUDA 12 | torch, CUDA 13 |",
        "| --- | --- | --- | --- |",
    ]
    for model in MODELS:
        theirs = (torchs_launches(model, build) for build in TORCHS_LIMITS)
        size = f"{model.name}, {len(model.shapes)} tensors, {model.parameters / 1e6:,.0f} M"
        lines.append(f"| {size} | 2 | " + " | ".join(map(str, theirs)) + " |")
    lines += [
        "",
        "| projected ms | plain step, ours | torch, fused | whole tail, ours | torch, passes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in projected(efficiency, gap):
        times = (row.ours, row.torchs, row.our_tail, row.torchs_tail)
        cells = " | ".join(f"{t:.2f}" if t < 10 else f"{t:.1f}" for t in times)
        lines.append(f"| {row.gpu}, {row.model.name} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--efficiency", type=float, default=EFFICIENCY,
                        help="part of the published bandwidth that is reached")  # fmt: skip
    parser.add_argument("--gap", type=float, default=GAP, help="microseconds per launch")
    given = parser.parse_args()
    if not 0 < given.efficiency <= 1 or given.gap < 0:
        parser.error("give an efficiency above 0 and up to 1, and a gap of 0 or more")
    print(markdown(given.efficiency, given.gap))


if __name__ == "__main__":
    main()
