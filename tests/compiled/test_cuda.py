"""What only the CUDA kernels do: arguments that hold addresses, slots of several dtypes."""

import pytest
import torch

from spectramind_fused.kernels import cuda
from tests import place
from tests.asserts import assert_equal
from tests.inputs import give, make_grads
from tests.oracle import CLASSES
from tests.pairs import BesideReference

pytestmark = [pytest.mark.compiled, pytest.mark.parametrize("backend", ["cuda"])]


@pytest.fixture
def driver_version():
    """Sets the version the driver says it is."""
    library = cuda._library()
    if not hasattr(library, "emulated_driver_version"):
        pytest.skip("the driver is what it is: run it without --device")
    yield library.emulated_driver_version
    library.emulated_driver_version(13000)


@pytest.mark.parametrize(
    ("version", "tensors", "launches"),
    [(13000, 467, 1), (13000, 468, 1), (12010, 4052, 2), (12000, 467, 1), (12000, 935, 3)],
)
def test_many_tensors_are_few_launches(gpu, backend, driver_version, version, tensors, launches):
    """4,050 addresses go along with a launch; 467 with a driver before CUDA 12.1."""
    driver_version(version)
    params = [torch.randn(i % 5).requires_grad_() for i in range(tensors)]
    both = BesideReference("SGD", params, backend, lr=0.1, clip_grad_norm=1.0)
    both.step()
    names = [launch.name for launch in gpu.launches]
    assert names == ["norm"] * launches + ["advance"] + ["update"] * launches
    both.check()


def test_gradients_that_moved_are_followed_without_an_upload(gpu, backend):
    params = [torch.randn(1030).requires_grad_(), torch.randn(5).requires_grad_()]
    both = BesideReference("AdamW", params, backend)
    both.step()
    pointers = both.optimizer.describe_plan().buckets[0].tables.pointers
    held = pointers.clone()
    for _ in range(2):
        both.step()
        assert torch.equal(pointers, held)
    assert both.optimizer.describe_plan().buckets[0].tables.pointers is pointers
    both.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_whole_vectors_of_aligned_tensors_go_by_128_bits(gpu, backend, dtype):
    params = [torch.randn(16384).to(dtype).requires_grad_()]
    options = {"lookahead_k": 1, "ema_decay": 0.9, "clip_grad_norm": 1.0}
    optimizer = CLASSES["AdamW"][0](params, backend=backend, zero_grads=True, **options)
    give(make_grads(params), params)
    optimizer.step()
    single = "u16" if dtype.itemsize == 2 else "f32"
    for launch in gpu.launches:
        assert f"st.global.{single}" not in launch.executed or launch.name == "advance"
    norm, update = gpu.launches[0].executed, gpu.launches[-1].executed
    assert norm[f"ld.global.v4.{'f32' if single == 'f32' else 'u32'}"] >= 1
    assert f"ld.global.{single}" not in norm
    assert update["st.global.v4.u32"] >= 6  # p, g, two states, slow and averaged weights
    assert not any(name.startswith("ld.global.v2") for name in update)


def test_neither_chunks_nor_alignment_show_in_a_bit(gpu, backend, monkeypatch):
    """The norm's last bits among them: an element's place in the sum is its index alone."""
    torch.manual_seed(0)
    values, grad = torch.randn(20005), torch.randn(20005)
    runs = []
    for chunk, offset in [(8192, 0), (2048, 0), (32768, 0), (8192, 1), (8192, 3)]:
        monkeypatch.setattr(cuda, "_CHUNK", chunk)
        param = torch.cat([torch.zeros(offset), values])[offset:].requires_grad_()
        param.grad = torch.cat([torch.zeros(offset), grad])[offset:]
        optimizer = CLASSES["AdamW"][0]([param], clip_grad_norm=1.0, backend=backend)
        optimizer.step()
        runs.append([param, optimizer._grad_norm])
    for run in runs[1:]:
        assert_equal(run, runs[0])


MIXED = [
    # parameter, gradient, states, slow weights, averaged weights
    (torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16, torch.float32),
    (torch.float16, torch.float16, torch.float32, torch.float32, torch.float16),
    (torch.float32, torch.float32, torch.bfloat16, torch.float32, torch.float32),
    (torch.float32, torch.float32, torch.float32, torch.float16, torch.float32),
    (torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.bfloat16, torch.float32, torch.float32, torch.float32),
]


@pytest.mark.parametrize("dtypes", MIXED)
@pytest.mark.parametrize(
    ("kind", "options"),
    [("AdamW", {"amsgrad": True}), ("RMSprop", {"centered": True}), ("Lion", {}), ("SGD", {})],
)
def test_slots_of_several_dtypes_are_served_as_on_a_cpu(gpu, backend, kind, options, dtypes):
    """As a checkpoint or `grad_dtype` leaves them: float32 states beside bfloat16 parameters."""
    param, grad, states, slow, average = dtypes
    tail = {"lookahead_k": 2, "ema_decay": 0.9, "clip_grad_norm": 1.0, "zero_grads": True}
    runs = []
    for name in ("cpu", backend):
        torch.manual_seed(0)
        device = "cpu" if name == "cpu" else place.device
        params = [torch.randn(n, device="cpu") for n in (5, 1025, 8200, 2101)]
        params = [p.to(device, param) for p in params]
        params = [p.requires_grad_() for p in (*params[:3], params[3][1:])]
        for p in params:
            p.grad_dtype = None
        optimizer = CLASSES[kind][0](params, lr=0.01, backend=name, **tail, **options)
        for step in range(3):
            for p in params:
                p.grad = torch.randn_like(p, dtype=grad, device="cpu").to(device)
            optimizer.step()
            if step == 0:
                for state in optimizer.state.values():
                    kinds = {"slow_weights": slow, "ema_weights": average, "step": torch.float32}
                    for key, value in state.items():
                        state[key] = value.to(kinds.get(key, states))
        held = [v for p in params for v in optimizer.state[p].values()]
        assert all(p.grad.eq(0).all() for p in params)
        runs.append([*params, *held])
    assert [t.dtype for t in runs[0]] == [t.dtype for t in runs[1]]
    assert_equal(*runs)
