"""Who is timed on GPU machines: built as its library wants it, or absent for a reason."""

import sys
import types

import pytest
import torch

from spectramind_fused.bench import gpu_contenders
from spectramind_fused.bench.contenders import Unavailable
from spectramind_fused.bench.gpu_contenders import GPU_PEERS
from spectramind_fused.optim import OPTIMIZERS

APEX = next(peer for peer in GPU_PEERS if peer.name == "apex")
ON_A_GPU = [types.SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)]


@pytest.fixture
def installed(monkeypatch):
    """A stand-in for apex, which is built on GPU machines only."""
    module = types.ModuleType("apex.optimizers")
    module.FusedAdam = lambda params, **options: (params, options)
    monkeypatch.setitem(sys.modules, "apex", types.ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", module)
    monkeypatch.setattr(gpu_contenders, "version", lambda package: "1.0")
    return module


@pytest.mark.parametrize("peer", GPU_PEERS[-5:], ids=lambda peer: peer.name)
def test_on_a_cpu_it_says_why_not(peer):
    params = [torch.ones(3, requires_grad=True)]
    with pytest.raises(Unavailable, match=f"{peer.package} steps GPU tensors only"):
        peer.build("AdamW", params)


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_one_class_for_both_is_told_which(installed, kind):
    params, options = APEX.build(kind, ON_A_GPU)
    assert params is ON_A_GPU
    assert options == {**OPTIMIZERS[kind].usual, "adam_w_mode": kind == "AdamW"}


def test_whatever_a_library_raises_is_a_reason(installed):
    def broken(params, **options):
        raise RuntimeError("built for another torch")

    installed.FusedAdam = broken
    with pytest.raises(Unavailable, match="apex: RuntimeError: built for another torch"):
        APEX.build("AdamW", ON_A_GPU)
    with pytest.raises(Unavailable, match="apex has no SGD"):
        APEX.build("SGD", ON_A_GPU)


def test_what_is_not_installed_says_so():
    with pytest.raises(Unavailable, match="apex is not installed"):
        APEX.build("AdamW", ON_A_GPU)
