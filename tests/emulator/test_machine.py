"""Small PTX texts: parsing, divergence, loops, barriers, shuffles, and what memory refuses."""

import gc

import numpy as np
import pytest
import torch

from tests.emulator.machine import Machine
from tests.emulator.memory import Memory, MemoryFault
from tests.emulator.ptx import PTXError, parse

HEAD = """
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(.param .u64 .ptr .global .align 1 out, .param .u32 n)
.reqntid {threads}
{{
  .reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<29>; .reg .b64 %rd<9>;
  ld.param.b64 %rd1, [out];
  ld.param.b32 %r1, [n];
  mov.u32 %r2, %tid.x;
  mov.u32 %r3, %ctaid.x;
  mov.u32 %r4, %ntid.x;
  mad.lo.s32 %r5, %r3, %r4, %r2;
  mul.wide.s32 %rd2, %r5, 4;
  add.s64 %rd3, %rd1, %rd2;
"""
STORE = "  st.global.b32 [ %rd3 + 0 ], { %r10 };\n  ret;\n}"


def launch(body, n=0, blocks=1, threads=32, size=None, shared=0, poison=None, tail=STORE):
    """Runs a body that leaves each thread's result in %r10; returns all of them."""
    out = torch.zeros(size if size is not None else blocks * threads, dtype=torch.int32)
    kernel = parse(HEAD.format(threads=threads) + body + tail)
    memory = Memory({out.data_ptr(): np.ones(out.numel() * 4, bool)} if poison else None)
    machine = Machine(kernel, (blocks, 1, 1), [out.data_ptr(), n], memory, shared)
    machine.run()
    return out.tolist()


def test_threads_that_part_meet_again():
    body = """
      and.b32 %r6, %r2, 1;
      setp.eq.b32 %p1, %r6, 0;
      @%p1 bra EVEN;
      mov.b32 %r10, 1;
      bra.uni JOIN;
    EVEN:
      mov.b32 %r10, 2;
    JOIN:
      add.s32 %r10, %r10, 10;
    """
    assert launch(body) == [12, 11] * 16


def test_loops_end_for_each_thread_on_its_own():
    body = """
      mov.b32 %r10, 0;
      mov.b32 %r6, 0;
    LOOP:
      setp.ge.s32 %p1, %r6, %r2;
      @%p1 bra DONE;
      add.s32 %r10, %r10, %r6;
      add.s32 %r6, %r6, 1;
      bra.uni LOOP;
    DONE:
    """
    assert launch(body) == [n * (n - 1) // 2 for n in range(32)]


def test_guards_and_early_returns():
    body = """
      mov.b32 %r10, 5;
      setp.lt.s32 %p1, %r2, 3;
      @%p1 mov.b32 %r10, 6;
      @!%p1 add.s32 %r10, %r10, 2;
      setp.lt.s32 %p2, %r2, 30;
      @!%p2 ret;
    """
    assert launch(body) == [6] * 3 + [7] * 27 + [0] * 2


def test_registers_of_an_inner_scope_are_their_own():
    body = """
      mov.b32 %r10, 1;
      { .reg .b32 %r10; .reg .b32 t; mov.b32 %r10, 7; mov.b32 t, 9; }
    """
    assert launch(body) == [1] * 32


def test_values_are_packed_and_unpacked():
    body = """
      cvt.u16.u32 %rs1, %r2;
      mov.u16 %rs2, 0x1;
      mov.b32 %r6, {%rs1, %rs2};
      mov.b32 {_, %rs3}, %r6;
      mov.b32 %r10, {%rs3, %rs1};
    """
    assert launch(body) == [lane << 16 | 1 for lane in range(32)]


def test_a_conversion_takes_the_lower_bits_of_a_wider_register():
    body = """
      mov.b64 %rd4, 0x12345678fffffffe;
      cvt.s64.s32 %rd5, %rd4;
      shr.u64 %rd5, %rd5, 16;
      cvt.u32.u64 %r10, %rd5;
    """
    assert launch(body) == [-1] * 32


def test_an_integer_may_be_loaded_into_a_wider_register_and_stored_from_one():
    body = """
      mov.b32 %r6, 0x12345678;
      st.global.u16 [%rd3], %r6;
      mov.b32 %r7, -1;
      ld.global.u16 %r7, [%rd3];
      mov.b32 %r8, 0;
      st.global.u16 [%rd3 + 2], %r8;
      add.s64 %rd3, %rd3, 128;
      mov.b32 %r10, %r7;
    """
    assert launch(body, size=64) == [0x5678] * 64


def test_a_barrier_holds_a_block_until_all_have_stored():
    body = """
      mov.b32 %r6, global_smem;
      shl.b32 %r7, %r2, 2;
      add.s32 %r8, %r6, %r7;
      st.shared.b32 [%r8], %r5;
      bar.sync 0;
      xor.b32 %r9, %r7, 252;
      add.s32 %r11, %r6, %r9;
      ld.shared.b32 %r10, [%r11];
    """
    assert launch(body, blocks=2, threads=64, shared=256) == [
        *range(63, -1, -1),
        *range(127, 63, -1),
    ]


def test_threads_at_different_barriers_are_a_deadlock():
    body = """
      setp.lt.s32 %p1, %r2, 5;
      @%p1 bra OTHER;
      bar.sync 0;
      bra.uni JOIN;
    OTHER:
      bar.sync 0;
    JOIN:
      mov.b32 %r10, 1;
    """
    with pytest.raises(PTXError, match="deadlock"):
        launch(body)


@pytest.mark.parametrize(
    ("mode", "by", "clamp", "expected"),
    [
        ("bfly", 16, 31, [lane ^ 16 for lane in range(32)]),
        ("down", 3, 31, [lane + 3 if lane + 3 < 32 else lane for lane in range(32)]),
        ("up", 3, 0, [lane - 3 if lane >= 3 else lane for lane in range(32)]),
        ("idx", 5, 31, [5] * 32),
        ("bfly", 1, 0x1E1F, [lane ^ 1 for lane in range(32)]),
        ("idx", 1, 0x181F, [lane // 8 * 8 + 1 for lane in range(32)]),
    ],
)
def test_shuffles(mode, by, clamp, expected):
    body = f"shfl.sync.{mode}.b32 %r10, %r2, {by}, {clamp}, -1;"
    assert launch(body) == expected


@pytest.mark.parametrize(("operation", "expected"), [("add.s32", 496), ("max.u32", 31)])
def test_a_warp_reduces(operation, expected):
    assert launch(f"redux.sync.{operation} %r10, %r2, -1;") == [expected] * 32


def test_a_shuffle_tells_which_lanes_had_a_partner():
    body = """
      shfl.sync.down.b32 %r6|%p1, %r2, 1, 31, -1;
      selp.b32 %r10, 1, 0, %p1;
    """
    assert launch(body) == [1] * 31 + [0]


def test_a_shuffle_waits_for_threads_that_come_from_further_down():
    body = """
      mov.b32 %r6, 0;
      bra.uni TEST;
    SHUFFLE:
      shfl.sync.bfly.b32 %r10, %r6, 1, 31, -1;
      bra.uni DONE;
    TEST:
      setp.ge.s32 %p1, %r6, %r2;
      @%p1 bra SHUFFLE;
      add.s32 %r6, %r6, 1;
      bra.uni TEST;
    DONE:
    """
    assert launch(body) == [lane ^ 1 for lane in range(32)]


@pytest.mark.parametrize(
    "some",
    [
        "@%p1 shfl.sync.bfly.b32 %r10, %r2, 1, 31, -1;",
        "@%p1 bra DONE; shfl.sync.bfly.b32 %r10, %r2, 1, 31, -1; DONE:",
        "@%p1 redux.sync.add.s32 %r10, %r2, -1;",
    ],
)
def test_a_shuffle_needs_its_whole_warp(some):
    body = f"""
      setp.lt.s32 %p1, %r2, 5;
      mov.b32 %r10, 0;
      {some}
    """
    with pytest.raises(PTXError, match="some of its threads are elsewhere"):
        launch(body)


def test_half_a_pair_may_be_left_open_and_is_not_to_be_used():
    """As LLVM leaves it; whoever looks finds garbage."""
    pack = "mov.b64 %rd8, {%r2, %r20};"
    assert launch(f"{pack} mov.b64 {{%r10, _}}, %rd8;") == list(range(32))
    assert set(launch(f"{pack} mov.b64 {{_, %r10}}, %rd8;")) == {0xDEADBEEF - 2**32}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("frobnicate.b32 %r10, %r2;", "unknown instruction: frobnicate"),
        ("add.sat.s32 %r10, %r2, %r2;", "unknown instruction: add.sat.s32"),
        ("add.s32 %r10, %r2;", "expected 3 operands"),
        ("max.s32 %r10, %r2, %r2, %r2;", "expected 3 operands"),
        ("mov.b32 %r10, %r20;", "%r20 is read before it is written"),
        ("mov.b32 %r10, %warpid;", "unknown operand %warpid"),
        ("add.s64 %rd4, %r2, %rd1;", "%r2 is no register for s64"),
        ("ld.global.v3.b32 {%r6, %r7, %r8}, [%rd3];", "unknown instruction: ld.global.v3"),
        ("ld.global.nc.b32 %r10, [%rd3];", "unknown instruction: ld.global.nc"),
        ("ld.global.v2.b32 {%r10}, [%rd3];", "wrong operands"),
        ("LOOP: bra.uni LOOP;", "did not end"),
        ("cvt.rn.f64.s32 %r10, %r2;", "%r10 is no register for f64"),
        ("cvt.f64.f32 %rd4, %rd1;", "%rd1 is no register for f32"),
        ("ld.global.f32 %rd4, [%rd3];", "%rd4 is no register for u32"),
        (".maxnreg 3;", "unknown directive"),
        ("MOV.b32 %r10, 1;", "cannot read"),
    ],
)
def test_what_is_not_known_is_an_error_that_names_it(body, message):
    with pytest.raises(PTXError, match=message):
        launch(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("mov.b32 %r10, 1; add.s64 %rd3, %rd3, 4;", "store of 4 bytes at .* is inside no tensor"),
        ("ld.global.b32 %r10, [%rd3 + 4];", "load of 4 bytes at .* is inside no tensor"),
        ("ld.global.b32 %r10, [%rd1 + -4];", "is inside no tensor"),
        ("mov.b64 %rd4, 16; ld.global.b32 %r10, [%rd4];", "is inside no tensor"),
        ("ld.global.v4.b32 {%r6, %r7, %r8, %r10}, [%rd3];", "load of 16 bytes is misaligned"),
        ("mov.b32 %r10, 1; mov.b64 %rd3, %rd1;", "one address is stored twice"),
    ],
)
def test_what_a_gpu_would_not_survive_is_a_fault(body, message):
    gc.collect()
    with pytest.raises(MemoryFault, match=message):
        launch(body)


@pytest.mark.parametrize("first", ["load", "store"])
def test_what_one_block_loads_and_another_stores_is_a_race(first):
    """Whichever comes first: no block may lean on the order of others."""
    loads, stores = "@%p1 ld.global.b32 %r10, [%rd1];", "@!%p1 st.global.b32 [%rd1], %r2;"
    body = f"""
      mov.b32 %r10, 0;
      setp.{"eq" if first == "load" else "ne"}.s32 %p1, %r3, 0;
      setp.eq.s32 %p2, %r2, 0;
      @!%p2 bra JOIN;
      {loads}
      {stores}
    JOIN:
      add.s64 %rd3, %rd3, 256;
    """
    with pytest.raises(MemoryFault, match="one block loads what another stores"):
        launch(body, blocks=2, size=128)
    assert launch(body.replace("[%rd1]", "[%rd3]"), blocks=1, size=128)


def test_poison_is_lifted_by_a_store_and_not_before():
    reads = "ld.global.b32 %r10, [%rd3]; add.s64 %rd3, %rd3, 128;"
    with pytest.raises(MemoryFault, match="what nobody wrote"):
        launch(reads, size=64, poison=True)
    writes = "st.global.b32 [%rd3], %r2;"
    assert launch(writes + reads, size=64, poison=True) == [*range(32), *range(32)]


def test_traffic_counts_executed_bytes():
    out = torch.zeros(32, dtype=torch.int32)
    body = "setp.lt.s32 %p1, %r2, 5; mov.b32 %r10, 1; @%p1 ld.global.b32 %r10, [%rd3];"
    memory = Memory()
    kernel = parse(HEAD.format(threads=32) + body + STORE)
    Machine(kernel, (1, 1, 1), [out.data_ptr(), 0], memory).run()
    assert memory.traffic.loaded(out) == 5 * 4
    assert memory.traffic.stored(out) == 32 * 4
    assert memory.traffic.loaded(out[5:]) == 0
