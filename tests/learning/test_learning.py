"""Every script learns: started by its command line in an empty folder, judged by its last line."""

import shlex

import pytest
from harness import TORCHRUN, run_ok

SMALL = "--hidden-size 64 --batch-size 128"
PPO_PENDULUM = (
    "--num-envs 8 --num-steps 256 --num-minibatches 16 --update-epochs 10 --gamma 0.95 --learning-rate 1e-3"
    " --norm-reward"
)
CATCH = "--num-envs 32 --num-steps 20 --num-minibatches 10 --update-epochs 3 --clip-coef 0.2 --learning-rate 1e-3"
RLHF = "--hidden-size 32 --sft-steps 300 --reward-steps 150 --total-timesteps 60000 --eval-episodes 20"
RUNS = [
    # script, environment, flags, the least mean return of the last evaluation; the longest first
    ("sac", "Pendulum-v1", f"{SMALL} --total-timesteps 10000", -200),
    ("td3", "Pendulum-v1", f"{SMALL} --total-timesteps 10000 --exploration-noise 0.1", -200),
    ("ddpg", "Pendulum-v1", f"{SMALL} --total-timesteps 8000 --num-envs 2 --utd 0.5", -200),
    ("ppo_atari", "games:Catch-v0", f"{CATCH} --total-timesteps 16000", 0.7),
    ("rlhf", "Reviews", RLHF, 1),
    ("a2c", "CartPole-v1", "", 475),
    ("ppo", "CartPole-v1", "", 475),
    ("trpo", "CartPole-v1", "", 475),
    ("a3c", "CartPole-v1", "", 475),
    ("reinforce", "CartPole-v1", "", 475),
    ("reinforce_baseline", "CartPole-v1", "", 475),
]
SLOW_RUNS = [
    ("sac", "Pendulum-v1", "", -200),
    ("td3", "Pendulum-v1", "", -200),
    ("ddpg", "Pendulum-v1", "", -200),
    ("ppo", "Pendulum-v1", f"--total-timesteps 100000 {PPO_PENDULUM}", -200),
    ("ppo_atari", "games:Catch84-v0", f"{CATCH} --total-timesteps 40000", 0.9),
]
TRPO_PENDULUM = "--num-envs 8 --num-steps 256 --gamma 0.9 --gae-lambda 0.95 --vf-epochs 20 --norm-reward"
SLOW_RUNS += [("trpo", "Pendulum-v1", TRPO_PENDULUM, -200), ("rlhf", "Reviews", "--eval-episodes 20", 1.5)]
TWO_PROCESSES = [
    ("ppo", "CartPole-v1", "--num-envs 16", 475),
]


def check(script, env_id, flags, threshold, cwd, launcher=()):
    result = run_ok(script, "--env-id", env_id, *shlex.split(flags), cwd=cwd, launcher=launcher, timeout=900)
    assert result.episodes == 20
    assert result.folder.name.startswith(f"{env_id.replace(':', '-')}__{script}__1__")
    assert (cwd / result.folder / "checkpoint.pt").is_file()
    assert result.mean >= threshold


@pytest.mark.parametrize(("script", "env_id", "flags", "threshold"), RUNS)
def test_learns(script, env_id, flags, threshold, tmp_path):
    check(script, env_id, flags, threshold, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("script", "env_id", "flags", "threshold"), SLOW_RUNS)
def test_learns_in_a_longer_run(script, env_id, flags, threshold, tmp_path):
    check(script, env_id, flags, threshold, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("script", "env_id", "flags", "threshold"), TWO_PROCESSES)
def test_two_processes_learn(script, env_id, flags, threshold, tmp_path):
    check(script, env_id, flags, threshold, tmp_path, launcher=TORCHRUN)
