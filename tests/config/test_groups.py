"""Which parameters decay: by words, not substrings."""

import warnings

import pytest
import torch
from torch import nn

from spectramind_fused.config.groups import assign, matches, param_groups, words
from spectramind_fused.config.schema import NO_DECAY_PATTERNS, AutoParamGroups


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LayerNorm", "layer norm"),
        ("layer_norm.weight", "layer norm weight"),
        ("ln_1.weight", "ln weight"),
        ("rmsnorm", "rms norm"),
        ("batchnorm2d", "batch norm"),
        ("BatchNorm1d.weight", "batch norm weight"),
        ("blocks.3.q_norm.weight", "blocks q norm weight"),
        ("encoder.selfAttn.MLPHead-2", "encoder self attn mlp head"),
    ],
)
def test_words(name, expected):
    assert words(name) == expected.split()


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("ln", "ln_f.weight", True),
        ("ln", "vuln_head.weight", False),
        ("norm", "q_norm.weight", True),
        ("norm", "abnormal.weight", False),
        ("LayerNorm.weight", "encoder.LayerNorm.weight", True),
        ("LayerNorm.weight", "encoder.LayerNorm.bias", False),
        ("bias", "layers.0.bias", True),
        ("bias", "unbiased.weight", False),
        ("bn", "bn1.weight", True),
        ("re:^head\\.", "head.weight", True),
        ("re:^head\\.", "overhead.weight", False),
        ("*.embed*", "model.embed_tokens.weight", True),
        ("*.embed*", "model.head.weight", False),
    ],
)
def test_patterns_match_whole_words(pattern, name, expected):
    assert matches(pattern, name) is expected


class GlobalResponseNorm(nn.Module):
    """As in ConvNeXt V2: no norm of torch's, and not named one in the model."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 3))
        self.mix = nn.Parameter(torch.zeros(3, 3))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(3, 3)
        self.strange = nn.RMSNorm(3)
        self.grn = GlobalResponseNorm()
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def test_norm_modules_count_whatever_their_name():
    config = AutoParamGroups(True, NO_DECAY_PATTERNS, 0.0)
    found = {a.name: (a.decays, a.why) for a in assign(Model(), config)}
    assert found == {
        "proj.weight": (True, "no pattern matches"),
        "proj.bias": (False, "pattern 'bias'"),
        "strange.weight": (False, "in a RMSNorm"),
        "grn.weight": (False, "in a GlobalResponseNorm"),
        "grn.mix": (True, "no pattern matches"),
    }


def test_groups_hold_named_parameters_and_their_decay():
    config = AutoParamGroups(True, NO_DECAY_PATTERNS, 0.001)
    decay, exempt = param_groups(assign(Model(), config), config, 0.1)
    assert [name for name, _ in decay["params"]] == ["proj.weight", "grn.mix"]
    assert decay["weight_decay"] == 0.1
    assert [name for name, _ in exempt["params"]] == ["proj.bias", "strange.weight", "grn.weight"]
    assert exempt["weight_decay"] == 0.001


def test_an_idle_pattern_of_the_users_own_and_an_empty_group_are_warned_of():
    config = AutoParamGroups(True, (*NO_DECAY_PATTERNS, "embed"), 0.0)
    with pytest.warns(UserWarning, match="'embed' matched no parameter"):
        param_groups(assign(Model(), config), config, 0.1)
    config = AutoParamGroups(True, NO_DECAY_PATTERNS, 0.0)
    with pytest.warns(UserWarning, match="group no_decay is empty"):
        param_groups(assign(nn.Linear(3, 3, bias=False), config), config, 0.1)


def test_switched_off_there_is_one_group_and_no_warning():
    config = AutoParamGroups(False, ("nothing",), 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (group,) = param_groups(assign(Model(), config), config, 0.1)
    assert len(group["params"]) == 5
