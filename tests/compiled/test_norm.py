"""The norm: of any size of values, in float64 or in pairs of float32, in one stage or in two."""

import math
from fractions import Fraction

import pytest
import torch

from spectramind_fused.kernels import BACKENDS, cuda, triton
from spectramind_fused.multi_tensor import Reduction
from tests import place
from tests.backends import GPU_KERNELS
from tests.oracle import CLASSES

pytestmark = [pytest.mark.compiled, pytest.mark.parametrize("backend", GPU_KERNELS)]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=[False, True], ids=["float64", "pairs"])
def pairs(request, monkeypatch):
    """Whether the GPU computes little in float64."""
    for backend in (triton, cuda):
        monkeypatch.setattr(backend, "float64_is_slow", lambda _: request.param)
    return request.param


def measured(grads, backend):
    """The norm that a step leaves, float64."""
    params = [torch.zeros_like(grad).requires_grad_() for grad in grads]
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad
    optimizer = CLASSES["SGD"][0](params, lr=0.0, clip_grad_norm=math.inf, backend=backend)
    optimizer.step()
    return optimizer._grad_norm


def exact(grads):
    """Computed in fractions, rounded at the end."""
    squares = sum(Fraction(value) ** 2 for grad in grads for value in grad.flatten().tolist())
    scale = Fraction(2) ** (2 * 200)  # the root of a small fraction, in integers
    return math.isqrt(int(squares * scale * 2**128)) / 2**264


VALUES = {
    "usual": lambda n: torch.randn(n),
    "large": lambda n: torch.randn(n).clamp(-3, 3) * 1e38,
    "denormal": lambda n: torch.randn(n) * 1e-41,
    "small": lambda n: torch.randn(n) * 1e-24,
    "of all sizes": lambda n: torch.randn(n) * 10.0 ** torch.linspace(-44, 38, n),
    "zero": lambda n: torch.zeros(n),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", VALUES)
def test_it_is_nearer_than_torchs_whatever_the_values(gpu, backend, pairs, values, dtype):
    torch.manual_seed(0)
    largest = torch.finfo(dtype).max
    made = [VALUES[values](n).clamp(-largest, largest).to(dtype) for n in (1, 4099, 9000)]
    made.append(torch.cat([made[1], made[1]])[4099 - 8 : 4099 + 5000])  # at no vector's address
    wanted, got = exact(made), measured(made, backend)
    assert got.dtype == torch.float64
    error = abs(got.item() - wanted) / wanted if wanted else got.item()
    assert error <= (2**-40 if pairs else 2**-50)
    whole = torch.cat(made)
    torchs = torch.linalg.vector_norm(whole).item()
    assert error <= abs(torchs - wanted) / wanted if wanted else torchs == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_value_that_is_not_finite_is_the_norm(gpu, backend, pairs, dtype):
    for bad, at in ((math.inf, 3), (-math.inf, 8999), (math.nan, 4096)):
        grad = torch.randn(9000).to(dtype)
        grad[at] = bad
        norm = measured([grad, torch.ones(3, dtype=dtype)], backend)
        assert norm.isnan() if math.isnan(bad) else norm == math.inf
    both = torch.tensor([math.inf, math.nan], dtype=dtype)
    assert measured([both], backend).isnan()


@pytest.mark.parametrize("dtype", DTYPES)
def test_alignment_shows_in_no_bit(gpu, backend, pairs, dtype):
    grad = torch.randn(9001).to(dtype)
    norms = [measured([torch.cat([grad[:i], grad])[i:]], backend) for i in (0, 1, 3)]
    assert norms[0] == norms[1] == norms[2]


def test_float64_is_hardly_needed_in_pairs(gpu, backend, pairs):
    """Some operations for a thread's 64 bytes, where a GPU has one float64 unit for 64 others."""
    measured([torch.randn(16384).bfloat16()], backend)
    executed = gpu.launches[0].executed
    wide = sum(n for opcode, n in executed.items() if ".f64" in opcode)
    values = 16384 / 128  # of a thread
    assert wide < values if pairs else 1.9 * values < wide < 3 * values


@pytest.mark.parametrize("rows", [4096, 4097, 5120, 9000])
def test_many_partial_sums_are_added_up_in_two_stages(gpu, backend, rows):
    reduction = Reduction(rows, torch.device(place.device))
    reduction.partials[:, 0] = torch.randint(1, 1000, (rows,)).double()
    reduction.partials[:, 1] = torch.randint(0, 2, (rows,)).double()
    sums = BACKENDS[backend].sums(reduction)
    assert len(gpu.launches) == (rows > 4096)
    assert len(sums) == (-(-rows // 1024) if rows > 4096 else rows)
    assert torch.equal(sums.sum(0), reduction.partials.sum(0))  # integers: exact in any order
    assert BACKENDS[backend].sums(reduction) is sums  # a graph holds its address


def test_a_step_over_many_pieces(gpu, backend):
    """A large frozen parameter has its rows, too: nobody's place depends on who takes part."""
    frozen = torch.empty(4200 * 8192, dtype=torch.bfloat16)
    params = [torch.randn(9000).requires_grad_(), frozen, torch.randn(33).requires_grad_()]
    params[0].grad, params[2].grad = torch.randn(9000), torch.randn(33)
    optimizer = CLASSES["SGD"][0](params, lr=1.0, clip_grad_norm=1e-3, backend=backend)
    before = [params[i].detach().clone() for i in (0, 2)]
    optimizer.step()
    assert [launch.name for launch in gpu.launches] == ["norm", "reduce", "advance", "update"]
    norm = torch.cat([params[0].grad, params[2].grad]).double().norm()
    torch.testing.assert_close(optimizer._grad_norm, norm, rtol=1e-14, atol=0)
    for p, held in zip((params[0], params[2]), before, strict=True):
        torch.testing.assert_close(p.detach(), held - p.grad * (1e-3 / (norm + 1e-6)).float())


@pytest.mark.full
def test_more_tensors_than_one_launch_of_advance_has_bits_for(gpu, backend):
    """31,168 with CUDA C++."""
    base = torch.randn(31_300)
    params = [value.requires_grad_() for value in base.clone().unbind()]
    optimizer = CLASSES["SGD"][0](params, lr=1.0, backend=backend)
    absent = {5, 31_167, 31_168, 31_200}
    for p in params:
        p.grad = torch.ones(())
    optimizer.step()
    for i in absent:
        params[i].grad = None
    optimizer.step()
    counts = [optimizer._counters[p].item() for p in params]
    assert counts == [1 if i in absent else 2 for i in range(len(params))]
    twice = torch.tensor(counts) == 2
    assert torch.equal(torch.stack(params), torch.where(twice, base - 1 - 1, base - 1))
