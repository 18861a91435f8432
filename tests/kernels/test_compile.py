"""Every kernel variant, compiled for the GPUs users have, and what the machine code says of it."""

import pytest

triton = pytest.importorskip("triton")
TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])

FULL = [pytest.param(a, 1, marks=pytest.mark.full) for a in ("sm_80", "sm_90", "sm_100", "gfx942")]


@pytest.mark.parametrize(("arch", "every"), [("sm_90", 5), *FULL])
def test_the_machine_code_of_every_variant(arch, every):
    """One variant in five of one GPU; every one of four in full."""
    from benchmarks.device_code.__main__ import triton_rows  # imports Triton

    rows = list(triton_rows(arch, every))
    if every == 1:
        assert [row["kernel"] for row in rows].count(
            "norm"
        ) == 3 * 2  # dtypes; in float64 or in pairs
        # 15 rules, 4 of them with 2 numbers of states; 3 dtypes; 5 choices of epilogues
        assert sum(row["kernel"] == "update" and "storage" not in row for row in rows) == (
            (4 * 2 + 11) * 3 * 5
        )
        assert sum("storage" in row for row in rows) == 81
        assert [row["kernel"] for row in rows].count("advance") == 16 * 7
        names = [row["kernel"] for row in rows]
        assert [names.count(n) for n in ("squares", "measure", "factored update")] == [3, 12, 12]
    cuda = arch != "gfx942"
    for row in rows:
        assert (row["spills"], row["stack"]) == (0, 0), row
        assert row["contractible"] == 0, row  # FP fusion is off
        if row["kernel"] == "update":
            # Nothing is exchanged through shared memory, but scales among AMD's wider wavefronts.
            in_eight = "int8" in row.get("storage", "")
            assert row["barriers"] == 0 or (in_eight and not cuda), row
            assert (row["fmas"] > 0) == cuda  # those that the rules write out
        if row["kernel"] in ("norm", "update"):
            # A wavefront of 64 has 4 elements a thread: 16-bit ones go by 64 bits.
            narrow = not cuda and row["dtype"] != "torch.float32"
            sixteen = row["dtype"] != "torch.float32"
            # Beside float32 averages a thread has 4 elements, too, also on NVIDIA.
            widths = {64, 128} if sixteen and row.get("ema") else {64 if narrow else 128}
            if narrow and row.get("ema"):
                widths = {32, 64}
            if "storage" in row:  # as wide as 4 elements are, and a scale for each thread
                assert row["accesses"].keys() <= {128, 64, 32, 16}, row
                assert 16 not in row["accesses"] or "int8" in row["storage"], row
            elif TRITON < (3, 9) and all(
                row.get(key) for key in ("lookahead", "ema", "zero_grads")
            ):
                widths |= {32}  # what Triton 3.6 makes of all three at once for sm_90
                assert row["accesses"].keys() <= widths, row
            else:
                assert row["accesses"].keys() == widths, row
            if cuda or "int8" not in row.get("storage", ""):  # there 2 elements may share a look
                assert row["bytes_per_parameter"] == row["expected_bytes"], row
