"""Started by torchrun: fails if a run leaves a thread of its process group, which can abort the exit."""

import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from harness import parse

if __name__ == "__main__":
    module = importlib.import_module(sys.argv[1])
    module.train(parse(*sys.argv[1:]))
    left = [Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")]
    sys.exit(f"threads {left}" if any("gloo" in name for name in left) else 0)
