"""What is known of a tensor's place and shape: C and Python notice the same changes."""

import contextlib

import pytest
import torch

from spectramind_fused.kernels import host
from spectramind_fused.kernels.host import Facts

in_c_and_python = pytest.mark.parametrize("way", ["c", "python"])


@pytest.fixture
def facts(way, monkeypatch):
    """Makes facts by one way, and holds that it was this one."""
    if way == "c" and host._access() is None:
        pytest.skip("there is no C++ library, or torch has no exchange table")
    if way == "python":
        monkeypatch.setattr(host, "_access", lambda: None)

    def make(tensors, lasting):
        made = Facts(tensors, lasting)
        assert made._in_c == (way == "c")
        return made

    return make


def tensors():
    return [
        torch.randn(4, 4),
        torch.randn(3, 4).t().requires_grad_(),
        torch.nn.Parameter(torch.randn(5)),
        torch.zeros(()),
        torch.zeros(0, 3),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(7, dtype=torch.bfloat16),
        torch.randn(5, 1).expand(5, 3),
        torch.randn(9)[2:],
    ]


def shared(tensor):
    tensor.share_memory_()


CHANGES = {
    "moved": (0, lambda t: setattr(t, "data", t.data.clone())),
    "set": (0, lambda t: t.set_(torch.zeros(4, 4))),
    "shared": (0, shared),
    "cut": (0, lambda t: setattr(t, "data", t.data[:3])),
    "transposed": (0, lambda t: t.t_()),
    "reshaped": (0, lambda t: setattr(t, "data", t.data.view(16))),
    "one dimension more": (0, lambda t: t.unsqueeze_(0)),
    "another dtype": (0, lambda t: setattr(t, "data", t.data.view(torch.int32))),
    "negated": (0, lambda t: setattr(t, "data", torch._neg_view(t.data))),
    "swapped": (0, lambda t: torch.utils.swap_tensors(t, torch.zeros(4, 4))),
    "freed": (0, lambda t: t.untyped_storage().resize_(0)),
    "another start": (8, lambda t: setattr(t, "data", torch.zeros(9)[1:8])),
    "other strides": (5, lambda t: setattr(t, "data", t.data.contiguous())),
    "another class": (0, lambda t: setattr(t, "__class__", torch.nn.Parameter)),
    "a longer list": (None, lambda held: held.append(torch.zeros(3))),
    "a shorter list": (None, lambda held: held.pop()),
    "another order": (None, lambda held: held.insert(0, held.pop(1))),
}


@in_c_and_python
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(facts, change):
    held = tensors()
    known = facts(held, len(held))
    assert known.hold(held)
    which, apply = CHANGES[change]
    keep = [t.detach() for t in held]  # the old memory, which else might be had again
    apply(held if which is None else held[which])
    try:
        assert not known.hold(held)
    except RuntimeError:
        assert change == "freed"
    del keep


@in_c_and_python
def test_other_objects_with_the_same_facts_are_as_good(facts):
    held = tensors()
    known = facts(held, len(held))
    assert known.hold([t.detach() if type(t) is torch.Tensor else t for t in held])
    assert known.hold(list(held))


@in_c_and_python
def test_only_of_lasting_tensors_the_address_counts(facts):
    held = tensors()
    known = facts(held, 8)
    held[8] = torch.randn(11)[4:]
    assert known.hold(held)
    held[7] = torch.randn(5, 1).expand(5, 3)
    assert not known.hold(held)


@in_c_and_python
def test_strides_that_reach_no_element_do_not_count(facts):
    known = facts([torch.zeros(1, 5), torch.zeros(3, 0)], 0)
    assert known.hold([torch.zeros(5).as_strided((1, 5), (17, 1)), torch.zeros(0, 3).t()])
    assert not known.hold([torch.zeros(9).as_strided((1, 5), (17, 2)), torch.zeros(3, 0)])


@in_c_and_python
@pytest.mark.parametrize("other", ["sparse", "meta"])
def test_what_has_no_strides_or_no_memory_is_an_error_or_a_difference(facts, other):
    strange = {
        "sparse": torch.sparse_coo_tensor([[1]], [[1.0, 2.0]], (4, 2)),
        "meta": torch.zeros(4, 2, device="meta"),
    }[other]
    known = facts([torch.zeros(4, 2)], 0)
    with contextlib.suppress(RuntimeError, BufferError):
        assert not known.hold([strange])


@in_c_and_python
def test_a_list_of_none_is_held(facts):
    assert facts([], 0).hold([])
    assert not facts([], 0).hold([torch.zeros(3)])
