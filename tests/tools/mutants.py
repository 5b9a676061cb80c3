"""Break the scripts in one place at a time, and see whether a test fails.

    python tests/tools/mutants.py --jobs 2
    python tests/tools/mutants.py --only sac --match squash
    python tests/tools/mutants.py --list

A mutant is a copy of this repository in which one script has one change. It is killed if a test of tests/math fails,
or a test of tests/runs that has the script's name. Most changes are made by rule: in each function of FUNCTIONS a sign
is flipped, a term is dropped, a minimum becomes a maximum, a statement is removed. A line that several scripts share is
changed in one of them; they take turns. Each line has one change, or with --every all. Below the rule, the changes are
those of TEXTS.

The table of all mutants goes to --out. The exit status is 1 if fewer than 95 % were killed.
"""

import ast
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("reinforce", "reinforce_baseline", "a2c", "a3c", "trpo", "ppo", "ppo_atari", "ddpg", "td3", "sac")
FUNCTIONS = """
    make_vec Agent.value Agent.features Agent.log_prob Agent.act Agent.sample RunningNorm.update RunningNorm.forward
    RunningNorm.scale ReplayBuffer.add ReplayBuffer.sample returns_to_go gae policy_loss value_loss loss q_value
    smooth q_target critic_loss actor_loss alpha_loss squash critic_objective actor_objective polyak_update work learn
    surrogate kl fisher_vector_product conjugate_gradient line_search update_policy"""
OWN = {"a3c": "work learn", "ppo_atari": "make_vec Agent.features"}  # of these scripts only these functions
RENAMED = {"amin": "amax", "minimum": "maximum", "argmax": "argmin", "sum": "mean", "mean": "sum"}
DROPPED = ("detach", "clamp", "exp", "tanh", "abs")  # x.clamp(...) becomes x
SIGNS = {ast.Add: ("+", "-"), ast.Sub: ("-", "+")}
SMALL = (1e-8, 1e-4)  # these are only there against division by 0
KEPT = ("require", "ReplayBuffer", "start", "Adam", "wait")  # calls that are left as they are
PLUMBING = ("ppo", "td3")  # these two take turns for TEXTS
# Below the rule: description, a text that occurs once, what it becomes
TEXTS = [
    ("evaluate: later episodes count", "np.where(done, 0, reward)", "reward"),
    ("evaluate: actions are sampled", "device=device), greedy=True)", "device=device))"),
    ("evaluate: a truncated episode goes on", "done |= terminated | truncated", "done |= terminated"),
    ("evaluate: another seed", "envs.reset(seed=args.seed % 2**30)", "envs.reset(seed=7 + args.seed % 2**30)"),
    ("evaluate: it never ends", "while not done.all() and step < 30_000", "while not done.all()"),
    ("evaluate: cut episodes are not named", "if not done.all():", "if False:"),
    ("rank_mean: a sum", "dist.ReduceOp.AVG", "dist.ReduceOp.SUM"),
    ("backward: each process has its own gradient", "    rank_mean(*[p.grad", "    list([p.grad"),
    ("seeds: the same in every process", "[self.args.seed, self.step, self.rank]", "[self.args.seed, self.step]"),
    ("seeds: the same after a checkpoint", "[self.args.seed, self.step, self.rank]", "[self.args.seed, self.rank]"),
    ("seeds: always the same", "[self.args.seed, self.step, self.rank]", "[self.step, self.rank]"),
    ("seeds: torch is not seeded", "(random.seed, np.random.seed, torch.manual_seed)", "(random.seed, np.random.seed)"),
    ("seeds: too large for simulators in C", "generate_state(1)[0]) // 4", "generate_state(1)[0]) | 2**31"),
    ("seeds: networks are not seeded", "        torch.manual_seed(args.seed)\n", ""),
    ("counts: one environment", "self.step += len(obs) * self.ranks", "self.step += self.ranks"),
    ("counts: one process", "self.step += len(obs) * self.ranks", "self.step += len(obs)"),
    ("counts: a resumed run starts at 0", 'self.step = self.saved = saved["step"]', "pass"),
    ("actions: not rescaled", "lambda a: (low + (a + 1) / 2 * (high - low))", "lambda a: a"),
    ("actions: rescaled to half of the range", "a: (low + (a + 1) / 2", "a: (low + (a + 1) / 4"),
    ("actions: not clipped to their bounds", "* (high - low)).clip(low, high)", "* (high - low))"),
    ("actions: without bounds, not clipped", "lambda a: a.clip(actions.low, actions.high)", "lambda a: a"),
    ("env_step: truncated is not done", "terminated, terminated | truncated]", "terminated, terminated]"),
    (
        "env_step: truncated is terminated",
        "reward, terminated, terminated |",
        "reward, terminated | truncated, terminated |",
    ),
    (
        "env_step: NaN is accepted",
        'require(np.isfinite(obs).all() and np.isfinite(rows).all(), "an',
        'require(True, "an',
    ),
    (
        "make_envs: a Discrete that starts at 1",
        "isinstance(actions, Discrete) and actions.start == 0",
        "isinstance(actions, Discrete)",
    ),
    ("make_envs: SAME_STEP is accepted", "require(mode == gym.vector.AutoresetMode.NEXT_STEP, ", "require(True, "),
    ("checkpoint: environments go on", "self.saved, self.needs_reset = self.step, True", "self.saved = self.step"),
    ("checkpoint: too often", "self.step - self.saved >= args.checkpoint_every", "self.step >= args.checkpoint_every"),
    ("checkpoint: damage is not noticed", "digest() == content[-32:], ", "digest() != b'', "),
    ("checkpoint: another script's", 'require(checkpoint["script"] == NAME, ', "require(True, "),
    ("checkpoint: nothing is loaded", "part.load_state_dict(states[self.rank][name] | flags)", "pass"),
    (
        "checkpoint: rank 0's state in every process",
        "part.load_state_dict(states[self.rank][name] | flags)",
        "part.load_state_dict(states[0][name])",
    ),
    ("resume: its flags are forgotten", 'args = tyro.cli(Args, default=read(folder)["args"])', "pass"),
    ("signal: the run goes on", "float(Run.signal)", "0.0"),
    ("train: losses that are not finite", "require(all(map(math.isfinite, tags.values())), ", "require(True, "),
    ("train: flags out of range", "least <= value <= most and kind(value) == value", "True"),
]


@dataclass
class Args:
    only: str = ""  # mutants of this script alone
    every: bool = False  # every change of each line; else one
    match: str = ""  # mutants that have this in their description
    jobs: int = 2  # mutants at a time
    list: bool = False  # print the mutants and run nothing
    out: Path = ROOT / "benchmarks" / "results" / "mutants.csv"


COLUMNS = ("script", "mutation", "old", "new", "killed", "by", "commit")


class Changer:
    """All changes of a piece of a script: (description, first character, last character + 1, new text)."""

    def __init__(self, text):
        self.text, self.found = text, []
        self.lines = [0]
        for line in text.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))

    def start(self, node):
        return self.lines[node.lineno - 1] + node.col_offset

    def end(self, node):
        return self.lines[node.end_lineno - 1] + node.end_col_offset

    def source(self, node):
        return self.text[self.start(node) : self.end(node)]

    def replace(self, what, node, new):
        self.found.append((what, self.start(node), self.end(node), new))

    def visit(self, node):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in KEPT:
            return
        if change := getattr(self, f"change_{type(node).__name__}", None):
            change(node)
        for child in ast.iter_child_nodes(node):
            self.visit(child)

    def change_BinOp(self, node):
        left, right = f"({self.source(node.left)})", f"({self.source(node.right)})"
        if isinstance(node.right, ast.Constant) and node.right.value in SMALL:
            return
        if isinstance(node.op, ast.Sub) and isinstance(node.left, ast.Constant) and node.left.value == 1:
            self.replace("without 1 -", node, right)
        elif type(node.op) in SIGNS:
            old, new = SIGNS[type(node.op)]
            begin, end = self.end(node.left), self.start(node.right)
            self.found.append((f"{old} becomes {new}", begin, end, self.text[begin:end].replace(old, new, 1)))
            self.replace("without the last term", node, left)
        elif isinstance(node.op, ast.Mult):
            self.replace("without the first factor", node, right)
            self.replace("without the last factor", node, left)
        elif isinstance(node.op, ast.Div | ast.Pow):
            self.replace("without / or **", node, left)

    def change_UnaryOp(self, node):
        if isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
            self.replace("without -", node, f"({self.source(node.operand)})")

    def change_Call(self, node):
        if not isinstance(node.func, ast.Attribute):
            return
        name, end = node.func.attr, self.end(node.func)
        if name in RENAMED:
            self.found.append((f"{name} becomes {RENAMED[name]}", end - len(name), end, RENAMED[name]))
        if name in DROPPED:
            self.replace(f"without {name}", node, f"({self.source(node.func.value)})")

    def change_Slice(self, node):
        if self.source(node) in ("1:", ":-1"):
            self.replace("another slice", node, {"1:": ":-1", ":-1": "1:"}[self.source(node)])

    def change_Compare(self, node):
        if isinstance(node.ops[0], ast.Eq):
            self.replace("== becomes !=", node, self.source(node).replace("==", "!=", 1))

    def change_If(self, node):
        self.replace("the condition is negated", node.test, f"(not ({self.source(node.test)}))")

    change_IfExp = change_If

    def change_Expr(self, node):
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.remove(node)

    def remove(self, node):
        called = getattr(getattr(node, "value", None), "func", None)
        if getattr(called, "attr", getattr(called, "id", "")) not in KEPT:
            self.replace("without the statement", node, "pass")

    change_AugAssign = change_Continue = remove

    def change_Assign(self, node):
        if isinstance(node.targets[0], ast.Subscript) and "metrics" not in self.source(node.targets[0]):
            self.remove(node)


def functions(script, text):
    """The functions and methods to change in a script: {name: node}."""
    found, names = {}, OWN.get(script, FUNCTIONS).split()
    for node in ast.parse(text).body:
        for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
            name = getattr(inner, "name", "")
            name = name if inner is node else f"{node.name}.{name}"
            if name in names:
                found[name] = inner
    return found


def by_rule(original, every):
    """(script, description, start, end, new text) of the changes above the rule."""
    lines = {}  # (function, line): {changed line: the same change in each script that has it}
    for script in SCRIPTS:
        text = (original / f"{script}.py").read_text()
        assert text.isascii(), "places in a line are counted in bytes"
        for name, node in functions(script, text).items():
            changer = Changer(text)
            for statement in node.body:
                changer.visit(statement)
            for what, start, end, new in changer.found:
                first, last = text.rindex("\n", 0, start) + 1, text.index("\n", end)
                changed = text[first:start] + new + text[end:last]
                same = lines.setdefault((name, text[first:last]), {}).setdefault(changed, [])
                same.append((script, f"{name}: {what}", start, end, new))
    chosen = []
    for number, changes in enumerate(lines.values()):
        changes = list(changes.values())
        chosen += changes if every else [changes[number % len(changes)]]
    return [same[number % len(same)] for number, same in enumerate(chosen)]


def below_the_rule(original):
    found = []
    for number, (what, old, new) in enumerate(TEXTS):
        script = PLUMBING[number % len(PLUMBING)]
        text = (original / f"{script}.py").read_text()
        assert text.count(old) == 1, f"{script}.py has {text.count(old)} times: {old}"
        found.append((script, what, text.index(old), text.index(old) + len(old), new))
    return found


def fails(folder, *words):
    """The first test that fails there, or what else went wrong; empty if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "the tests never end"
    assert ended.returncode in (0, 1, 2, 5), ended.stdout + ended.stderr  # 5: no test has the script's name
    lines = re.findall(r"^(?:FAILED|ERROR) (?:tests/)?(.+?)(?: - .*)?$", ended.stdout, re.M)
    return "" if ended.returncode in (0, 5) else lines[0] if lines else ended.stdout.strip().splitlines()[-1]


def snapshot(place):
    """Copy the scripts and tests as they are when the program starts: edits since then change no mutant."""
    shutil.copytree(ROOT / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("*.md")]:
        shutil.copy(path, place)


def attempt(mutant, original, commit):
    """Make the mutant of the original, run the tests on it -> its row of the table."""
    script, what, start, end, new = mutant
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "copy")
        shutil.copytree(original, place, ignore=shutil.ignore_patterns("__pycache__"))
        path = place / f"{script}.py"
        text = path.read_text()
        path.write_text(text[:start] + new + text[end:])
        compile(path.read_text(), path.name, "exec")
        order = [("tests/math",), ("tests/runs", "-k", script)]
        if start > text.index("\n# -----") or script == "a3c":  # its processes are in no test of tests/math
            order.reverse()
        by = ""
        for words in order:
            by = by or fails(place, *words)
    old = text[text.rindex("\n", 0, start) + 1 : text.index("\n", end)].strip()
    values = (script, what, old, new.strip(), bool(by), by, commit)
    return dict(zip(COLUMNS, values, strict=True))


def run_all(mutants, original, args):
    """Run the tests on all mutants -> rows, each in the table as soon as it is there."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with ThreadPoolExecutor(args.jobs) as pool, open(args.out, "w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        each = pool.map(lambda mutant: attempt(mutant, original, commit), mutants)
        for row in tqdm(each, total=len(mutants), unit="mutant"):
            rows.append(row)
            table.writerow(row)
            file.flush()
            if not row["killed"]:
                tqdm.write(f"survived: {row['script']}.py: {row['mutation']}: {row['old']} -> {row['new']}")
    return rows


def main(args):
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder)
        snapshot(original)
        mutants = [*by_rule(original, args.every), *below_the_rule(original)]
        mutants = [mutant for mutant in mutants if args.only in ("", mutant[0]) and args.match in mutant[1]]
        if args.list:
            for script, what, start, end, new in mutants:
                text = (original / f"{script}.py").read_text()
                print(f"{script}.py:{text.count(chr(10), 0, start) + 1}: {what}: {text[start:end]!r} -> {new!r}")
            print(f"{len(mutants)} mutants")
            return 0
        for words in [("tests/math",), *[("tests/runs", "-k", script) for script in {m[0] for m in mutants}]]:
            failed = fails(original, *words)
            assert not failed, f"{failed} fails without a mutation, so every mutant would count as killed"
        rows = run_all(mutants, original, args)
    killed = sum(row["killed"] for row in rows)
    print(f"{killed} of {len(rows)} mutants killed ({killed / len(rows):.1%}) | {args.out}")
    return int(killed < 0.95 * len(rows))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
