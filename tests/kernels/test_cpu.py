"""The C++ backend: threads, tables, and what happens when it was not built."""

import pytest
import torch

from spectramind_fused import FusedAdamW
from spectramind_fused.kernels import cpu
from tests.asserts import assert_equal
from tests.inputs import clones, make_grads, make_params, set_grads


def test_the_result_does_not_depend_on_the_number_of_threads():
    params = make_params([(100003,), (5,), *[(300,)] * 50])
    runs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        twins = clones(params)
        optimizer = FusedAdamW(twins, lookahead_k=2, backend="cpu")
        torch.manual_seed(0)
        for _ in range(4):
            set_grads(twins, make_grads(twins))
            optimizer.step()
        runs.append(twins)
    torch.set_num_threads(2)
    assert_equal(*runs)


def test_without_the_library_auto_is_eager_and_says_why(monkeypatch, tmp_path):
    cpu._load.cache_clear()
    monkeypatch.setattr(cpu, "_LIBRARY", tmp_path / "absent.so")
    try:
        params = make_params([(3,)])
        optimizer = FusedAdamW(params)
        assert "C++ kernels were not built" in optimizer.backends()["cpu"]
        set_grads(params, make_grads(params))
        optimizer.step()
        with pytest.raises(ValueError, match=r"cannot run: the C\+\+ kernels were not built"):
            FusedAdamW(params, backend="cpu")
    finally:
        cpu._load.cache_clear()


def test_a_damaged_library_is_named(monkeypatch, tmp_path):
    cpu._load.cache_clear()
    (tmp_path / "bad.so").write_text("no library")
    monkeypatch.setattr(cpu, "_LIBRARY", tmp_path / "bad.so")
    try:
        assert "do not load" in FusedAdamW(make_params([(3,)])).backends()["cpu"]
    finally:
        cpu._load.cache_clear()
