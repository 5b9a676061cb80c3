"""Environment steps per second by the number of environments, with one process and with two under torchrun.

    python benchmarks/speed/scaling.py
    python benchmarks/speed/scaling.py --scripts ppo a2c

Each point is a whole run by the command line, alone, with one thread a process; the rate is that of its last line. The
off-policy scripts make one update of 256 transitions for each vector step, whatever the number of environments.
"""

import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

COLUMNS = ("script", "environments", "processes", "flags", "steps_per_second", *common.PROVENANCE)
ENVIRONMENTS, PROCESSES = (1, 16, 256), (1, 2)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
PATH = common.RESULTS / "scaling.csv"


def on_policy(n, p):
    return f"--total-timesteps {max(20_000, 1000 * n * p)}"


def off_policy(n, p):
    return f"--env-id Pendulum-v1 --utd {1 / (n * p)} --learning-starts {n * p} --total-timesteps {1001 * n * p}"


SCRIPTS = dict.fromkeys(("reinforce", "reinforce_baseline", "a2c", "trpo", "ppo"), on_policy)
SCRIPTS |= dict.fromkeys(("ddpg", "td3", "sac"), off_policy)


@dataclass
class Args:
    scripts: tuple[str, ...] = tuple(SCRIPTS)  # their rows are replaced
    draw: bool = False  # write the table from the rows, and run nothing


def run(script, n, p):
    """One point -> its row."""
    flags = f"--num-envs {n} {SCRIPTS[script](n, p)} --checkpoint-every 1000000000 --eval-episodes 1"
    launcher = TORCHRUN if p > 1 else ()
    command = [sys.executable, *launcher, str(common.ROOT / f"{script}.py"), *shlex.split(flags)]
    with tempfile.TemporaryDirectory() as folder:
        process = common.start(command, folder, cores=p)
        if process.wait():
            common.fail(f"{script}.py {flags}: {common.last_line(folder, 'stderr')}", status=1)
        result = common.parse_last_line(common.last_line(folder, "stdout"))
    row = {"script": script, "environments": n, "processes": p, "flags": flags}
    return row | {"steps_per_second": result["steps_per_second"]} | common.provenance()


def table(rows):
    rate = {(x["script"], int(x["environments"]), int(x["processes"])): float(x["steps_per_second"]) for x in rows}
    points = [(n, p) for n in ENVIRONMENTS for p in PROCESSES]
    header = ("script", *(f"{n} in {p} process{'es'[: 2 * p - 2]}" for n, p in points))
    return common.markdown(header, [[f"`{x}.py`", *(f"{rate[x, *point]:,.0f}" for point in points)] for x in SCRIPTS])


def main():
    args = common.parse_args(Args, __doc__, sys.argv[1:])
    rows = common.open_rows(PATH, COLUMNS)
    if not args.draw:
        points = [(script, n, p) for script in args.scripts for n in ENVIRONMENTS for p in PROCESSES]
        new = [run(*point) for point in tqdm(points, unit="run")]
        rows = [row for row in rows if row["script"] not in args.scripts] + new
        common.replace_rows(PATH, COLUMNS, rows)
    common.write_table(common.ROOT / "docs" / "scaling.md", "scaling", table(rows))


if __name__ == "__main__":
    main()
