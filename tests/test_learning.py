"""Every script learns: started by its command line in a fresh folder, judged by the line that other programs read."""

import pytest
from harness import TORCHRUN, readme_commands, run_ok


def readme_flags(script, *first):
    """The flags of the README's command for this script that starts with these; they stand nowhere else."""
    start = ["python", f"{script}.py", *first]
    found = [words[2:] for words in readme_commands() if words[: len(start)] == start]
    assert found, f"the README has no command that starts with {' '.join(start)}"
    return found[0]


ONE_THREAD = ["--num-threads", "1"]  # the tests share the cores
RUNS = [
    # script, environment, flags, the least mean return of its evaluation; the longest first
    ("sac", "Pendulum-v1", ONE_THREAD, -200),
    ("td3", "Pendulum-v1", ONE_THREAD, -200),
    ("ddpg", "Pendulum-v1", ONE_THREAD, -200),
    ("reinforce", "CartPole-v1", [], 475),
    ("reinforce_baseline", "CartPole-v1", [], 475),
    ("a2c", "CartPole-v1", [], 475),
    ("ppo", "CartPole-v1", [], 475),
    ("ppo", "Pendulum-v1", readme_flags("ppo", "--env-id", "Pendulum-v1"), -200),
    # The textbook's one-step actor-critic: 195 is what "solved" meant for CartPole-v0.
    ("a2c", "CartPole-v1", readme_flags("a2c", *["--num-envs", "1", "--num-steps", "1", "--gae-lambda", "0"]), 195),
]


# Two processes under torchrun. PPO's have the default's environments between them; SAC's are smaller, to be short.
SMALLER = ["--hidden-size", "64", "--batch-size", "128", "--num-envs", "2", "--utd", "0.3", "--q-lr", "3e-3"]
OF_TWO = [
    ("sac", "Pendulum-v1", [*ONE_THREAD, *SMALLER, "--tau", "0.02"], -200),
    ("ppo", "CartPole-v1", ["--num-envs", "16"], 475),
]
EACH_RUN = [pytest.param((), *row, id=f"{row[0]}-{row[1]}") for row in RUNS]
EACH_RUN += [pytest.param(TORCHRUN, *row, id=f"{row[0]}-{row[1]}-two-processes") for row in OF_TWO]


@pytest.mark.parametrize(("launcher", "script", "env_id", "flags", "threshold"), EACH_RUN)
def test_learns(launcher, script, env_id, flags, threshold, tmp_path):
    # How long it takes is no test's concern.
    result = run_ok(script, *flags, cwd=tmp_path, launcher=launcher, timeout=900)
    assert result.episodes >= 20
    assert result.folder.name.startswith(f"{env_id}__{script}__1__")
    assert (tmp_path / result.folder / "checkpoint.pt").is_file()
    assert result.mean >= threshold
