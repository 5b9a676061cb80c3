"""The curve of one run as a table: a row for each evaluation, with the latest log before it.

python benchmarks/curve.py runs/HalfCheetah-v5__sac__1__1790000000 --out benchmarks/results/curve.csv
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import common
import torch
import tyro

TAGS = ("charts/eval_return", "charts/episodic_return", "losses/qf_values", "losses/alpha")
COLUMNS = ("script", "script_sha256", "flags", "steps", *TAGS, "seconds", *common.PROVENANCE)


@dataclass
class Args:
    run: tyro.conf.Positional[Path]  # its folder
    out: Path  # table to write; it must not be there


def main():
    args = common.parse_args(Args, __doc__, sys.argv[1:])
    if not (args.run / "checkpoint.pt").is_file() or args.out.exists():
        common.fail(f"{args.run} is no run's folder, or {args.out} is there")
    saved = torch.load(args.run / "checkpoint.pt", weights_only=True)
    script = common.ROOT / f"{saved['script']}.py"
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in saved["args"].items() if value != ""]
    known = {"script": script.name, "script_sha256": common.contents_sha256(script)}
    known |= {"flags": shlex.join(flags)} | common.provenance()
    clock = common.read_clock(args.run)
    evaluations, *others = common.read_scalars(args.run, *TAGS)
    rows = []
    for step, value in sorted(evaluations.items()):
        latest = [max((other for other in curve if other <= step), default=None) for curve in (*others, clock)]
        values = [curve.get(at, "") for curve, at in zip((*others, clock), latest, strict=True)]
        rows.append(known | dict(zip(COLUMNS[3:9], (step, value, *values), strict=True)))
    common.append_rows(args.out, COLUMNS, rows)
    print(f"{len(rows)} rows | {args.out}")


if __name__ == "__main__":
    main()
