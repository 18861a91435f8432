"""What is known of tensors: C, C that asks torch, and Python notice the same changes."""

import gc
import sys
from array import array
from collections import UserDict

import pytest
import torch

from spectramind_fused.kernels import tensor_layout
from spectramind_fused.kernels.host import (
    FITS,
    LOST,
    MISSING,
    MOVED,
    NOT_WATCHED,
    OTHERS,
    OVERLAP,
    AskedFacts,
    Facts,
    Watched,
    can_be_read,
    mark_written,
)
from tests.looks import IN_C, WAYS, look_by


def tensors():
    return [
        torch.randn(4, 4),
        torch.randn(3, 4).t().requires_grad_(),
        torch.nn.Parameter(torch.randn(5)),
        torch.zeros(()),
        torch.zeros(0, 3),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(7, dtype=torch.bfloat16),
        torch.randn(2, 1, 2, 1, 3, 2, 2),  # more dimensions than torch keeps in a tensor
        torch.randn(9)[2:],
    ]


class Look:
    """Parameters in two groups, with a gradient and two entries of a state each.

    Attributes:
        params: of both groups.
        state: an optimizer's.
    """

    def __init__(self, way, monkeypatch):
        look_by(way, monkeypatch)
        self.way, self.params = way, tensors()
        self.groups = [self.params[:4], self.params[4:]]
        firsts, seconds = tensors(), tensors()
        self.state = {
            p: {"first": first, "second": second}
            for p, first, second in zip(self.params, firsts, seconds, strict=True)
        }
        for p, grad in zip(self.params, tensors(), strict=True):
            p.grad = grad.detach()
        self.begin()

    def begin(self, leave_out=()):
        """Begins to look at what is there; `leave_out`: who is to have no gradient."""
        params = [p for group in self.groups for p in group]
        self.rows = array("q", bytes(8 * len(params)))
        at = self.rows.buffer_info()[0]
        watched = [
            NOT_WATCHED
            if i in leave_out
            else Watched(
                p.grad, self.state[p], ("first", "second"), None, at + 8 * i, p.grad.nbytes
            )
            for i, p in enumerate(params)
        ]
        if self.way == "python":
            self.asked = AskedFacts(self._asked(), 3 * len(params))
            return
        known = [p for i, p in enumerate(params) if i not in leave_out]
        everything = [*known, *(w.grad for w in watched)]
        assert can_be_read(self.groups, [self.state], [t for t in everything if t is not None])
        has_grad = [p.grad is not None for p in params]
        self.facts = Facts(self.groups, self.state, watched, has_grad)
        if not leave_out:
            assert self.found() == FITS | MOVED
            assert self.found() == FITS

    def _asked(self):
        params = [p for group in self.groups for p in group]
        states = [value for state in self.state.values() for value in state.values()]
        return [*params, *states, *(p.grad for p in params)]

    def found(self, overlaps=False):
        return self.facts.compare(self.groups, self.state, overlaps)

    def fits(self):
        """An error is a difference, too."""
        try:
            return self.asked.hold(self._asked()) if self.way == "python" else bool(self.found())
        except (RuntimeError, BufferError):
            return False


@pytest.fixture
def look(request, monkeypatch):
    return Look(request.param, monkeypatch)


by_all = pytest.mark.parametrize("look", WAYS, indirect=True)
in_c = pytest.mark.parametrize("look", IN_C, indirect=True)


CHANGES = {
    "moved": (0, lambda t: setattr(t, "data", t.data.clone())),
    "set": (0, lambda t: t.set_(torch.zeros(4, 4))),
    "shared": (0, lambda t: t.share_memory_()),
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
    "many dimensions turned": (7, lambda t: t.transpose_(0, 2)),
}
ONLY_OF_WHAT_LASTS = ("moved", "set", "shared", "swapped", "another start", "freed")


@by_all
@pytest.mark.parametrize("of", ["parameter", "state", "gradient"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(look, change, of):
    if (change, of) == ("swapped", "gradient"):
        pytest.skip("torch swaps no gradient: it has another owner")
    which, apply = CHANGES[change]
    param = look.params[which]
    held = {
        "parameter": param,
        "state": look.state[param]["second"],
        "gradient": param.grad,
    }[of]
    before = [t.detach() for t in (param, param.grad, *look.state[param].values())]
    assert look.fits()
    apply(held)
    if of != "gradient" or change not in ONLY_OF_WHAT_LASTS:
        assert not look.fits()
    elif change == "freed":
        assert look.way == "python" or look.found() & (FITS | LOST) == FITS | LOST
    else:
        assert look.fits()
        assert look.way == "python" or look.rows[which] == held.data_ptr()
    del before  # the old memory, which else might be had again


MEMBERS = {
    "a longer group": lambda look: look.groups[1].append(torch.zeros(3)),
    "a shorter group": lambda look: look.groups[1].pop(),
    "another order": lambda look: look.groups[0].insert(0, look.groups[0].pop()),
    "another group": lambda look: look.groups[0].append(look.groups[1].pop(0)),
    "a third group": lambda look: look.groups.append([]),
    "a group less": lambda look: look.groups.pop(),
    "another parameter": lambda look: look.groups[0].__setitem__(0, look.params[0].detach()),
    "another state": lambda look: look.state.__setitem__(
        look.params[1], dict(look.state[look.params[1]])
    ),
    "a state less": lambda look: look.state.popitem(),
    "a state more": lambda look: look.state.__setitem__(torch.zeros(2), {}),
    "states in another order": lambda look: look.state.__setitem__(
        look.params[0], look.state.pop(look.params[0])
    ),
    "an entry more": lambda look: look.state[look.params[8]].__setitem__("third", 1),
    "an entry less": lambda look: look.state[look.params[8]].pop("first"),
    "an entry of another name": lambda look: look.state[look.params[8]].__setitem__(
        "third", look.state[look.params[8]].pop("first")
    ),
    "entries exchanged": lambda look: look.state[look.params[8]].update(
        first=look.state[look.params[8]]["second"], second=look.state[look.params[8]]["first"]
    ),
}


@in_c
@pytest.mark.parametrize("change", MEMBERS)
def test_other_members_and_states_are_noticed(look, change):
    MEMBERS[change](look)
    assert look.found() == 0


@in_c
def test_other_objects_in_the_same_place_are_as_good(look):
    for state in look.state.values():
        state["first"] = state["first"].detach() if type(state["first"]) is torch.Tensor else (
            state["first"]
        )  # fmt: skip
    assert look.found() == FITS
    look.state[look.params[0]]["first"].data = torch.zeros(4, 4)  # is looked at like the old one
    assert look.found() == 0


@in_c
def test_who_has_a_gradient_is_told(look):
    second, grad = look.params[2], look.params[2].grad
    second.grad = None
    assert look.found() == FITS | MOVED | MISSING | OTHERS
    assert look.rows[2] == 0
    assert list(look.facts.has_grad[:4]) == [1, 1, 0, 1]
    assert look.found() == FITS | MISSING
    second.grad = grad
    assert look.found() == FITS | MOVED | OTHERS
    assert look.rows[2] == grad.data_ptr()
    assert look.found() == FITS


@in_c
def test_a_gradient_of_whom_none_was_expected_is_noticed(look):
    third, grad = look.params[3], look.params[3].grad
    third.grad = None
    look.begin(leave_out=[3])
    assert look.found() & FITS
    third.grad = grad
    assert look.found() == 0


def object_of_gradient(param):
    """The address of Python's object of a gradient, without making one; 0 where there is none."""
    layout = tensor_layout.tensor_layout()
    meta = tensor_layout._word(param._cdata + layout.meta_at)
    return tensor_layout._word(tensor_layout._word(meta + layout.grad_at) + layout.object_at)


@pytest.mark.parametrize("look", ["c"], indirect=True)
def test_a_gradient_that_looks_as_before_becomes_no_object_of_pythons(look):
    """To make one takes longer than all else."""
    for p in look.params[1:3]:
        p.grad = None
        (2 * p).sum().backward()
    assert look.found() & FITS
    assert [object_of_gradient(p) for p in look.params[1:3]] == [0, 0]
    assert look.rows[1] == look.params[1].grad.data_ptr()
    assert look.rows[2] == look.params[2].grad.data_ptr()


@pytest.mark.parametrize("look", ["c"], indirect=True)
def test_a_gradient_without_an_object_may_look_otherwise(look):
    param = look.params[0].requires_grad_()
    param.grad = torch.randn(4, 4).t()
    look.begin()
    param.grad = None
    (2 * param).sum().backward()
    assert object_of_gradient(param) == 0
    assert look.found() == 0


@in_c
def test_overlaps_are_told_to_who_asks(look):
    memory = torch.randn(30)
    look.params[2].grad, look.params[8].grad = memory[:5], memory[5:12]
    assert look.found(overlaps=True) == FITS | MOVED  # they touch
    look.params[8].grad = memory[4:11]
    assert look.found(overlaps=True) == FITS | MOVED | OVERLAP
    look.params[0].grad = torch.zeros(4, 4)
    assert look.found(overlaps=True) == FITS | MOVED | OVERLAP  # of others
    look.params[8].grad = memory[6:13]
    assert look.found() == FITS | MOVED  # nobody asked


@in_c
def test_memory_that_does_not_reach_is_told(look):
    grad = look.params[0].grad
    grad.untyped_storage().resize_(grad.nbytes - 4)
    assert look.found() & LOST
    grad.untyped_storage().resize_(grad.nbytes + 4)
    assert not look.found() & LOST


@pytest.mark.parametrize("look", ["c"], indirect=True)
def test_a_view_behind_the_end_of_its_storage_is_told(look):
    """Where torch's methods are asked, only a storage that is too small in all is."""
    flat = torch.zeros(3 * 16)
    look.params[0].grad = flat[32:].view(4, 4)
    assert not look.found() & LOST
    flat.untyped_storage().resize_(4 * 32)
    assert look.found() & LOST


@in_c
@pytest.mark.parametrize("other", ["sparse", "meta", "a class of its own"])
def test_a_gradient_that_c_does_not_know_is_a_difference_or_an_error(look, other):
    class Own(torch.Tensor):
        pass

    look.params[0].grad = None
    look.params[0].grad = {
        "sparse": lambda: torch.sparse_coo_tensor([[1], [0]], [1.0], (4, 4)),
        "meta": lambda: torch.zeros(4, 4),
        "a class of its own": lambda: torch.zeros(4, 4).as_subclass(Own),
    }[other]()
    if other == "meta":
        look.params[0].grad.data = torch.zeros(4, 4)[:, :2]
    assert not look.fits()


@in_c
@pytest.mark.parametrize(
    "entry", ["sparse", "meta", "batched", "undefined", "a number", "a string"]
)
def test_an_entry_of_a_state_may_become_anything(look, entry):
    held = look.state[look.params[0]]
    assert look.found() == FITS

    def put(value):
        held["first"] = value
        assert not look.fits()
        return torch.zeros(3)

    if entry == "batched":
        torch.func.vmap(put)(torch.zeros(4, 4))
    else:
        put({
            "sparse": torch.sparse_coo_tensor([[1], [0]], [1.0], (4, 4)),
            "meta": torch.zeros(4, 4, device="meta"),
            "undefined": None,
            "a number": 3.0,
            "a string": "first",
        }[entry])  # fmt: skip


@in_c
def test_looking_keeps_and_loses_no_reference(look):
    def counts():
        objects = [*look.params, *(p.grad for p in look.params), None, False, look.state]
        objects += [value for state in look.state.values() for value in state.values()]
        gc.collect()
        return [sys.getrefcount(each) for each in objects[:9]], [
            sys.getrefcount(each) for each in objects[9:18] + objects[20:]
        ]

    before = counts()
    for _ in range(1000):
        look.found()
        look.found(overlaps=True)
    assert counts() == before


@in_c
def test_strides_that_reach_no_element_do_not_count(look):
    look.params[0].grad = None
    look.groups, look.state = [[torch.zeros(1, 5), torch.zeros(3, 0)]], {}
    look.params = look.groups[0]
    for p in look.params:
        p.grad, look.state[p] = torch.zeros(p.shape), {"first": p.detach(), "second": p.detach()}
    look.begin()
    look.params[0].grad = torch.zeros(5).as_strided((1, 5), (17, 1))
    look.params[1].grad = torch.zeros(0, 3).t()
    assert look.found() & FITS
    look.params[0].grad = torch.zeros(9).as_strided((1, 5), (17, 2))
    assert look.found() == 0


@in_c
def test_a_parameter_may_say_itself_what_its_gradient_is(look):
    class Says(torch.nn.Parameter):
        grad = property(lambda self: self.says)

    look.params[3].grad = None
    says = look.groups[0][3] = look.params[3] = Says(torch.zeros(3))
    look.state[says] = look.state.pop(list(look.state)[3])
    says.says = None
    look.begin(leave_out=[3])
    assert look.found() & FITS
    says.says = torch.zeros(3)
    assert look.found() == 0


@pytest.mark.parametrize("way", IN_C)
def test_nobody_is_looked_at(way, monkeypatch):
    look_by(way, monkeypatch)
    facts = Facts([[]], {}, [], [])
    assert facts.compare([[]], {}, False) == FITS
    assert facts.compare([[torch.zeros(3)]], {}, False) == 0


def test_what_is_no_list_no_dict_or_of_another_class_is_not_read():
    class Own(torch.Tensor):
        pass

    plain = torch.zeros(3)
    assert can_be_read([[plain]], [{}, None], [plain])
    assert not can_be_read([(plain,)], [{}], [plain])
    assert not can_be_read([[plain]], [{}, UserDict()], [plain])
    assert not can_be_read([[plain]], [{}], [plain.as_subclass(Own)])


def test_a_torch_that_lays_its_tensors_out_otherwise_is_asked():
    """Words that say nothing of a tensor are found in no place, or show no change."""
    found = tensor_layout.tensor_layout()
    assert found is not None
    assert tensor_layout._shows_every_change(found)
    blind = found._replace(keys_at=found.keys_at - 16)  # sees no dtype and no keys
    assert not tensor_layout._shows_every_change(blind)
    samples = tensor_layout._samples()
    assert tensor_layout._offset(samples, 64, id, lambda tensor: 12345) is None


@pytest.mark.parametrize("way", WAYS)
def test_what_is_written_is_marked_as_torch_does(way, monkeypatch):
    class Says(torch.Tensor):
        grad = property(lambda self: self.says)

    look_by(way, monkeypatch)
    whole = torch.zeros(9)
    marked = [torch.zeros(3).requires_grad_(), torch.nn.Parameter(torch.zeros(())), whole[2:]]
    marked += [torch.zeros(2).as_subclass(Says), torch.zeros(30)]
    for p in marked[:2]:
        p.grad = torch.zeros_like(p)
    marked[3].says = torch.zeros(2)
    grads = [p.grad for p in marked]
    mark_written(marked)
    mark_written([*marked, whole])
    assert [p._version for p in marked] == [2, 2, 3, 2, 2]
    assert whole._version == 3
    assert [grad._version for grad in grads if grad is not None] == [0, 0, 0]
    mark_written(marked, gradients=True)
    assert [grad._version for grad in grads if grad is not None] == [1, 1, 1]
    assert [p._version for p in marked] == [2, 2, 3, 2, 2]
    mark_written([])


@pytest.mark.parametrize("way", WAYS)
def test_tensors_of_inference_mode_count_no_writes(way, monkeypatch):
    look_by(way, monkeypatch)
    first, last = torch.zeros(2), torch.zeros(2)
    with torch.inference_mode():
        counts_none = torch.zeros(3)
        mark_written([first, counts_none, last])
    mark_written([first, counts_none, last])
    assert (first._version, last._version) == (2, 2)
