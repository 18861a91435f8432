"""Every kernel variant compiles for the GPUs users have, none of which is here."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("backend", "arch"), [("cuda", "80"), ("cuda", "90"), ("cuda", "100"), ("hip", "gfx942")]
)
def test_every_variant_compiles_without_a_gpu(backend, arch, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_variants", backend, arch],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},  # compiled, not remembered
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert [row["kernel"] for row in rows].count("norm") == 3  # dtypes
    # 5 rules; 2 numbers of states each, Lion's 1; 3 dtypes; 5 choices of epilogues
    assert [row["kernel"] for row in rows].count("update") == (4 * 2 + 1) * 3 * 5
    assert [row["kernel"] for row in rows].count("advance") == 5 * 7
    for row in rows:
        assert row["bytes"] > 0
        if row["kernel"] == "update":
            # Nothing is shuffled through shared memory, but float32 averages beside 16-bit
            # parameters: a thread holds 8 of these and stores 4 of those at a time.
            assert row["barriers"] == 0 or (row["ema"] and row["dtype"] != "torch.float32")
            assert row["contractible"] == 0  # FP fusion is off
            assert (row["fma"] > 0) == (backend == "cuda")  # those that the rules write out
        if row["kernel"] != "advance":
            loads, stores, zeros = expected_accesses(row, backend)
            assert row["wide_loads"] == loads, row
            # Small rules get a loop of their own for skipped steps, which zeroes once more.
            assert row["wide_stores"] in (stores + zeros, stores + 2 * zeros), row


def expected_accesses(row, backend):
    """128-bit loads, stores, and stores of zeros, per thread of a full block of 1024 elements."""
    threads = 128 if backend == "cuda" else 256
    size = 4 if row["dtype"] == "torch.float32" else 2
    per_slot = 1024 // threads * size // 16  # 0: narrower on wavefronts of 64
    averaged = 1024 // threads * 4 // 16  # always float32
    if row["kernel"] == "norm":
        return per_slot, 0, 0
    both = (row["states"] + row["lookahead"]) * per_slot + row["ema"] * averaged
    return both + 2 * per_slot, both + per_slot, row["zero_grads"] * per_slot
