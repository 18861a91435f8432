"""Bytes per parameter: the formula, and what torch's operators are counted to move."""

import pytest
import torch

from spectramind_fused.bench import contenders
from spectramind_fused.bench.contenders import PEERS
from spectramind_fused.bench.programs import PROGRAMS, Step, step_of_ours
from spectramind_fused.bench.traffic import counted, of_measuring, of_norm, of_update
from spectramind_fused.optim import OPTIMIZERS

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries that are only timed
N = 1 << 14


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch):
    """Compiling takes half a minute and is torch's business."""
    monkeypatch.setattr("spectramind_fused.bench.contenders.COMPILES_UP_TO", 0)


def parameter(dtype=torch.float32):
    p = torch.zeros(N, dtype=dtype, requires_grad=True)
    p.grad = torch.ones_like(p)
    return p


@pytest.mark.parametrize(
    ("of", "total"),
    [
        (of_update(1), 20),
        (of_update(2), 28),
        (of_update(3), 36),
        (of_update(2, syncs=1), 36),
        (of_update(2, syncs=1 / 5), 29.6),
        (of_update(2, syncs=1 / 5, ema=True, zero_grads=True).plus(of_norm()), 45.6),
        (of_update(0).plus(of_measuring()), 24),
        (of_update(2, size=2), 14),
        (of_update(2, size=2, ema=True), 22),
    ],
)
def test_the_formula(of, total):
    assert of.total == pytest.approx(total)


@pytest.mark.parametrize(
    ("call", "read", "written"),
    [
        (lambda a, b: a + b, 8, 4),
        (lambda a, b: a.add_(b), 8, 4),
        (lambda a, b: a.mul(a), 4, 4),  # one tensor, read once
        (lambda a, b: a.copy_(b), 4, 4),
        (lambda a, b: a.zero_(), 0, 4),
        (lambda a, b: a.view(-1, 2).t(), 0, 0),
        (lambda a, b: a.sum(), 4, 0),
        (lambda a, b: torch._foreach_mul_([a, b], 2.0), 8, 8),
        (lambda a, b: torch._foreach_lerp_([a], [b], 0.5), 8, 4),
    ],
)
def test_what_an_operator_moves(call, read, written):
    a, b = torch.zeros(N), torch.zeros(N)
    traffic = counted(lambda: call(a, b))
    assert traffic.read / N == pytest.approx(read, abs=0.01)
    assert traffic.written / N == pytest.approx(written, abs=0.01)


def test_torchs_steps_move_what_is_known_of_them():
    """28 bytes in one pass, 80 in foreach's eight: Adam and AdamW alike, but for the decay."""
    built = PROGRAMS["step"].steps("AdamW", [parameter()], PEERS)
    steps = [s for s in built if isinstance(s, Step)]
    seen = {s.name: s.traffic.total / N for s in steps}
    assert seen["spectramind_fused"] == 28
    assert seen["torch, fused"] == pytest.approx(28, abs=0.01)
    assert seen["spectramind_fused, no kernels"] == pytest.approx(28, abs=0.01)
    assert seen["torch, foreach"] == pytest.approx(80, abs=0.01)


def test_where_torchs_code_steps_its_bytes_are_counted():
    optimizer = contenders.ours("AdamW", [parameter()], backend="eager")
    step = step_of_ours("eager", optimizer, optimizer.step, of_update(2).times(N))
    assert step.traffic.total / N == pytest.approx(80, abs=0.01)


@pytest.mark.parametrize(
    ("program", "ours", "fused", "foreach"),
    [("tail", 41.6, 56, 108), ("amp_tail", 45.6, 68, 120)],
)
def test_tails_move_what_is_known_of_them(program, ours, fused, foreach):
    built = PROGRAMS[program].steps("AdamW", [parameter()], PEERS)
    steps = [s for s in built if isinstance(s, Step)]
    seen = {s.name: s.traffic.total / N for s in steps}
    assert seen["spectramind_fused"] == pytest.approx(ours)
    assert seen["torch, fused"] == pytest.approx(fused, abs=0.01)
    assert seen["torch, foreach"] == pytest.approx(foreach, abs=0.01)


@pytest.mark.parametrize(
    ("dtype", "known"),
    [
        (torch.float32, {"": 28, "bfloat16 moments": 20, "8-bit moments": 16.25}),
        (torch.bfloat16, {"": 14, "stochastic": 14, "float32 moments": 22, "split": 26,
                          "split, 8-bit moments": 14.25, "stochastic, 8-bit moments": 10.25}),
        (torch.float16, {"": 14, "stochastic": 14, "master": 30}),
    ],
)  # fmt: skip
def test_in_every_storage_what_is_held_moves_once(dtype, known):
    """As docs/low-precision.md has it."""
    built = PROGRAMS["storages"].steps("AdamW", [parameter(dtype)], PEERS)
    seen = {s.name: s.traffic.total / N for s in built if isinstance(s, Step)}
    for stored, total in known.items():
        name = f"spectramind_fused, {stored}".removesuffix(", ")
        assert seen.pop(name) == pytest.approx(total, abs=0.01), stored
    assert not [name for name in seen if name.startswith("spectramind_fused")]


def test_storages_that_a_rule_has_not_are_absent_with_a_reason():
    absent = dict(
        given
        for given in PROGRAMS["storages"].steps("Rprop", [parameter()], PEERS)
        if not isinstance(given, Step)
    )
    assert "state_dtype" in absent["spectramind_fused, 8-bit moments"]


def test_every_optimizer_has_its_states_counted():
    """What one step of torch's foreach makes of a matrix is what the formula says is held."""
    foreach = next(peer for peer in PEERS if peer.name == "torch, foreach")
    for kind in OPTIMIZERS:
        if not hasattr(torch.optim, kind) or OPTIMIZERS[kind].of_matrices:
            continue
        p = torch.zeros(128, N // 128, requires_grad=True)
        p.grad = torch.ones_like(p)
        optimizer = foreach.build(kind, [p])
        optimizer.step()
        held = [v for v in optimizer.state[p].values() if v.numel() == N]
        assert len(held) == OPTIMIZERS[kind].usual_states, kind
