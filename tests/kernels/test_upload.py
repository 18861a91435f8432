"""When a list of numbers is uploaded; the GPU and the capture are played."""

import pytest
import torch

from spectramind_fused import FusedSGD
from spectramind_fused.multi_tensor import runtime
from spectramind_fused.multi_tensor.upload import Uploaded, UploadedInGraphs, copied
from tests.pairs import steps_taken


class Played(runtime.Runtime):
    """The CPU as a GPU; a capture records the copies of `UploadedInGraphs`, which is asked here."""

    def __init__(self):
        self.watches = []

    def serves(self, device):
        return True

    def capturing(self, device):
        return bool(self.watches)

    def watch(self, device):
        return self.watches[-1]

    def stream(self, device):
        return 0

    def pinned(self, size):
        return torch.empty(size, dtype=torch.uint8)


@pytest.fixture
def played(monkeypatch):
    monkeypatch.setattr(runtime, "current", Played())
    return runtime.current


def test_values_are_uploaded_where_they_changed_or_a_graph_may_have_changed_them(played):
    values = torch.tensor([1, 2])
    uploaded = UploadedInGraphs(values, [1, 2])
    uploaded.set([3, 4])
    assert values.tolist() == [3, 4]
    values.zero_()
    uploaded.set([3, 4])
    assert values.tolist() == [0, 0]  # nothing changed, nothing was uploaded
    played.watches = [runtime.Watch(1)]
    uploaded.set([3, 4])
    played.watches = []
    for _ in range(2):
        values.zero_()  # as a replay might
        uploaded.set([3, 4])
        assert values.tolist() == [3, 4]


def test_a_hyperparameter_that_changed_is_refused_in_a_capture(played):
    values = torch.tensor([0.5], dtype=torch.float64)
    uploaded = Uploaded(values, [0.5])
    played.watches = [runtime.Watch(1)]
    uploaded.set([0.5])
    with pytest.raises(RuntimeError, match=r"call optimizer\.refresh_hyperparameters\(\) before"):
        uploaded.set([0.25])
    assert values.tolist() == [0.5]
    played.watches = []
    uploaded.set([0.25])
    assert values.tolist() == [0.25]


def test_a_refused_step_changes_nothing_and_the_next_one_uploads(played):
    param = torch.ones(3).requires_grad_()
    param.grad = torch.ones(3)
    optimizer = FusedSGD([param], lr=0.5, backend="cpu")
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.25
    played.watches = [runtime.Watch(1)]
    with pytest.raises(RuntimeError, match="CUDA graph is being captured"):
        optimizer.step()
    assert torch.equal(param, torch.full((3,), 0.5))
    assert steps_taken(optimizer, [param]) == {1}
    played.watches = []
    optimizer.step()
    assert torch.equal(param, torch.full((3,), 0.25))


def test_arrays_arrive_by_one_copy_as_they_were(played):
    arrays = [
        torch.tensor([[1, 2], [3, 4]]),
        torch.tensor([5, 6, 7], dtype=torch.int32),
        torch.empty(0, 2, dtype=torch.int64),
        torch.tensor([0.5], dtype=torch.float64),
    ]
    there = copied(arrays, torch.device("cpu"))
    assert len({array.untyped_storage().data_ptr() for array in there}) == 1
    for array, arrived in zip(arrays, there, strict=True):
        assert torch.equal(array, arrived)
        assert array.dtype == arrived.dtype
        assert arrived.data_ptr() % 16 == 0
