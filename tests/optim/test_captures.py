"""What a captured CUDA graph reads lives as long as the graph, whatever becomes of the optimizer.

The graph is played on the emulated GPU (tests/emulator/graphs.py): it holds raw addresses, and a
replay that reads freed memory is a fault.
"""

import gc
import weakref

import pytest
import torch

from spectramind_fused.multi_tensor import runtime
from tests import place
from tests.asserts import assert_equal
from tests.backends import GPU_KERNELS
from tests.inputs import clones, give, make_grads, make_params
from tests.optim.test_graphs import WHOLE
from tests.oracle import CLASSES
from tests.pairs import steps_taken

SHAPES = [(), (0,), (17,), (1025,)]


@pytest.fixture
def played(gpu, monkeypatch):
    if place.device != "cpu":
        pytest.skip("tests/gpu captures real graphs")
    from tests.emulator.graphs import PlayedRuntime

    monkeypatch.setattr(runtime, "current", PlayedRuntime(gpu))
    return runtime.current


class Pair:
    """An optimizer that is captured, and a twin that takes every step as it comes."""

    def __init__(self, backend, kind="AdamW", **options):
        self.params = make_params(SHAPES)
        self.twins = clones(self.params)
        ours = CLASSES[kind][0]
        self.optimizer = ours(self.params, backend=backend, **options)
        self.twin = ours(self.twins, backend="cpu", **options)

    def live(self, without=()):
        """A step outside graphs, with gradients in new places."""
        give(make_grads(self.params), self.params, self.twins)
        for i in without:
            self.params[i].grad = self.twins[i].grad = None
        self.optimizer.step()
        self.twin.step()

    def capture(self, played):
        """The graph of one step; its gradients stay where they are."""
        self.captured = [p.grad for p in self.params]
        with played.capture() as graph:
            self.optimizer.step()
        return graph

    def replay(self, graph):
        grads = make_grads(self.params)
        for held, grad in zip(self.captured, grads, strict=True):
            held.copy_(grad)
        give(grads, self.twins)
        gc.collect()
        graph.replay()
        self.twin.step()

    def check(self):
        assert_equal(self.params, self.twins)
        for p, q in zip(self.params, self.twins, strict=True):
            mine, twins = self.optimizer.state[p], self.twin.state[q]
            assert_equal([mine[k] for k in twins], list(twins.values()))


@pytest.mark.parametrize("backend", GPU_KERNELS)
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Adafactor"])
def test_a_graph_and_steps_outside_it_take_turns(played, backend, kind):
    pair = Pair(backend, kind, **WHOLE)
    pair.live()
    graph = pair.capture(played)
    assert_equal(pair.params, pair.twins)  # nothing ran in the capture
    outside = [torch.ones_like(p) for p in pair.params]
    for _ in range(3):
        pair.replay(graph)
        # The same gradients in the same place at every turn: the graph has moved the table away.
        for p, grad in zip(pair.params, outside, strict=True):
            p.grad = grad
        give([g.clone() for g in outside], pair.twins)
        pair.optimizer.step()
        pair.twin.step()
        pair.check()


def drop_a_gradient(pair):
    pair.live(without=[2])


def change_the_ranks(pair):
    pair.optimizer.norm_group = None  # drops the plan
    pair.live()


def replace_a_state(pair):
    for optimizer, params in ((pair.optimizer, pair.params), (pair.twin, pair.twins)):
        optimizer.state[params[3]]["step"] = optimizer.state[params[3]]["step"].clone()
    pair.live()


def switch_an_option(pair):
    for optimizer in (pair.optimizer, pair.twin):
        optimizer.zero_grads = True
    pair.live()
    for optimizer in (pair.optimizer, pair.twin):
        optimizer.zero_grads = False


@pytest.mark.parametrize("backend", GPU_KERNELS)
@pytest.mark.parametrize("change", [drop_a_gradient, change_the_ranks, switch_an_option])
def test_a_graph_outlives_its_plan(played, backend, change):
    pair = Pair(backend, clip_grad_norm=1.0)
    pair.live()
    graph = pair.capture(played)
    pair.replay(graph)
    change(pair)
    pair.replay(graph)
    pair.live()
    pair.replay(graph)
    pair.check()


@pytest.mark.parametrize("backend", GPU_KERNELS)
def test_a_replaced_state_is_stepped_by_the_graph_as_before(played, backend):
    """As with torch: a graph writes where it was captured. That memory must still be there."""
    pair = Pair(backend, clip_grad_norm=1.0)
    pair.live()
    graph = pair.capture(played)
    replace_a_state(pair)
    before = pair.optimizer.state[pair.params[3]]["step"].clone()
    gc.collect()
    graph.replay()
    assert torch.equal(pair.optimizer.state[pair.params[3]]["step"], before)


def replace_exp_avg(pair):
    for p in pair.params:
        state = pair.optimizer.state[p]
        state["exp_avg"] = state["exp_avg"].clone()


def switch_the_average_off(pair):
    for optimizer in (pair.optimizer, pair.twin):
        optimizer.param_groups[0]["spectramind_ema_decay"] = None


def move_a_parameter(pair):
    pair.params[3].data = pair.params[3].data.clone()


@pytest.mark.parametrize("backend", GPU_KERNELS)
@pytest.mark.parametrize("change", [replace_exp_avg, switch_the_average_off, move_a_parameter])
def test_what_a_graph_writes_to_is_there_though_nobody_steps_it_any_more(played, backend, change):
    pair = Pair(backend, ema_decay=0.9)
    pair.live()
    graph = pair.capture(played)
    change(pair)
    pair.live()
    gc.collect()
    graph.replay()


@pytest.mark.parametrize("backend", GPU_KERNELS)
@pytest.mark.parametrize("change", [switch_an_option, change_the_ranks])
def test_a_refresh_reaches_the_graphs_of_replaced_plans(played, backend, change):
    pair = Pair(backend)
    pair.live()
    graph = pair.capture(played)
    change(pair)
    for optimizer in (pair.optimizer, pair.twin):
        optimizer.param_groups[0]["lr"] = 0.5
    pair.optimizer.norm_group = None  # there is no plan now
    pair.optimizer.refresh_hyperparameters()
    pair.replay(graph)
    pair.check()


def test_a_refresh_after_a_new_group_waits_for_the_next_step(played):
    pair = Pair("triton")
    pair.live()
    graph = pair.capture(played)
    pair.optimizer.add_param_group({"params": [torch.ones(3).requires_grad_()], "lr": 0.25})
    pair.optimizer.param_groups[0]["lr"] = pair.twin.param_groups[0]["lr"] = 0.5
    pair.optimizer.refresh_hyperparameters()
    pair.replay(graph)
    pair.check()
    pair.live()
    pair.check()


@pytest.mark.parametrize("backend", GPU_KERNELS)
def test_capturing_again_and_again_keeps_only_what_can_be_replayed(played, backend):
    pair = Pair(backend)
    for _ in range(12):
        change_the_ranks(pair)
        graph = pair.capture(played)
        pair.replay(graph)
        graph.destroy()
        pair.live()
        assert pair.optimizer._captures.plans() == []
    for _ in range(12):  # one plan, many graphs
        graph = pair.capture(played)
        graph.destroy()
        pair.live()
    (bucket,) = pair.optimizer.describe_plan().buckets
    follower = bucket.tables._gradients
    assert follower is None or not follower._in_graphs
    assert follower is None or len(follower._ready) <= 9
    pair.check()


@pytest.mark.parametrize("backend", GPU_KERNELS)
def test_nothing_is_freed_in_a_capture(played, backend):
    """The events of pinned memory would go into the graph."""
    pair = Pair(backend)
    pair.live()
    graph = pair.capture(played)
    freed = []
    weakref.finalize(pair.optimizer._plan, lambda: freed.append(played.graph is not None))
    change_the_ranks(pair)
    graph.destroy()
    pair.capture(played)
    assert freed == []
    pair.live()
    gc.collect()
    assert freed == [False]


@pytest.mark.parametrize("backend", GPU_KERNELS)
def test_where_no_graph_can_be_watched_everything_is_kept_once(played, monkeypatch, backend):
    monkeypatch.setattr(played, "watch", lambda device: runtime.Watch(0))
    pair = Pair(backend)
    pair.live()
    with played.capture():
        for _ in range(9):
            pair.optimizer.step()
    for _ in range(3):
        pair.capture(played)
        pair.live()
    assert len(pair.optimizer._captures._kept) == 1


@pytest.mark.parametrize("backend", GPU_KERNELS)
def test_what_a_graph_read_goes_with_the_optimizer(played, backend):
    pair = Pair(backend)
    pair.live()
    graph = pair.capture(played)
    plan = weakref.ref(pair.optimizer._plan)
    change_the_ranks(pair)
    gc.collect()
    assert plan() is not None
    pair.optimizer = None
    gc.collect()
    assert plan() is None
    assert graph.nodes


def test_a_load_leaves_the_graph_its_tables(played):
    pair = Pair("triton")
    pair.live()
    graph = pair.capture(played)
    plan = weakref.ref(pair.optimizer._plan)
    pair.optimizer.load_state_dict(pair.optimizer.state_dict())
    pair.live()
    gc.collect()
    assert plan() is not None
    graph.replay()


@pytest.mark.parametrize("backend", GPU_KERNELS)
@pytest.mark.parametrize("moves", [False, True])
def test_two_steps_in_one_graph(played, backend, moves):
    pair = Pair(backend)
    pair.live()
    first = [p.grad for p in pair.params]
    second = [g.clone() for g in first] if moves else first
    with played.capture() as graph:
        pair.optimizer.step()
        for p, grad in zip(pair.params, second, strict=True):
            p.grad = grad
        pair.optimizer.step()
    copies = len(graph.nodes) - 4  # two steps of two launches
    assert copies == (0 if backend == "cuda" else 1 + moves)
    for _ in range(3):
        grads = make_grads(pair.params)
        others = make_grads(pair.params) if moves else grads
        for places, values in ((first, grads), (second, others)):
            for held, value in zip(places, values, strict=True):
                held.copy_(value)
        graph.replay()
        for values in (grads, others):
            give(values, pair.twins)
            pair.twin.step()
    pair.check()


def test_gradients_that_come_back_to_their_place_need_no_other_source(played):
    pair = Pair("triton")
    pair.live()
    places = [[p.grad for p in pair.params], [torch.ones_like(p) for p in pair.params]]
    with played.capture() as graph:
        for turn in range(40):
            for p, grad in zip(pair.params, places[turn % 2], strict=True):
                p.grad = grad
            pair.optimizer.step()
    (bucket,) = pair.optimizer.describe_plan().buckets
    assert len(bucket.tables._gradients._in_graphs) == 2
    assert len(graph.nodes) == 40 * 3


def test_more_sources_than_are_ready_are_refused_in_words(played):
    pair = Pair("triton")
    pair.live()
    places = [make_grads(pair.params) for _ in range(9)]

    def step(grads):
        for p, grad in zip(pair.params, grads, strict=True):
            p.grad = grad
        pair.optimizer.step()

    with played.capture():
        for held in places[:8]:
            step(held)
        with pytest.raises(RuntimeError, match=r"No more than 8 captured steps .* run one step"):
            step(places[8])
    pair.live()
    pair.capture(played)


@pytest.mark.parametrize("backend", GPU_KERNELS)
def test_a_plan_that_must_be_built_is_refused_before_anything_is_captured(played, backend):
    pair = Pair(backend)
    give(make_grads(pair.params), pair.params)
    refused = pytest.raises(RuntimeError, match=r"take one such step outside the graph")
    with played.capture(reads=True) as graph, refused:
        pair.optimizer.step()
    assert graph.nodes == []
    assert not pair.optimizer.state
    pair.live()
    pair.optimizer.zero_grads = True
    with played.capture(reads=True) as graph, refused:
        pair.optimizer.step()
    assert graph.nodes == []
    assert steps_taken(pair.optimizer, pair.params) == {1}
    pair.optimizer.zero_grads = False
    pair.live()
    pair.check()


@pytest.mark.parametrize("backend", GPU_KERNELS)
def test_changed_hyperparameters_are_refused_before_anything_is_captured(played, backend):
    pair = Pair(backend)
    pair.live()
    pair.optimizer.param_groups[0]["lr"] = 0.5
    with (
        played.capture() as graph,
        pytest.raises(RuntimeError, match=r"refresh_hyperparameters\(\) before the capture"),
    ):
        pair.optimizer.step()
    assert graph.nodes == []
    pair.optimizer.refresh_hyperparameters()
    graph = pair.capture(played)
    pair.twin.param_groups[0]["lr"] = 0.5
    pair.replay(graph)
    pair.check()


@pytest.mark.parametrize("backend", GPU_KERNELS)
def test_tables_are_not_freed_while_another_stream_may_read_them(played, backend):
    pair = Pair(backend, clip_grad_norm=1.0)
    pair.live()
    assert played.recorded == {}
    played.current_stream = 7
    for _ in range(2):
        pair.live()
    (bucket,) = pair.optimizer.describe_plan().buckets
    tables, reduction = bucket.tables, pair.optimizer._plan._norm.reductions[bucket.tables.device]
    recorded = played.recorded.pop(7)
    assert len(recorded) == len(set(recorded))  # once
    wanted = [tables.pointers, tables.sizes, tables.groups, tables.chunks, tables.partial_rows,
              tables.scalars, tables.hyperparameters, tables.sources, reduction.partials,
              reduction.norm, reduction.nonfinite]  # fmt: skip
    assert {tensor.data_ptr() for tensor in wanted} <= set(recorded)
    assert played.recorded == {}
    played.current_stream = 8
    pair.optimizer.param_groups[0]["lr"] = 0.5
    pair.optimizer.refresh_hyperparameters()
    assert tables.hyperparameters.data_ptr() in played.recorded.pop(8)
    pair.params[2].grad = torch._efficientzerotensor((17,))  # copied: into memory that is new
    pair.optimizer.step()
    (bucket,) = pair.optimizer.describe_plan().buckets
    (buffer,) = pair.optimizer._plan._buckets[0]._copies.values()
    assert buffer.data_ptr() in played.recorded.pop(8)


@pytest.mark.parametrize("backend", GPU_KERNELS)
def test_a_plan_is_uploaded_in_one_copy(played, backend):
    pair = Pair(backend)
    for p in (pair.params[3], pair.twins[3]):
        p.data = p.data.bfloat16()  # a second bucket
    give(make_grads(pair.params), pair.params)
    pair.optimizer.step()
    assert len(pair.optimizer.describe_plan().buckets) == 2
    of_plan, *others = played.pins
    buckets = pair.optimizer.describe_plan().buckets
    assert of_plan >= sum(t.nbytes for bucket in buckets for t in bucket.tables.on_device()[:-3])
    assert len(others) == (2 if backend == "triton" else 0)  # room for addresses in graphs


@pytest.mark.parametrize("backend", GPU_KERNELS)
def test_a_step_that_was_refused_leaves_no_old_addresses_behind(played, backend):
    """What was found of the gradients at a step that raised is still to be handed over."""
    pair = Pair(backend)
    pair.live()
    pair.live()
    pair.optimizer.param_groups[0]["lr"] = "fast"
    give(make_grads(pair.params), pair.params)
    with pytest.raises(ValueError, match="one number"):
        pair.optimizer.step()
    pair.optimizer.param_groups[0]["lr"] = pair.twin.param_groups[0]["lr"]
    give([p.grad.clone() for p in pair.params], pair.twins)
    pair.optimizer.step()
    pair.twin.step()
    pair.check()


def test_a_capture_after_the_refresh_that_it_asked_for_has_the_new_addresses(played):
    pair = Pair("triton")
    pair.live()
    pair.live()
    for optimizer in (pair.optimizer, pair.twin):
        optimizer.param_groups[0]["lr"] = 0.5
    give(make_grads(pair.params), pair.params)  # in new places
    with pytest.raises(RuntimeError, match="refresh_hyperparameters"):
        pair.capture(played)
    pair.optimizer.refresh_hyperparameters()
    graph = pair.capture(played)
    pair.replay(graph)
    pair.check()
