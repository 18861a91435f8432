import sys
from pathlib import Path

from benchmarks.gpu.findings import Findings

Findings(Path(sys.argv[1])).set(found=1)
