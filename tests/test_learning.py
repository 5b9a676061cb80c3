"""Every script learns: started by its command line in a fresh folder, judged by the line that other programs read."""

import pytest
from harness import readme_commands, run_ok


def readme_flags(script, env_id):
    """The flags that the README gives for this script on this environment; they stand nowhere else."""
    start = ["python", f"{script}.py", "--env-id", env_id]
    found = [words[2:] for words in readme_commands() if words[:4] == start]
    assert found, f"the README has no command that starts with {' '.join(start)}"
    return found[0]


RUNS = [
    # script, environment, flags (None: the README's), the least mean return of its evaluation
    ("reinforce", "CartPole-v1", [], 475),
    ("reinforce_baseline", "CartPole-v1", [], 475),
    ("a2c", "CartPole-v1", [], 475),
    ("ppo", "CartPole-v1", [], 475),
    ("ppo", "Pendulum-v1", None, -200),
]


@pytest.mark.parametrize(("script", "env_id", "flags", "threshold"), RUNS, ids=[f"{run[0]}-{run[1]}" for run in RUNS])
def test_learns(script, env_id, flags, threshold, tmp_path):
    result = run_ok(script, *(readme_flags(script, env_id) if flags is None else flags), cwd=tmp_path)
    assert result.episodes >= 20
    assert result.folder.name.startswith(f"{env_id}__{script}__1__")
    assert (tmp_path / result.folder / "checkpoint.pt").is_file()
    assert result.mean >= threshold
