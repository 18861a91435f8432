"""Where GPU kernels run without a GPU; a process can only be set up for one place.

`--emulate 90`, the default, compiles Triton's kernels and those of csrc/cuda for that compute
capability and runs their PTX in tests/emulator. With `--emulate 80` and `100` only tests of GPU
kernels run, with `--interpret` only those of Triton's, in its own interpreter. `--emulate none`
runs what needs no such place. With `--device cuda` tests/optim, tests/drop_in, tests/compiled and
tests/gpu run on a real GPU, its kernels by themselves and no emulator.
"""

import gc
import os
import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # tests run side by side: a thread that waits sleeps

import numpy as np
import pytest
import torch

from spectramind_fused.kernels import BACKENDS
from tests import counts, draws, place
from tests.backends import GPU_KERNELS

HERE = Path(__file__).parent
DEFAULT = "90"
# Without these, files that import them are skipped in words: a bare GPU machine has none of them.
OPTIONAL = ("hypothesis", "hydra", "omegaconf", "rich", "lightning_fabric", "expecttest",
            "optuna", "pytorch_optimizer", "timm", "transformers")  # fmt: skip
# What Triton compiled, kept by what it was compiled from; `make clean` removes it.
os.environ.setdefault("TRITON_CACHE_DIR", str(HERE.parent / "build" / "triton"))


def pytest_addoption(parser):
    parser.addoption(
        "--emulate", choices=("80", "90", "100", "none"), default=DEFAULT, help="which GPU"
    )
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where tests run")
    parser.addoption("--interpret", action="store_true", help="interpret Triton's kernels")
    parser.addoption("--write-counts", action="store_true", help="as they are now: counts.py")
    parser.addoption("--kernels", type=Path, help="another library in the place of _cpu.so")
    parser.addoption("--transitions", type=int, default=2000, help="of tests/histories")
    parser.addoption(
        "--soak", type=int, default=0, help="so many times as many random inputs, others every run"
    )


def pytest_configure(config):
    torch.set_num_threads(2)
    torch.sparse.check_sparse_tensor_invariants.enable()  # torch 2.11 warns who does not choose
    draws.rounds = config.getoption("soak")
    if config.getoption("kernels"):
        from spectramind_fused.kernels import cpu

        cpu._LIBRARY = config.getoption("kernels").resolve(strict=True)
    config.pluginmanager.register(counts.Counts(config))
    config.unserved = {}  # backend -> why its tests are skipped
    config.emulated = None
    place.record_who_serves()
    if config.getoption("device") == "cuda":
        use_gpu(config)
    elif config.getoption("interpret"):
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
        config.unserved["cuda"] = "an interpreter of Triton runs no CUDA C++"
        if why := interpreter_breaks():
            config.unserved["triton"] = why
    elif config.getoption("emulate") == "none":
        config.unserved = dict.fromkeys(("triton", "cuda"), "needs --emulate or --interpret")
    else:
        emulate(config, int(config.getoption("emulate")))


def interpreter_breaks():
    """Why Triton's interpreter cannot run with this numpy; empty where it can."""
    if find_spec("triton") is None:
        return "Triton is not installed"  # there is none for macOS
    triton, numpy = (tuple(map(int, version(n).split(".")[:2])) for n in ("triton", "numpy"))
    if triton < (3, 7) and numpy >= (2, 4):
        return "Triton before 3.7 takes int() of arrays, which numpy 2.4 refuses"
    return ""


def use_gpu(config):
    """Everything that tests make lies on the GPU, unless they say otherwise."""
    if config.getoption("interpret"):
        raise pytest.UsageError("--interpret runs on CPU tensors: leave out --device cuda")
    if not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch finds no GPU it can use here")
    config.option.emulate = "none"
    os.environ.pop("TRITON_INTERPRET", None)
    place.device = "cuda"
    torch.set_default_device("cuda")
    for name in GPU_KERNELS:
        if why := BACKENDS[name].unavailable(torch.device("cuda", 0)):
            config.unserved[name] = why


def emulate(config, capability):
    os.environ.pop("TRITON_INTERPRET", None)
    try:
        from tests.emulator import cuda, driver
        from tests.emulator.gpu import EmulatedGPU
    except ImportError as error:
        config.unserved = dict.fromkeys(("triton", "cuda"), str(error))
        return
    torch.utils.swap_tensors = without_weak_references(torch.utils.swap_tensors)
    config.emulated = EmulatedGPU(capability)
    driver.activate(config.emulated)
    if (why := cuda.missing()) is not None:
        config.unserved["cuda"] = why
    else:
        config.runtime = cuda.activate(config.emulated, cuda.build())


def without_weak_references(swap_tensors):
    """The emulator's would be in the way."""

    def swap(*tensors):
        from tests.emulator import memory

        memory.forget()
        swap_tensors(*tensors)

    return swap


def pytest_unconfigure():
    gc.unfreeze()


def pytest_collection_modifyitems(config, items):
    selected = [item for item in items if belongs_here(item, config)]
    config.hook.pytest_deselected(items=[item for item in items if item not in selected])
    items[:] = selected
    for item in items:
        for backend, why in config.unserved.items():
            if backend in parameters(item):
                item.add_marker(pytest.mark.skip(reason=why))
        if item.get_closest_marker("gpu") and place.device == "cpu":
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and --device cuda"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    missing = re.search(r"ModuleNotFoundError: No module named '(\w+)", str(report.longrepr))
    if report.failed and missing and missing[1] in OPTIONAL:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: needs {missing[1]}")
    return report


def belongs_here(item, config):
    """Whether a test says something in the place where kernels run now."""
    if place.device != "cpu":
        about_cpus = "cpu" in parameters(item) or item.get_closest_marker("cpu")
        return item.path.relative_to(HERE).parts[0] in place.FOLDERS and not about_cpus
    if config.getoption("interpret"):
        return "triton" in parameters(item)
    if config.getoption("emulate") in (DEFAULT, "none"):
        return True
    if config.getoption("emulate") == "80" and "cuda" in parameters(item):
        return False  # nvcc's instructions are those for sm_90: tests/compiled/test_targets.py
    return bool({"triton", "cuda"} & {*parameters(item)} or item.get_closest_marker("compiled"))


def parameters(item):
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return [value for value in values if isinstance(value, str)]


def pytest_terminal_summary(terminalreporter):
    """Prints what tests recorded under "summary"."""
    for report in terminalreporter.getreports("passed"):
        for key, value in report.user_properties:
            if key == "summary" and report.when == "call":
                terminalreporter.write_line(value)


@pytest.fixture
def gpu(request, monkeypatch):
    """The emulated GPU, with nothing launched yet; with --device cuda the real one."""
    if place.device != "cpu":
        return place.RealGPU(monkeypatch)
    if request.config.emulated is None:
        pytest.skip("needs an emulated GPU")
    return request.config.emulated


@pytest.fixture(autouse=True)
def _only_what_a_test_makes_is_searched(request):
    """For tensors by the emulator; what was launched is forgotten after each test."""
    if request.config.emulated is None or not (
        {"triton", "cuda"} & {*parameters(request.node)} or "gpu" in request.fixturenames
    ):
        yield
        return
    from tests.emulator import memory

    memory.settle()
    yield
    request.config.emulated.forget()


@pytest.fixture(autouse=True)
def _who_is_named_has_served(request):
    """A test of a backend that another one stepped, or none, would prove nothing of it."""
    place.served.clear()
    yield
    if not request.node.get_closest_marker("eager"):
        assert not place.unserved(parameters(request.node))


@pytest.fixture(autouse=True, scope="session")
def _interpreter_rounds_bfloat16_like_a_gpu(request):
    """Triton 3.9's interpreter truncates float32 to bfloat16; compiled code rounds to even."""
    if not request.config.getoption("interpret") or find_spec("triton") is None:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

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
