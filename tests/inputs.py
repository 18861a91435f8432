"""Parameters and gradients: awkward shapes, layouts that are dense and no plain rows."""

import torch


def awkward_shapes():
    return [(), (0,), (1,), (17,), (1023,), (1025,), (100003,), *[(i % 7 + 1,) for i in range(30)]]


def for_kind(shapes, kind):
    """The shapes that torch's class takes: its Adafactor divides by the number of elements."""
    return [shape for shape in shapes if kind != "Adafactor" or 0 not in shape]


def make_params(shapes, dtype=torch.float32):
    """Parameters of the shapes, and three in layouts that are dense but not contiguous."""
    params = [torch.randn(shape) for shape in shapes]
    params.append(torch.randn(33, 17).t())
    params.append(torch.randn(3, 5, 7, 2).to(memory_format=torch.channels_last))
    params.append(torch.randn(2100)[3:2053])  # starts at an address of 4-byte alignment
    moved = [p.to(dtype) for p in params[:-1]]
    base = params[-1].to(dtype)
    moved.append(torch.cat([base.new_zeros(3), base])[3:])
    return [p.requires_grad_() for p in moved]


def clones(params):
    """Copies with the same strides, alignment aside."""
    return [p.detach().clone(memory_format=torch.preserve_format).requires_grad_() for p in params]


def make_grads(params):
    return [torch.randn_like(p) * (1 + i % 3) for i, p in enumerate(params)]


def set_grads(params, grads):
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()


def give(grads, *lists):
    """Gives each list of parameters its own copy of the gradients."""
    for params in lists:
        set_grads(params, [g.to(p.dtype) for g, p in zip(grads, params, strict=True)])
