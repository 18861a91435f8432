"""Everything that is stored in fewer bits, bit for bit: rules, dtypes, storages, epilogues.

Every pair of choices is in a combination that always runs; `make soak` runs all of them.
"""

import pytest
import torch

from spectramind_fused import FusedAdamW
from tests import draws
from tests.asserts import assert_equal
from tests.combinations import pairwise
from tests.inputs import make_grads, set_grads
from tests.oracle import RICHEST
from tests.pairs import BesideReference

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),  # of the oracle
]
EPILOGUES = {
    "plain": {},
    "lookahead": {"lookahead_k": 2, "lookahead_alpha": 0.8},
    "average": {"ema_decay": 0.9},
    "low-average": {"ema_decay": 0.9, "ema_dtype": "bfloat16", "zero_grads": True},
    "all": {
        "lookahead_k": 2,
        "ema_decay": 0.9,
        "ema_dtype": torch.bfloat16,
        "clip_grad_norm": 1.0,
        "zero_grads": True,
    },
}
CHOICES = {
    "kind": list(RICHEST),
    "dtype": [torch.float32, torch.bfloat16, torch.float16],
    "state_dtype": [None, "float32", "bfloat16", "int8"],
    "master_weights": [None, "split", "float32"],
    "stochastic_rounding": [False, True],
    "epilogue": list(EPILOGUES),
}


def possible(chosen):
    """What the classes do not refuse, and what is not as the first stage has it."""
    dtype, master, state = chosen["dtype"], chosen["master_weights"], chosen["state_dtype"]
    if master == "split" and dtype != torch.bfloat16:
        return False
    if master and dtype == torch.float32:
        return False
    if state in ("bfloat16", "int8") and chosen["kind"] in (
        "RMSprop",
        "ASGD",
        "Rprop",
        "Adafactor",
    ):
        return False  # of RMSprop the richest is centered
    return bool(master or state or chosen["stochastic_rounding"])


PICKED, EVERY = pairwise(CHOICES, possible)


def name_of(chosen):
    return "-".join(str(value).removeprefix("torch.") for value in chosen.values())


def tails(dtype):
    """Around groups, blocks and pieces; views that begin anywhere; a matrix in columns."""
    sizes = (0, 1, 7, 31, 32, 33, 511, 513, 1025, 8191, 8193, 16384 + 40)
    params = [torch.randn(size).to(dtype) for size in sizes]
    for offset in (1, 3):
        params.append(torch.randn(1100 + offset).to(dtype)[offset:])
    params.append(torch.randn(33, 40).to(dtype).t())
    return [p.requires_grad_() for p in params]


def check(backend, chosen, steps=3):
    chosen = dict(chosen)
    kind, dtype, epilogue = (chosen.pop(name) for name in ("kind", "dtype", "epilogue"))
    options = {**RICHEST[kind], **chosen, **EPILOGUES[epilogue], "low_precision_min_size": 20}
    both = BesideReference(kind, tails(dtype), backend, seed=5 << 33, **options)
    for _ in range(steps):
        grads = make_grads(both.params)
        with torch.no_grad():
            for i, value in enumerate((float("inf"), float("nan"), 1e-30, -1e-41, 3e38)):
                grads[-2][3 + i] = 0 if options.get("clip_grad_norm") else value
                grads[-4][3 + 40 * i] = 1e-30 * i
        both.step(grads)
        both.check()


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("chosen", PICKED, ids=name_of)
def test_every_pair_of_choices_is_bit_for_bit(gpu, backend, chosen):
    check(backend, chosen)


@pytest.mark.random
@pytest.mark.parametrize("backend", ["cpu", "cuda", "triton"])
@pytest.mark.parametrize("chosen", EVERY if draws.rounds else EVERY[:1], ids=name_of)
def test_every_combination_is_bit_for_bit(gpu, backend, chosen):
    """All of them in `make soak`, in which Triton compiles for half an hour."""
    check(backend, chosen, steps=2)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize(
    ("dtype", "options", "read", "written"),
    [
        (torch.bfloat16, {"stochastic_rounding": True}, 8, 6),
        (torch.float32, {"state_dtype": "bfloat16"}, 12, 8),
        (torch.float32, {"state_dtype": "int8"}, 10, 6),
        (torch.bfloat16, {"stochastic_rounding": True, "state_dtype": "int8"}, 6, 4),
        # A split parameter is read once more, from the cache, for its checksum.
        (torch.bfloat16, {"master_weights": "split"}, 14 + 2, 12),
        (torch.bfloat16, {"master_weights": "split", "state_dtype": "bfloat16"}, 10 + 2, 8),
        (torch.bfloat16, {"master_weights": "split", "state_dtype": "int8"}, 8 + 2, 6),
        (torch.bfloat16, {"master_weights": "float32"}, 16, 14),
    ],
    ids=str,
)
def test_traffic_is_what_the_formula_says(gpu, backend, dtype, options, read, written):
    """Bytes per parameter, but for scales and checksums, of which there is one in many elements."""
    params = [torch.randn(size).to(dtype).requires_grad_() for size in (5, 1056, 9000)]
    optimizer = FusedAdamW(params, backend=backend, low_precision_min_size=0, **options)
    for _ in range(2):
        set_grads(params, make_grads(params))
        optimizer.step()
    update, count = gpu.launches[-1].traffic, sum(p.numel() for p in params)
    entries = [(k, v) for p in params for k, v in optimizer.state[p].items() if k != "step"]
    few = [v for k, v in entries if k.endswith(("_scales", "_checksums"))]
    many = [v for k, v in entries if not k.endswith(("_scales", "_checksums"))]
    grads = [p.grad for p in params]
    assert sum(map(update.loaded, [*params, *grads, *many])) == read * count
    assert sum(map(update.stored, [*params, *many])) == written * count
    assert sum(map(update.stored, few)) == sum(t.nbytes for t in few)


@pytest.mark.full
@pytest.mark.parametrize("backend", ["cpu", "cuda", "triton"])
def test_a_split_parameter_is_a_float32_one_over_a_thousand_steps(gpu, backend):
    torch.manual_seed(0)
    held = [torch.randn(size).bfloat16().requires_grad_() for size in (70, 600)]
    wide = [p.detach().float().requires_grad_() for p in held]
    ours = FusedAdamW(held, lr=1e-3, backend=backend, master_weights="split")
    single = FusedAdamW(wide, lr=1e-3, backend=backend)
    for _ in range(1000):
        grads = make_grads(held)
        set_grads(held, grads)
        set_grads(wide, [g.float() for g in grads])
        ours.step()
        single.step()
    full = ours.full_precision_state_dict()["state"]
    assert_equal([full[i]["master_weights"] for i in range(2)], wide)
