"""The CUDA backend: what ptxas makes of every kernel, and what it says where it cannot run."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

import cuda_build
from benchmarks.device_code import cuda as device_code
from spectramind_fused import FusedAdamW
from spectramind_fused.kernels import BACKENDS, cuda
from spectramind_fused.kernels.triton import TritonBackend
from spectramind_fused.stepping.backends import choose
from tests.inputs import make_params

NVCC = cuda_build.find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")

# 16 rules, 4 of them with 2 numbers of states: 3 dtypes, mixed ones and any storages, and two
# dtypes for many gradients; but for Muon's two, which meet bfloat16 alone where dtypes are alike.
RULES = 4 * 2 + 12
UPDATES = RULES * 7 - 2 * 3
FACTORED = {"squares": 5, "move": 5, "divide": 2, "measure": 2 * 7, "scale": 2 * 2}
NORMS = 3 * 2 * 2  # dtypes; in float64 or in pairs; few and many gradients
ADVANCES = 16


def ptxas_says(report):
    """Registers, stack and spilled bytes of every kernel."""
    assert "warning" not in report
    return re.findall(
        r"Function properties for \w*?"
        r"(norm|advance|update|reduce|squares|move|divide|measure|scale)[IE]\w+\s+"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\s+"
        r"ptxas info\s+: Used (\d+) registers",
        report,
    )


@needs_nvcc
@pytest.mark.parametrize(
    "arch", [90, *(pytest.param(a, marks=pytest.mark.full) for a in (80, 100))]
)
def test_the_machine_code_of_every_kernel(arch, tmp_path, record_property):
    """No spill, no stack; where dtypes are alike only 128-bit accesses, of the formula's bytes."""
    cubin, report = device_code.compiled(f"sm_{arch}", tmp_path)
    rows = ptxas_says(report)
    names = [name for name, *_ in rows]
    counted = [names.count(name) for name in ("norm", "reduce", "advance", "update")]
    assert counted == [NORMS, 1, ADVANCES, UPDATES]
    assert {name: names.count(name) for name in FACTORED} == FACTORED
    assert len(names) <= 200
    for row in rows:
        assert row[1:4] == ("0", "0", "0"), row
    registers = {name: max(int(row[4]) for row in rows if row[0] == name) for name in set(names)}
    assert registers["update"] <= 128  # four blocks of 128 threads on a multiprocessor
    record_property("summary", f"sm_{arch}: at most {registers} registers")

    read = list(device_code.rows(f"sm_{arch}", cubin))
    assert [row["kernel"] for row in read].count("update") == RULES * 5 - 2 * 2
    for row in read:
        assert (row["spills"], row["stack"]) == (0, 0), row
        alike = row.get("dtype", "mixed") not in ("mixed", "any")
        if alike and row["expected_bytes"] is not None:  # of factors there is no formula
            assert row["accesses"].keys() == {128}, row
            assert row["bytes_per_parameter"] == row["expected_bytes"], row


@pytest.mark.parametrize(
    ("archs", "codes"),
    [
        ("8.0;9.0+PTX", ["80,code=sm_80", "90,code=sm_90", "90,code=compute_90"]),
        ("8.0 9.0", ["80,code=sm_80", "90,code=sm_90"]),
        ("10.0a", ["100a,code=sm_100a"]),
        ("7.5, 8.6", ["86,code=sm_86"]),  # 7.5 has no bfloat16
    ],
)
def test_archs_are_written_as_for_torch(archs, codes):
    assert cuda_build.gencodes(archs) == [f"arch=compute_{code}" for code in codes]


@pytest.mark.parametrize(
    ("archs", "message"),
    [
        ("Hopper", "has 'Hopper': write compute capabilities like '8.0;9.0\\+PTX'"),
        ("7.0;7.5", "names no GPU from 8.0 on: add '8.0\\+PTX'"),
    ],
)
def test_archs_that_cannot_be_built_are_named(archs, message):
    with pytest.raises(ValueError, match=message):
        cuda_build.gencodes(archs)


@pytest.mark.parametrize(
    ("known", "archs"),
    [
        ("compute_75 compute_80 compute_90", "8.0;9.0+PTX"),  # CUDA 12.0
        ("compute_80 compute_90 compute_100 compute_120 compute_121", "8.0;9.0;10.0;12.0+PTX"),
        ("compute_75", "8.0+PTX"),  # which it refuses, in its own words
    ],
)
def test_what_nvcc_knows_is_built(known, archs, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\nprintf '%s\\n' {known}\n")
    nvcc.chmod(0o755)
    assert cuda_build.default_archs(str(nvcc)) == archs


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A folder in the place of the installed package's."""
    cuda._load.cache_clear()
    monkeypatch.setattr(cuda, "_LIBRARY", tmp_path / "_cuda.so")
    yield tmp_path
    cuda._load.cache_clear()


def refusal():
    with pytest.raises(ValueError, match="backend='cuda' cannot run") as refused:
        FusedAdamW(make_params([(3,)]), backend="cuda")
    return str(refused.value)


def test_without_the_library_it_says_why(installed):
    assert "not built when spectramind_fused was installed (nvcc was not found)" in refusal()
    (installed / "_cuda.txt").write_text("nvcc failed: out of memory\n")
    cuda._load.cache_clear()
    assert "(nvcc failed: out of memory); put the CUDA toolkit's nvcc on PATH" in refusal()


def test_a_damaged_library_is_named(installed):
    (installed / "_cuda.so").write_text("no library")
    assert "the CUDA kernels do not load" in refusal()


BUILT = Path(cuda.__file__).with_name("_cuda.so")


@pytest.mark.skipif(not BUILT.exists(), reason="the CUDA kernels are not built here")
def test_the_library_loads_without_a_gpu_and_serves_none(installed, monkeypatch):
    monkeypatch.setattr(cuda, "_LIBRARY", BUILT)
    monkeypatch.setattr(BACKENDS["cuda"], "serves", "cuda")  # not the emulated one
    assert cuda._load()[0] is not None
    assert "serves NVIDIA GPUs, not tensors on cpu" in refusal()


def test_auto_takes_it_where_triton_is_missing(monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(BACKENDS["cuda"], "unavailable", lambda device: None)
    monkeypatch.setattr(BACKENDS["triton"], "unavailable", lambda device: "no triton")
    assert choose("auto", device, FusedAdamW.algorithm).backend.name == "cuda"
    monkeypatch.setattr(BACKENDS["triton"], "unavailable", lambda device: None)
    assert choose("auto", device, FusedAdamW.algorithm).backend.name == "triton"


def test_tensors_on_a_cpu_ask_no_gpu(monkeypatch):
    """Triton's answer would start the driver: a context per process, and fork broken later."""

    def asked(device):
        raise AssertionError(f"asked about {device}")

    for name in ("triton", "cuda"):
        monkeypatch.setattr(BACKENDS[name], "unavailable", asked)
    params = make_params([(3,)])
    optimizer = FusedAdamW(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.backends() == {"cpu": "cpu"}


@pytest.mark.parametrize("version", ["3.3.1", "3.5.1+git1234"])
def test_a_triton_that_is_too_old_is_named(monkeypatch, version):
    """Before 3.4 there is no triton.knobs, before 3.6 roots of denormals are 0."""
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__=version))
    reason = TritonBackend().unavailable(torch.device("cuda"))
    assert reason == f"Triton {version} is older than 3.6; `pip install -U triton`"


def test_float64_is_refused_by_name():
    assert cuda.CudaBackend().unsupported(torch.float64) == "the cuda backend has no torch.float64"
