"""Two ways to run GPU kernels without a GPU; a process can only be set up for one.

By default Triton's are interpreted. With `--emulate 80` (90, 100) they and those of csrc/cuda are
compiled for that compute capability and the PTX runs in tests/emulator; then the tests of
tests/compiled run, and of the others those with backend "triton" or "cuda".
"""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch

COMPILED = Path(__file__).parent / "compiled"


def pytest_addoption(parser):
    parser.addoption("--emulate", choices=("80", "90", "100"), help="run compiled kernels as PTX")
    parser.addoption("--kernels", type=Path, help="another library in the place of _cpu.so")
    parser.addoption("--transitions", type=int, default=2000, help="of tests/histories")
    parser.addoption("--any-seed", action="store_true", help="other histories at every run")


def pytest_configure(config):
    torch.set_num_threads(2)
    if config.getoption("kernels"):
        from spectramind_fused.kernels import cpu

        cpu._LIBRARY = config.getoption("kernels").resolve(strict=True)
    capability = config.getoption("emulate")
    if capability is None:
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
        return
    os.environ.pop("TRITON_INTERPRET", None)
    from tests import reference
    from tests.emulator import cuda, driver
    from tests.emulator.gpu import EmulatedGPU

    config.emulated = EmulatedGPU(int(capability))
    driver.activate(config.emulated)
    config.no_cuda = cuda.missing()
    if not config.no_cuda:
        config.runtime = cuda.activate(config.emulated, cuda.build())
    for names in (reference.GPU_KERNELS, reference.KERNELS, reference.BACKENDS):
        names.append("cuda")


def pytest_collection_finish(session):
    if session.config.getoption("emulate"):
        gc.collect()
        gc.freeze()  # the emulator looks for live tensors among what is made from now on


def pytest_unconfigure(config):
    gc.unfreeze()


def pytest_ignore_collect(collection_path, config):
    if config.getoption("emulate") is None and collection_path == COMPILED:
        return True
    return None


def pytest_collection_modifyitems(config, items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    if config.getoption("emulate") is None:
        return
    kept = [
        item
        for item in items
        if COMPILED in item.path.parents or (on_a_gpu(item) and not item.get_closest_marker("host"))
    ]
    for item in kept:
        if config.no_cuda and "cuda" in parameters(item):
            item.add_marker(pytest.mark.skip(reason=config.no_cuda))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def parameters(item):
    return item.callspec.params.values() if hasattr(item, "callspec") else ()


def on_a_gpu(item):
    return any(name in parameters(item) for name in ("triton", "cuda"))


def pytest_terminal_summary(terminalreporter):
    """Prints what tests recorded under "summary"."""
    for report in terminalreporter.getreports("passed"):
        for key, value in report.user_properties:
            if key == "summary" and report.when == "call":
                terminalreporter.write_line(value)


@pytest.fixture
def gpu(request):
    """The emulated GPU, with nothing launched yet."""
    request.config.emulated.forget()
    yield request.config.emulated
    request.config.emulated.forget()


@pytest.fixture(autouse=True, scope="session")
def _interpreter_rounds_bfloat16_like_a_gpu(request):
    """Triton 3.9's interpreter truncates float32 to bfloat16; compiled code rounds to even."""
    if request.config.getoption("emulate") is not None:
        yield
        return
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        yield
        return

    original = interpreter.InterpreterBuilder.cast_impl

    def cast_impl(self, source, target):
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            raw = np.ascontiguousarray(source.data).view(np.uint32).astype(np.uint64)
            rounded = (raw + 0x7FFF + ((raw >> 16) & 1)) >> 16
            rounded = np.where(np.isnan(source.data), 0x7FC0, rounded).astype(np.uint16)
            return interpreter.TensorHandle(rounded, target.scalar)
        return original(self, source, target)

    interpreter.InterpreterBuilder.cast_impl = cast_impl
    yield
    interpreter.InterpreterBuilder.cast_impl = original


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nan_is_a_number_to_a_gpu():
    """Triton's interpreter computes in numpy, which would warn of it."""
    with np.errstate(invalid="ignore"):
        yield
