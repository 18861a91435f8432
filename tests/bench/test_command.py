"""`spectramind bench`, as typed."""

import pytest

from tests.command_line import spectramind


def bench(*words, cwd):
    return spectramind(cwd, "bench", *words)


def test_it_answers_what_a_model_would_gain(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Sequential("
        "*[torch.nn.Linear(8, 8) for _ in range(110)])\n"
    )
    words = ["--model", "mine:build", "--samples", "2", "--csv", "seen.csv", "--compiled"]
    run = bench(*words, "--program", "step", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "mine:build: 220 tensors" in run.stdout
    assert "torch, foreach" in run.stdout
    assert "you would gain" in run.stdout or "you would lose" in run.stdout
    assert "without torch, foreach compiled: torch.compile takes minutes" in run.stdout
    assert "mine:build" in (tmp_path / "seen.csv").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nowhere"], "spectramind bench: --model 'nowhere': give module:function"),
        (["--shapes", "absent.txt"], "No such file"),
        (["--samples", "0"], "'0' is no number above 0"),
        (["--optimizer", "adamw"], "invalid choice: 'adamw'"),
        (["--device", "cuda:9"], "--device cuda:9 cannot be used here"),
        (["--model", "a:b", "--shapes", "c"], "not allowed with argument"),
    ],
)
def test_bad_input_is_one_sentence(words, message, tmp_path):
    run = bench(*words, cwd=tmp_path)
    assert run.returncode == 2
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []
