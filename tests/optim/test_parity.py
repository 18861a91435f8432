"""Every rule, option, dtype and backend against torch.optim and against elementary torch."""

import pytest
import torch

from tests.asserts import TORCHS_ULPS, Magnitudes, assert_equal, assert_within_ulps
from tests.backends import BACKENDS, GPU_KERNELS
from tests.inputs import awkward_shapes, clones, make_grads, make_params, set_grads
from tests.oracle import CLASSES, NUMBERS, VARIANTS, Reference, name_of, torchs_options
from tests.pairs import steps_taken

STEPS = 20
HALF = (torch.bfloat16, torch.float16)
ON = [
    *[("cpu", d) for d in (torch.float32, torch.float64, *HALF)],
    *[(name, torch.float32) for name in GPU_KERNELS],
    # `tests/compiled` has them for fewer steps.
    *[pytest.param(name, d, marks=pytest.mark.full) for name in GPU_KERNELS for d in HALF],
]


MATRICES = [(5, 3), (70, 40), (1, 9), (9, 1), (2, 3, 4, 5), (40, 3, 1, 1)]


def shapes_for(backend, kind):
    # The interpreter takes a third of a second for the long one: it is tested on its own.
    shapes = [s for s in awkward_shapes() if backend == "cpu" or s != (100003,)]
    if kind == "Adafactor":
        # Torch divides by the number of elements, and its norm of many is 100 ulp off.
        return MATRICES + [s for s in shapes if s not in ((0,), (100003,))]
    return shapes


@torch.no_grad()
def round_in_place(optimizer, dtype):
    for p in optimizer.param_groups[0]["params"]:
        p.copy_(p.to(dtype))
    for state in optimizer.state.values():
        for key, value in state.items():
            if key not in NUMBERS:
                value.copy_(value.to(dtype))


@pytest.mark.parametrize(("backend", "dtype"), [*ON, ("eager", torch.float32)])
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_equals_elementary_torch_bit_for_bit_and_torch_optim_within_a_few_ulp(
    variant, backend, dtype
):
    kind, options = variant
    params = make_params(shapes_for(backend, kind), dtype)
    twins = clones(params)
    # torch's own 16-bit steps round after every operation, or (fused SGD of torch 2.13 on a
    # CPU) do not move the parameters at all: there torch steps in float32 and is rounded once.
    wide = torch.float32 if dtype in HALF else dtype
    torchs = [p.detach().to(wide).requires_grad_() for p in clones(params)]
    optimizer = CLASSES[kind][0](params, backend=backend, **options)
    reference = Reference(kind, twins, **options)
    foreach = None if backend == "eager" else False  # on a GPU torch's default steps otherwise
    theirs = CLASSES[kind][1](torchs, foreach=foreach, **torchs_options(kind, options, dtype))
    sizes, state_sizes = Magnitudes(), {}
    for _ in range(STEPS):
        grads = make_grads(params)
        set_grads(params, grads)
        set_grads(twins, grads)
        set_grads(torchs, [g.to(wide) for g in grads])
        optimizer.step()
        reference.step()
        theirs.step()
        if dtype in HALF:
            round_in_place(theirs, dtype)
        assert_equal([p.grad for p in params], grads)  # nobody may write into .grad
        sizes.see(torchs)
        for key in {key for p in torchs for key in theirs.state[p]}:
            seen = state_sizes.setdefault(key, Magnitudes())
            seen.see([theirs.state[p][key] for p in torchs if key in theirs.state[p]])

    # Of 16-bit values the differences tip a rounding now and then, in 20 steps a few times for
    # the same element.
    ulps = 0 if backend == "eager" and kind != "Lion" else 4 if dtype in HALF else TORCHS_ULPS
    assert_within_ulps(params, torchs, sizes.largest, ulps)
    for key, seen in state_sizes.items():
        actual = [optimizer.state[p][key] for p in params if key in optimizer.state[p]]
        expected = [theirs.state[p][key] for p in torchs if key in theirs.state[p]]
        assert_within_ulps(actual, expected, seen.largest, ulps)
    assert steps_taken(optimizer, params) <= {STEPS}
    for p, wanted in zip(params, reference.states, strict=True):
        for key in wanted:
            kept = torch.float32 if key in NUMBERS else dtype
            assert optimizer.state[p][key].dtype == kept
            if backend != "eager":
                assert_equal([optimizer.state[p][key]], [wanted[key]])
    if backend != "eager":
        assert_equal(params, twins)


@pytest.mark.parametrize("backend", GPU_KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_of_many_chunks_is_walked(dtype, backend):
    params = make_params([(100003,)], dtype)
    expected = clones(params)
    optimizer = CLASSES["AdamW"][0](params, backend=backend)
    reference = Reference("AdamW", expected)
    for _ in range(3):
        grads = make_grads(params)
        set_grads(params, grads)
        set_grads(expected, grads)
        optimizer.step()
        reference.step()
    assert_equal(params, expected)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
def test_eager_rounds_16_bit_values_once_like_the_kernels(variant, dtype):
    kind, options = variant
    params = make_params(shapes_for("cpu", kind), dtype)
    expected = clones(params)
    eager = CLASSES[kind][0](params, backend="eager", **options)
    kernels = CLASSES[kind][0](expected, **options)
    sizes = Magnitudes()
    for _ in range(STEPS):
        grads = make_grads(params)
        set_grads(params, grads)
        set_grads(expected, grads)
        eager.step()
        kernels.step()
        sizes.see(expected)
    assert_within_ulps(params, expected, sizes.largest, 4)
    for p in params:
        for key, value in eager.state[p].items():
            assert value.dtype == (torch.float32 if key in NUMBERS else dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_with_their_own_hyperparameters_share_the_launches(backend):
    shapes = [(17,), (1025,), (3,)]
    options = [
        {"lr": 1e-3 * (i + 1), "betas": (0.8 + 0.02 * i, 0.99), "weight_decay": 0.1 * i}
        for i in range(5)
    ]
    options[3]["maximize"] = True
    groups = [make_params(shapes) for _ in options]
    twins = [clones(group) for group in groups]
    ours = CLASSES["AdamW"][0](
        [{"params": g, **o} for g, o in zip(groups, options, strict=True)], backend=backend
    )
    references = [Reference("AdamW", t, **o) for t, o in zip(twins, options, strict=True)]
    sizes = [Magnitudes() for _ in options]
    for _ in range(5):
        for group, twin, reference in zip(groups, twins, references, strict=True):
            grads = make_grads(group)
            set_grads(group, grads)
            set_grads(twin, grads)
            reference.step()
            reference.options["lr"] *= 0.9
        for seen, twin in zip(sizes, twins, strict=True):
            seen.see(twin)
        ours.step()
        for group in ours.param_groups:  # as a scheduler does
            group["lr"] *= 0.9
    for group, twin, seen in zip(groups, twins, sizes, strict=True):
        if backend == "eager":
            assert_within_ulps(group, twin, seen.largest, TORCHS_ULPS)
        else:
            assert_equal(group, twin)
    if backend != "eager":
        assert len(ours.describe_plan().buckets) == 1
