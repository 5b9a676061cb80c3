"""Microseconds of a layer's matrix products by either library that torch has for them, MKL and oneDNN, in float32.

    python benchmarks/products.py

A layer of as many units as inputs makes three products in an update: x W + b, and those of its gradient by x and by W.
They are timed together, by one library and the other in turn, for each number of rows, width and threads. On processors
with AMX oneDNN would multiply in bfloat16; there nothing is measured.
"""

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import common
import torch

PRECISIONS = {"mkl": "highest", "onednn": "medium"}  # as torch calls what makes it take the one or the other
COLUMNS = ("threads", "rows", "width", "mkl_us", "onednn_us", "ratio", *common.PROVENANCE)


@dataclass
class Args:
    threads: tuple[int, ...] = (1, 2)  # torch's threads
    rows: tuple[int, ...] = (1, 8, 64, 256, 1024)  # observations in a batch
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)  # units of the layer
    rounds: int = 15  # turns of the two libraries; the numbers are medians over these
    out: Path = Path("benchmarks/results/products.csv")  # table; a run replaces it


def layer(rows, width):
    """A function that makes the products of one layer for a batch of so many rows."""
    x, slope, weight, bias = (torch.randn(shape) for shape in ((rows, width), (rows, width), (width, width), (width,)))

    def multiply():
        torch.addmm(bias, x, weight.T)
        torch.mm(slope, weight)
        torch.mm(slope.T, x)

    return multiply


def microseconds(multiply, precision, repeats):
    """Mean over repeated calls by the library that a precision stands for."""
    torch.set_float32_matmul_precision(precision)
    multiply()
    began = common.seconds()
    for _ in range(repeats):
        multiply()
    return (common.seconds() - began) / repeats * 1e6


def measure(rows, width, rounds):
    """Medians over rounds of both libraries, and of MKL / oneDNN round by round."""
    multiply, repeats = layer(rows, width), max(5, round(5e8 / (rows * width**2 + 1e6)))
    times = [[microseconds(multiply, name, repeats) for name in PRECISIONS.values()] for _ in range(rounds)]
    mkl, onednn = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(one / other for one, other in times)
    return {"mkl_us": f"{mkl:.1f}", "onednn_us": f"{onednn:.1f}", "ratio": f"{ratio:.2f}"}


def table(rows):
    """The ratios as text: a line for each number of rows, a column for each width and number of threads."""
    kinds = sorted({(int(row["threads"]), int(row["width"])) for row in rows})
    lines = ["| rows | " + " | ".join(f"{width} units, {threads} thr." for threads, width in kinds) + " |"]
    lines.append("|" + "---|" * (len(kinds) + 1))
    for size in sorted({int(row["rows"]) for row in rows}):
        mine = {(int(row["threads"]), int(row["width"])): row["ratio"] for row in rows if int(row["rows"]) == size}
        lines.append(f"| {size:,} | " + " | ".join(mine.get(kind, "") for kind in kinds) + " |")
    return "\n".join(lines)


def main():
    """Measure all sizes, write the table, and print how many times as long MKL takes."""
    args = common.parse_args(Args, __doc__, sys.argv[1:])
    if min(*args.threads, *args.rows, *args.widths, args.rounds) < 1:
        common.fail("--threads, --rows, --widths and --rounds must be 1 or more")
    if torch.cpu.get_capabilities().get("amx_tile"):
        common.fail("this processor has AMX, by which oneDNN multiplies in bfloat16: that is no product of float32")
    common.open_rows(args.out, COLUMNS)
    rows, origin = [], common.provenance()
    for threads in args.threads:
        torch.set_num_threads(threads)
        for size in args.rows:
            for width in args.widths:
                first = {"threads": threads, "rows": size, "width": width}
                rows.append(first | measure(size, width, args.rounds) | origin)
    common.replace_rows(args.out, COLUMNS, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
