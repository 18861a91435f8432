"""The README's first snippet runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path


def test_the_first_snippet_runs_and_prints_what_it_says(tmp_path):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", readme, re.DOTALL).group(1)
    run = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    norm, backends = run.stdout.splitlines()
    assert re.fullmatch(r"tensor\(\d+\.\d+\)", norm)
    assert backends == "{'cpu': 'cpu'}"
