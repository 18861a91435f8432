"""One process of a run is killed: the others end in a sentence, and the run goes on as it was."""

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from tests.command_line import COLD, MODULE, spectramind
from tests.kills import moments
from tests.kills.test_kill_anywhere import KINDS, TINY, assert_same_end, end_of
from tests.training.test_processes import TORCHRUN

WORDS = [*TINY, *KINDS["adamw"], "training.batch_size=240"]
LOST = (
    "spectramind: the run ended: its process {} lost the connection to another one. "
    "training.resume goes on from its last checkpoint.\n"
)
BOUND = 60  # seconds, on a machine that has much else to do


def together(folder, count, *words, victim=None, **killed):
    """Starts a run's processes as torchrun does, but none of them ends the others.

    Args:
        folder: where.
        count: how many.
        *words: as typed.
        victim: which one is killed.
        **killed: when, as moments.cpp reads it.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "TORCHELASTIC_RUN_ID": "kills", "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0", "SPECTRAMIND_TEST_HOOK": "tests.kills.hook",
    }  # fmt: skip

    def start(rank):
        more = {"RANK": str(rank), "LOCAL_RANK": str(rank)} | (killed if rank == victim else {})
        return spectramind(folder, *words, preloaded=moments.shim(), **shared, **more)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


def at_step(folder, number):
    return {"SPECTRAMIND_KILL_FOLDER": f"{folder}/nothing", "SPECTRAMIND_KILL_AT": str(number),
            "SPECTRAMIND_KILL_LOG": f"{folder}.moments"}  # fmt: skip


def in_a_message(folder, number):
    """In the middle of what it sends to another process."""
    return at_step(folder, number) | {"SPECTRAMIND_KILL_FOLDER": "socket:",
                                      "SPECTRAMIND_KILL_TORN": "1"}  # fmt: skip


@pytest.mark.parametrize(
    ("count", "victim", "when"),
    [
        (3, 1, lambda folder: in_a_message(folder, 300)),
        pytest.param(2, 0, lambda folder: at_step(folder, 9), marks=pytest.mark.full),
        pytest.param(2, 1, lambda folder: at_step(folder, 2), marks=pytest.mark.full),
        pytest.param(3, 0, lambda folder: in_a_message(folder, 330), marks=pytest.mark.full),
    ],
)
def test_the_others_say_so_and_the_run_goes_on_to_the_same_end(count, victim, when, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    for run in together(whole, count, *WORDS):
        assert run.returncode == 0, run.stderr

    began = time.monotonic()
    for rank, run in enumerate(together(cut, count, *WORDS, victim=victim, **when(cut))):
        if rank == victim:
            assert run.returncode == 128 + 9, run.stderr
        else:
            assert run.returncode == 1, run.stderr
            assert run.stderr.endswith(LOST.format(rank))
            assert "Traceback" not in run.stderr
    assert time.monotonic() - began < BOUND

    checkpoint = cut / "run" / "checkpoint.pt"
    resume = [f"training.resume={checkpoint}"] if checkpoint.exists() else []
    for run in together(cut, count, *WORDS, *resume):
        assert run.returncode == 0, run.stderr
    assert_same_end(cut, "adamw", end_of(whole / "run", "adamw"), f"process {victim} was killed")


@pytest.mark.full
@pytest.mark.parametrize("started_by", ["fabric", "torchrun"])
@pytest.mark.parametrize("victim", ["first", "last", "starter"])
def test_nobody_trains_on_alone(started_by, victim, tmp_path):
    """As a run is really started: by a program that watches over its processes."""
    words = [*WORDS, "training.epochs=100000"]
    if started_by == "fabric":
        command = [*MODULE, *words, "training.devices=2"]
    else:
        command = [*TORCHRUN, "-m", "spectramind_fused", *words]
    starter = subprocess.Popen(
        command, cwd=tmp_path, env=COLD, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for line in starter.stdout:
        if line.startswith("epoch   2/"):
            break
    ranks = ranks_of(starter.pid)
    assert len(ranks) == 2
    os.kill({"first": ranks[0], "last": ranks[1], "starter": starter.pid}[victim], signal.SIGKILL)
    _, told = starter.communicate(timeout=BOUND)  # until the last of them closes its end
    if victim == "starter":
        gone = "spectramind: the run ended: the process that started it was killed.\n"
        assert told.count(gone) == 2
    else:
        assert starter.returncode == 1
        assert "SIGKILL" in told  # torchrun says so in its own words
    if victim != "starter" and started_by == "fabric":
        number = 0 if victim == "first" else 1
        assert f"the run ended: its process {number} was killed (SIGKILL)." in told
        assert "Traceback" not in told
    ends = time.monotonic() + BOUND
    while any(map(running, ranks)):
        assert time.monotonic() < ends
        time.sleep(0.1)
    assert (tmp_path / "run" / "checkpoint.pt").is_file()


def ranks_of(starter):
    """The processes of a run, in the order of their ranks."""
    children = Path(f"/proc/{starter}/task/{starter}/children").read_text().split()
    names = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    return sorted(pid for pid, name in names.items() if "resource_tracker" not in name)


def running(process):
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
