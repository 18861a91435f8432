"""What is uploaded while a CUDA graph is captured; the GPU and the capture are played."""

import pytest
import torch

from spectramind_fused import FusedSGD
from spectramind_fused.multi_tensor import upload
from spectramind_fused.multi_tensor.upload import Uploaded, UploadedInGraphs
from tests.pairs import steps_taken


class Capture:
    """Whether one is running; what it copied can be replayed."""

    def __init__(self):
        self.running = False

    @staticmethod
    def replay(uploaded):
        uploaded.tensor.copy_(uploaded._in_graphs[-1])


@pytest.fixture
def capture(monkeypatch):
    played = Capture()
    monkeypatch.setattr(upload, "_capturing", lambda: played.running)
    monkeypatch.setattr(upload, "_pinned_like", torch.empty_like)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    return played


def on_gpu(uploaded):
    uploaded._on_gpu = True
    return uploaded


def test_a_graph_brings_its_own_values_back(capture):
    values = torch.tensor([1, 2])
    uploaded = on_gpu(UploadedInGraphs(values, [1, 2]))
    uploaded.set([3, 4])
    assert values.tolist() == [3, 4]
    capture.running = True
    uploaded.set([3, 4])  # nothing moved, and the graph must upload all the same
    capture.running = False
    uploaded.set([5, 6])
    assert values.tolist() == [5, 6]
    capture.replay(uploaded)
    assert values.tolist() == [3, 4]


def test_after_a_capture_nothing_is_taken_for_uploaded(capture):
    values = torch.tensor([1, 2])
    uploaded = on_gpu(UploadedInGraphs(values, [1, 2]))
    uploaded.set([1, 2])
    capture.running = True
    uploaded.set([7, 8])
    capture.running = False
    values.zero_()  # a capture records the copy and does not make it
    uploaded.set([7, 8])
    assert values.tolist() == [7, 8]


def test_two_graphs_have_each_their_own_source(capture):
    values = torch.tensor([0])
    uploaded = on_gpu(UploadedInGraphs(values, [0]))
    for number in (1, 2):
        capture.running = False
        uploaded.set([0])
        capture.running = True
        uploaded.set([number])
    assert [source.tolist() for source in uploaded._in_graphs] == [[1], [2]]
    with pytest.raises(RuntimeError, match=r"Run one step .* before capturing another"):
        uploaded.set([3])


def test_a_hyperparameter_that_changed_is_refused_in_a_capture(capture):
    values = torch.tensor([0.5], dtype=torch.float64)
    uploaded = on_gpu(Uploaded(values, [0.5]))
    capture.running = True
    uploaded.set([0.5])
    with pytest.raises(RuntimeError, match=r"call optimizer\.refresh_hyperparameters\(\) before"):
        uploaded.set([0.25])
    assert values.tolist() == [0.5]
    capture.running = False
    uploaded.set([0.25])
    assert values.tolist() == [0.25]


def test_a_refused_step_changes_nothing_and_the_next_one_uploads(capture):
    param = torch.ones(3).requires_grad_()
    param.grad = torch.ones(3)
    optimizer = FusedSGD([param], lr=0.5, backend="cpu")
    optimizer.step()
    on_gpu(optimizer.describe_plan().buckets[0].tables._values)
    optimizer.param_groups[0]["lr"] = 0.25
    capture.running = True
    with pytest.raises(RuntimeError, match="CUDA graph is being captured"):
        optimizer.step()
    assert torch.equal(param, torch.full((3,), 0.5))
    assert steps_taken(optimizer, [param]) == {1}
    capture.running = False
    optimizer.step()
    assert torch.equal(param, torch.full((3,), 0.25))


def test_the_tensor_stays_where_it_is_while_its_shape_stays():
    uploaded = Uploaded(torch.empty(0, dtype=torch.float64))
    uploaded.set([[1.0, 2.0]])
    address = uploaded.tensor.data_ptr()
    uploaded.set([[3.0, 4.0]])
    assert uploaded.tensor.data_ptr() == address
    assert uploaded.tensor.tolist() == [[3.0, 4.0]]
    uploaded.set([[1.0, 2.0], [3.0, 4.0]])
    assert uploaded.tensor.tolist() == [[1.0, 2.0], [3.0, 4.0]]
