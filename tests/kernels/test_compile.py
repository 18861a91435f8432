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
    # 2 rules: advance; 2 numbers of states each, with and without Lookahead, 3 dtypes
    assert len(rows) == 2 + 2 * 2 * 2 * 3
    for row in rows:
        assert row["bytes"] > 0
        assert row["barriers"] == 0  # nothing is shuffled through shared memory
        assert row["fma"] == 0 or row["variant"].startswith("advance")  # FP fusion is off
        if row["variant"].startswith("update"):
            assert (row["wide_loads"], row["wide_stores"]) == expected_accesses(row, backend), row


def expected_accesses(row, backend):
    """128-bit accesses of the full-chunk path, per thread of a block of 1024 elements."""
    _, _, states, lookahead, dtype = row["variant"].split()
    states, lookahead = int(states[-1]), lookahead.endswith("True")
    threads = 128 if backend == "cuda" else 256
    size = 4 if dtype == "torch.float32" else 2
    per_slot = 1024 // threads * size // 16  # 0: narrower on wavefronts of 64
    read, written = 2 + states + lookahead, 1 + states + lookahead
    return read * per_slot, written * per_slot
