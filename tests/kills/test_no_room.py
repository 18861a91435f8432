"""A disk that is full from some moment on: one sentence, the old files whole, and no part is left.

A quota that is used up and a disk that breaks are the same with another error. The run then goes on
from what is there, to the end that it would have come to.
"""

import errno
import os

import pytest

from tests import draws
from tests.kills import moments
from tests.kills.test_kill_anywhere import KINDS, TINY, assert_same_end, end_of, whole_files

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, moments.of_whole(folder, *TINY, *KINDS["adamw"])


@pytest.mark.random
@pytest.mark.parametrize("count", [4, pytest.param(12, marks=pytest.mark.full)])
def test_a_disk_that_is_full_at_any_moment_ends_a_run_in_a_sentence(
    undisturbed, count, tmp_path, record_property
):
    if draws.rounds and count == 4:
        pytest.skip("the other one takes more of them")
    whole, seen = undisturbed
    words = [*TINY, *KINDS["adamw"]]
    expected = end_of(whole / "run", "adamw")
    every = [m for m in moments.with_torn(seen) if m.what not in ("step", "remove")]
    taken = moments.spread(every, 60 if draws.rounds else count)
    for i, moment in enumerate(taken):
        number = ERRORS[i % len(ERRORS)]
        folder = tmp_path / str(i)
        folder.mkdir()
        ended, _ = moments.run(folder, *words, at=moment, error=number)
        said = ended.stderr.splitlines()
        assert "Traceback" not in ended.stderr, f"{moment}\n{ended.stderr}"
        if ended.returncode:
            assert ended.returncode == 1, f"{moment}\n{ended.stderr}"
            assert said[-1].startswith("spectramind: the run ended: "), f"{moment}\n{ended.stderr}"
            assert said.pop().endswith(f": {os.strerror(number)}."), f"{moment}\n{ended.stderr}"
        assert all(line.startswith("warning: ") for line in said), f"{moment}\n{ended.stderr}"
        assert ended.returncode or said, f"{moment}: nothing was said"
        whole_files(folder)
        assert [p.name for p in folder.rglob("*.part")] == [], moment
        checkpoint = folder / "run" / "checkpoint.pt"
        resume = [f"training.resume={checkpoint}"] if checkpoint.exists() else []
        ended, _ = moments.run(folder, *words, *resume)
        assert ended.returncode == 0, f"{moment}\n{ended.stderr}"
        assert_same_end(folder, "adamw", expected, moment)
    record_property(
        "summary", f"{len(every)} moments at which a disk may be full, {len(taken)} of them tried"
    )
