"""Every kernel variant, compiled for the GPUs users have, and what the machine code says of it."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_the_machine_code_of_every_variant(arch, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.device_code", "--backend", "triton", "--json", arch],
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
    cuda = arch != "gfx942"
    for row in rows:
        assert (row["spills"], row["stack"]) == (0, 0), row
        assert row["contractible"] == 0, row  # FP fusion is off
        if row["kernel"] == "update":
            # Nothing is shuffled through shared memory, but float32 averages beside 16-bit
            # parameters: a thread holds 8 of these and stores 4 of those at a time.
            assert row["barriers"] == 0 or (row["ema"] and row["dtype"] != "torch.float32")
            assert (row["fmas"] > 0) == cuda  # those that the rules write out
        if row["kernel"] != "advance":
            # A wavefront of 64 has 4 elements a thread: 16-bit ones go by 64 bits.
            narrow = not cuda and row["dtype"] != "torch.float32"
            widths = {"64", "128"} if narrow and row.get("ema") else {"64" if narrow else "128"}
            assert row["accesses"].keys() == widths, row
            assert row["bytes_per_parameter"] == row["expected_bytes"], row
