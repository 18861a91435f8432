"""The model of instructions and bytes: what it counts in a loop, and which of the two binds."""

from collections import Counter

import pytest

from benchmarks.device_code import sass
from benchmarks.device_code.issue_rate import GPUS, rate, rates
from benchmarks.device_code.turn import Turn, full_chunk_turn

A100, L40S, H100 = (GPUS[arch] for arch in ("sm_80", "sm_89", "sm_90"))

# A root and a division as ptxas writes them, shortened: the slow path is a call.
ROOT = """
        MUFU.RSQ R26, R41
        BSSY B0, JOIN
        ISETP.GT.U32.AND P4, PT, R24, 0x727fffff, PT
        @!P4 BRA FAST
        MOV R31, R41
        CALL.REL.NOINC SLOW
        BRA JOIN
  FAST: FMUL.FTZ R24, R41, R26
        FFMA R59, -R24, R24, R41
  JOIN: BSYNC B0
"""
FAST_ROOT = ["MUFU.RSQ", "BSSY", "ISETP.GT.U32.AND", "BRA", "FMUL.FTZ", "FFMA", "BSYNC"]
DIVISION = """
        MUFU.RCP R25, R46
        BSSY B2, JOIN
        FCHK P4, R65, R46
        FFMA R24, -R46, R25, 1
        @!P4 BRA JOIN
        MOV R57, R65
        CALL.REL.NOINC SLOW
  JOIN: BSYNC B2
"""
FAST_DIVISION = ["MUFU.RCP", "BSSY", "FCHK", "FFMA", "BRA", "BSYNC"]
LOAD = "LDG.E.128 R16, desc[UR24][R52.64+0x800]\n"
STORE = "STG.E.128 [R52.64], R12\n"
WIDEN = "PRMT R1, R2, 0x7632, R3\n"
SINGLY = "LDG.E.U16 R40, [R58.64]\n" * 99
# The loop ends as on sm_80. Behind it stands the tail's.
KERNEL = """
        S2R R4, SR_TID.X
 CHUNK: ISETP.NE.AND P4, PT, R47, RZ, PT
        @P4 BRA SKIPPED
{body}
 SKIPPED: ISETP.GE.AND P4, PT, R12, R5, PT
        @P4 CALL.REL.NOINC TAIL
        BRA CHUNK
  TAIL: @P0 EXIT
{tail}
        BRA TAIL
  SLOW: MOV R62, 0x7fffffff
        RET.REL.NODEC R30 0x0
"""
AROUND = ["ISETP.NE.AND", "BRA", "ISETP.GE.AND", "CALL.REL.NOINC", "BRA"]


def code(*body, tail=SINGLY):
    """A kernel whose loop has this body, as cuobjdump would print it, read back."""
    labelled = [  # each snippet's labels its own
        snippet.replace("JOIN", f"JOIN{i}_").replace("FAST", f"FAST{i}_")
        for i, snippet in enumerate(body)
    ]
    text = KERNEL.format(body="".join(labelled), tail=tail)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    printed = []
    for i, line in enumerate(lines):
        if ": " in line:
            label = line.split(": ")[0]
            lines = [other.replace(label, f"0x{16 * i:x}") for other in lines]
    for i, line in enumerate(lines):
        bare = line.split(": ")[-1].strip()
        printed.append(f"        /*{16 * i:04x}*/      {bare} ;    /* 0x000fe400078e0205 */")
    return sass.instructions("\n".join(printed))


def adam(elements=4, size=4, divisions=1):
    """A loop that moves a parameter in and out, with a root and divisions for each element."""
    vectors = elements * size // 16
    each = [ROOT, *[DIVISION] * divisions, *[WIDEN] * (size == 2)]
    return code(LOAD * vectors, *each * elements, STORE * vectors)


def issued(*opcodes, elements=1):
    return Turn(Counter(opcodes), elements)


def test_a_turn_is_what_the_fast_paths_issue():
    turn = full_chunk_turn(adam(), moved=8)
    fast = 4 * (FAST_ROOT + FAST_DIVISION)
    assert turn == Turn(Counter([*AROUND, "LDG.E.128", "STG.E.128", *fast]), elements=4)


def test_one_more_division_costs_its_instructions():
    one, two = (full_chunk_turn(adam(divisions=n), moved=8) for n in (1, 2))
    assert two.issued - one.issued == Counter(4 * FAST_DIVISION)
    assert rate("", two, 8, H100).issue_ps > rate("", one, 8, H100).issue_ps
    assert rate("", two, 8, H100).bytes_ps == rate("", one, 8, H100).bytes_ps


def test_16_bits_halve_the_bytes_and_not_the_instructions():
    full = rate("", full_chunk_turn(adam(elements=8), moved=8), 8, H100)
    half = rate("", full_chunk_turn(adam(elements=8, size=2), moved=4), 4, H100)
    assert half.bytes_ps == full.bytes_ps / 2
    assert half.warp_instructions == full.warp_instructions + 1 - 2 / 8  # widened; fewer accesses


def test_elements_are_told_from_the_bytes():
    """A loop that ptxas unrolled steps more of them in a turn, with as many instructions each."""
    one, two = (full_chunk_turn(code(*[LOAD, ROOT, STORE] * n), moved=8) for n in (1, 2))
    assert (one.elements, two.elements) == (4, 8)
    assert two.issued - one.issued == Counter(["LDG.E.128", "STG.E.128", *FAST_ROOT])


def test_other_loops_are_not_taken_for_it():
    """More bytes, but by single elements; vectors, but fewer; a skipped step's zeros."""
    for tail in (SINGLY, LOAD + STORE, STORE * 8):
        turn = full_chunk_turn(code(LOAD * 2, STORE * 2, tail=tail), moved=8)
        assert turn == Turn(Counter([*AROUND, *["LDG.E.128", "STG.E.128"] * 2]), elements=8)


def test_no_shortcut_for_rare_values_is_counted_on():
    overflow = "@P5 BRA JOIN\nFADD R1, R2, R3\nFFMA R1, R2, R3, R4\nJOIN: BSYNC B1\n"
    turn = full_chunk_turn(code(LOAD, overflow, STORE), moved=8)
    assert turn.issued["FADD"] == 1


@pytest.mark.parametrize("branches", [True, False])
def test_a_kernel_that_decides_on_an_epilogue_while_it_runs(branches):
    """Behind a branch it costs the plain step nothing; on a predicate its instructions."""
    zeroes = f"@P1 {STORE}"
    if branches:
        zeroes = f"@!P1 BRA JOIN\nMOV R1, RZ\n{STORE}JOIN: BSYNC B1\n"
    kernel = code(LOAD, STORE, zeroes)
    plain = full_chunk_turn(kernel, moved=8, fullest=12)
    full = full_chunk_turn(kernel, moved=12, fullest=12)
    assert plain.elements == full.elements == 4
    assert plain.issued["STG.E.128"] == (1 if branches else 2)
    assert full.issued["STG.E.128"] == 2
    steps = {"plain": 8, "full": 12}
    assert rates({"arch": "sm_80"}, kernel, steps) == [
        rate("plain", plain, 8, A100),
        rate("full", full, 12, A100),
    ]


@pytest.mark.parametrize(
    ("opcode", "gpu", "pipe", "clocks"),
    [
        ("FFMA", A100, "FP32", 2),  # 16 lanes of a scheduler's take a warp's 32 in two clocks
        ("FFMA", H100, "issue", 1),
        ("DFMA", A100, "FP64", 4),
        ("DFMA", L40S, "FP64", 64),
        ("MUFU.RCP", H100, "XU", 8),
        ("F2F.F64.F32", A100, "XU", 8),
        ("F2F.F64.BF16", H100, "XU", 8),
        ("F2F.F64.F32", L40S, "FP64", 64),
        ("F2FP.BF16.F32.PACK_AB", L40S, "ALU", 2),
        ("FSETP.NE.AND", L40S, "ALU", 2),
        ("IMAD.U32", L40S, "IMAD", 2),
        ("LDG.E.128", L40S, "issue", 1),
        ("UIADD3.X", A100, "issue", 1),
    ],
)
def test_the_busiest_pipe(opcode, gpu, pipe, clocks):
    seen = rate("", issued(opcode), 1, gpu)
    assert seen.busiest == pipe
    assert seen.issue_ps == pytest.approx(
        1e12 * clocks / (32 * 4 * gpu.multiprocessors * gpu.clock)
    )


def test_pipes_work_side_by_side():
    alone = rate("", issued(*["DADD"] * 9), 1, H100)
    beside = rate("", issued(*["DADD"] * 9, *["IADD3"] * 5), 1, H100)
    assert alone.issue_ps == beside.issue_ps
    assert (beside.busiest, beside.warp_instructions) == ("FP64", 14)


def test_what_binds_follows_from_both_times():
    squares = issued("F2F.F64.F32", "DFMA")
    seen = {bits: rate("", squares, bits / 8, L40S) for bits in (32, 16)}
    assert seen[32].bytes_ps > seen[32].issue_ps == seen[16].issue_ps > seen[16].bytes_ps
    assert (seen[32].binds, seen[16].binds) == ("bytes", "FP64")


def test_the_table_agrees_with_the_published_tflops():
    """Two for a lane and a clock, and FP16 has pairs."""
    published = {"FP32": (19.5, 91.6, 67), "FP64": (9.7, 1.43, 33.5), "FP16": (78, 91.6, 133.8)}
    for pipe, tflops in published.items():
        for gpu, peak in zip((A100, L40S, H100), tflops, strict=True):
            flops = 4 if pipe == "FP16" else 2
            computed = 1e-12 * flops * gpu.multiprocessors * gpu.lanes[pipe] * gpu.clock
            assert computed == pytest.approx(peak, rel=0.01)


def test_a_loop_that_is_not_found_is_named():
    row = {"arch": "sm_90", "kernel": "norm", "dtype": "float32"}
    with pytest.raises(ValueError, match="norm float32 sm_90: no loop with 128-bit loads"):
        rates(row, code("LDG.E R16, [R52.64]\n"), {"": 4})
    with pytest.raises(ValueError, match="moves 32 bytes per lane, which is no whole number of"):
        rates(row, adam(), {"": 28})


def test_other_architectures_have_no_rates():
    assert rates({"arch": "sm_100"}, [], {"": 4}) == []


def test_compiled_kernels_are_read():
    """AdamW for the L40S: a root and two divisions for each element, whatever it is stored in."""
    pytest.importorskip("triton", reason="needs Triton, with its ptxas and cuobjdump")
    from triton.backends.compiler import GPUTarget

    from benchmarks.device_code.machine_code import read
    from benchmarks.device_code.variants import compiled, elements_of, flags, variants

    target = GPUTarget("cuda", 89, 32)
    epilogues = next(flags("lookahead", "ema", "zero_grads"))  # none
    adam = {"kernel": "update", "rule": "adam", "states": 2, **epilogues}
    seen = {}
    for label, kernel, constants in variants():
        for dtype, moved in (("torch.float32", 28), ("torch.bfloat16", 14)):
            if label == {**adam, "dtype": dtype}:
                code = read(
                    compiled(kernel, constants, target), target, elements_of(constants)
                ).code
                turn = full_chunk_turn(code, moved)
                assert turn.issued["MUFU.RSQ"] == turn.elements
                assert turn.issued["FCHK"] == 2 * turn.elements
                seen[dtype] = rate("", turn, moved, L40S)
    full, half = seen["torch.float32"], seen["torch.bfloat16"]
    assert half.bytes_ps == full.bytes_ps / 2
    assert half.warp_instructions >= full.warp_instructions
