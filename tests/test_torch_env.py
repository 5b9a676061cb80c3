"""An environment of torch tensors runs through every script, and nothing that it gives goes by way of the host."""

from collections import Counter
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch_envs
from harness import BY_PROCESS, OFF_POLICY, SCRIPTS, checkpoint, differences, end, parse, scalars, state, train
from torch.overrides import TorchFunctionMode

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
ON_POLICY = [script for script in SCRIPTS if script not in OFF_POLICY]
RUNS = [*((script, "Point-v0") for script in SCRIPTS), *((script, "Push-v0") for script in ON_POLICY)]
CHARTS = ("charts/episodic_return", "charts/episodic_length")
HOST = {"cpu", "numpy", "item", "tolist", "nonzero", "__array__", "__bool__", "__int__", "__float__", "__index__"}


def small(script, env_id, *flags):
    """Flags of a run with whole episodes in it, and two checkpoints; it ends within an update after 320 steps."""
    steps = ("--total-timesteps", 320, "--checkpoint-every", 160)
    return ("--env-id", f"torch_envs:{env_id}", *SCRIPTS[script].short, *steps, *flags)


@pytest.mark.parametrize("discrete", [False, True])
def test_the_environment_keeps_the_contract(discrete):
    """Episodes end beyond 2 or at the limit; the next step resets, pays nothing, and does not look at its action."""
    envs, other = (torch_envs.Point(64, discrete=discrete) for _ in range(2))
    obs, again = envs.reset(seed=3)[0].clone(), other.reset(seed=3)[0].clone()
    done, age, seen = torch.zeros(64, dtype=torch.bool), torch.zeros(64), Counter()
    for _ in range(60):
        assert torch.equal(obs, again)
        action = torch.as_tensor(envs.action_space.sample())
        next_obs, reward, terminated, truncated, _ = envs.step(action)
        where = done if discrete else done[:, None]
        again = other.step(torch.where(where, 0, action).to(action.dtype))[0].clone()
        age = torch.where(done, 0, age + 1)
        assert (reward[done] == 0).all() and (next_obs[done].abs() <= 1).all()
        assert not (terminated | truncated)[done].any()
        velocity = 0.9 * obs[:, 1] + 0.25 * (action - 1.0 if discrete else action[:, 0])
        moved = torch.stack([obs[:, 0] + 0.25 * velocity, velocity], 1)
        assert torch.equal(next_obs[~done], moved[~done])
        assert torch.equal(terminated[~done], moved[~done, 0].abs() > 2)
        assert torch.equal(truncated[~done], age[~done] >= torch_envs.LIMIT)
        seen += Counter(terminated=int(terminated.sum()), truncated=int(truncated.sum()), reset=int(done.sum()))
        obs, done = next_obs.clone(), terminated | truncated
    assert min(seen[kind] for kind in ("terminated", "truncated", "reset")) > 20


@pytest.mark.parametrize("script", BY_PROCESS)
def test_an_environment_without_a_device_takes_arrays(script, folder):
    """Whatever it gives: in the rollout and in an evaluation."""
    (_, one), (_, other) = (train(script, *small(script, name)) for name in ("MixedPoint-v0", "ArrayPoint-v0"))
    assert differences(state(one.folder), state(other.folder)) == []
    assert (one.steps, one.mean, one.deviation) == (other.steps, other.mean, other.deviation)


@pytest.mark.parametrize(("script", "env_id"), RUNS)
def test_tensors_and_arrays_give_the_same_bits(script, env_id, folder):
    """Though the environment gives each observation in the memory of the last; and the steps are counted right."""
    (tensors, one), (arrays, other) = (train(script, *small(script, name)) for name in (env_id, f"Array{env_id}"))
    assert 320 <= one.steps == checkpoint(one.folder)["step"] < 320 + 2 * (torch_envs.LIMIT + 1)
    assert differences(tensors.state_dict(), arrays.state_dict()) == []
    assert differences(state(one.folder), state(other.folder)) == []
    assert (one.steps, one.mean, one.deviation) == (other.steps, other.mean, other.deviation)
    one, other = scalars(one.folder), scalars(other.folder)
    assert one.keys() - other.keys() == {"losses/largest_observation", "losses/largest_reward"}
    assert all(one[tag] == other[tag] for tag in other.keys() - {"charts/SPS", *CHARTS})


@EACH_SCRIPT
def test_a_resumed_run_has_the_same_bits(script, folder):
    steady = ("--no-anneal-lr",) if hasattr(parse(script), "anneal_lr") else ()
    _, short = train(script, *small(script, "Point-v0", *steady))
    _, longer = train(script, *small(script, "Point-v0", *steady, "--total-timesteps", 640))
    _, resumed = train(script, "--resume", short.folder, "--total-timesteps", 640)
    assert differences(state(short.folder), state(longer.folder)) == []
    assert (resumed.mean, resumed.deviation, resumed.steps) == (longer.mean, longer.deviation, longer.steps)


class Watch(TorchFunctionMode):
    """Counts what would take numbers from the device to the host, or wait for it to say how many numbers there are."""

    def __init__(self):
        self.seen, self.on, self.devices, self.strict = Counter(), False, None, False

    def turn(self, on):
        self.on = on
        if self.strict:
            torch.cuda.set_sync_debug_mode("error" if on else "default")

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        index = args[1] if name in ("__getitem__", "__setitem__") else ()
        parts = index if isinstance(index, tuple) else (index,)
        masked = any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)
        # On a machine without a GPU all are on one device, so that only where `to` was told to go shows what it is for.
        moved = name == "to" and self.devices and not any(args[1] is device for device in self.devices)
        if self.on and (name in HOST or masked or moved):
            self.seen[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def watch(monkeypatch):
    """A function of a script's module that has its runs watched, but in resets, and in the tick that ends the run."""

    def put(module):
        watch, run, counts = Watch(), module.Run, SimpleNamespace(steps=0, updates=0)
        env_step, reset, tick = run.env_step, run.reset, run.tick

        def watched_step(self, action):
            counts.steps += 1
            watch.devices = self.device, self.envs.unwrapped.device
            try:
                return env_step(self, action)
            finally:
                watch.devices = None

        def unwatched_reset(self):
            watch.turn(False)
            obs = reset(self)
            watch.turn(True)
            return obs

        def watched_tick(self, *args):
            counts.updates += 1
            watch.turn(self.step < self.args.total_timesteps)
            self.logged = self.step  # it shall not log, but at the end
            tick(self, *args)

        monkeypatch.setattr(run, "env_step", watched_step)
        monkeypatch.setattr(run, "reset", unwatched_reset)
        monkeypatch.setattr(run, "tick", watched_tick)
        return watch, counts

    return put


@pytest.mark.parametrize(("script", "env_id"), RUNS)
def test_nothing_goes_by_way_of_the_host(script, env_id, watch, folder):
    """Between two logs: REINFORCE asks once a step if all episodes are over, and says once an update how they were;
    the buffers ask once a step how many of its transitions are no resets. Nothing else waits for the device."""
    seen, counts = watch(import_module(script))
    with seen:
        train(script, *small(script, env_id, "--checkpoint-every", 10**6))
    allowed = {}
    if script in OFF_POLICY:
        allowed = {"nonzero": counts.steps}
    elif script.startswith("reinforce"):
        allowed = {"__bool__": counts.steps + counts.updates, "tolist": 2 * counts.updates}
    assert counts.steps >= 160 and seen.seen == allowed


@EACH_SCRIPT
def test_the_log_has_the_latest_episode_of_each_environment(script, folder, monkeypatch):
    """Of REINFORCE's only the first, which it learns from."""
    module, episodes = import_module(script), []
    make_envs = module.make_envs

    def watched(*args, **kwargs):
        envs = make_envs(*args, **kwargs)
        step, reset = envs.step, envs.reset
        played, latest = [], {}
        episodes.append(latest)

        def note(action):
            obs, reward, terminated, truncated, info = step(action)
            for n in range(envs.num_envs):
                rewards = played[n]
                if rewards is None:
                    played[n] = []
                    continue
                rewards.append(reward[n].item())
                if terminated[n] or truncated[n]:
                    if not (script.startswith("reinforce") and n in latest):
                        latest[n] = rewards
                    played[n] = None
            return obs, reward, terminated, truncated, info

        def begin(**kwargs):
            played[:] = [[] for _ in range(envs.num_envs)]
            if script.startswith("reinforce"):
                latest.clear()
            return reset(**kwargs)

        envs.step, envs.reset = note, begin
        return envs

    monkeypatch.setattr(module, "make_envs", watched)
    _, result = train(script, *small(script, "Point-v0", "--num-envs", 4, "--checkpoint-every", 10**6))
    latest = episodes[0].values()  # those of training
    log = scalars(result.folder)
    assert len(latest) == 4 and len({len(rewards) for rewards in latest}) > 1
    means = np.mean([sum(rewards) for rewards in latest]), np.mean([len(rewards) for rewards in latest])
    assert [log[tag][-1] for tag in CHARTS] == [(result.steps, pytest.approx(mean, rel=1e-5)) for mean in means]
    assert log[CHARTS[0]][0][0] > 8 or script.startswith("reinforce"), "nothing had ended"


@EACH_SCRIPT
@pytest.mark.parametrize(("env_id", "words"), [("NanReward", "reward"), ("NanObservation", "observation")])
def test_a_number_that_is_none_is_named_when_it_is_logged(script, env_id, words, folder):
    """Also if it was there for one step, some before the log; the last checkpoint is of before."""
    status, stdout, stderr = end(script, *small(script, f"Point{env_id}-v0", "--num-envs", 1))
    assert (status, stdout, len(stderr.splitlines())) == (2, "", 1)
    assert stderr.startswith(f"{script}.py: error: largest_{words} is not finite at step ")
    assert not list(folder.glob("runs/*/checkpoint.pt"))


def test_ppo_learns(folder):
    """A random policy is paid -1.7 on average, one that stays at 0 nearly 20."""
    _, result = train("ppo", "--env-id", "torch_envs:Point-v0", "--total-timesteps", 20_000, "--num-envs", 64)
    assert result.mean > 18.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@EACH_SCRIPT
def test_on_a_gpu(script, watch, folder):
    """The environment, the networks and the data: PPO and A2C never wait for it between logs."""
    seen, counts = watch(import_module(script))
    seen.strict = script in ("a2c", "ppo")
    try:
        with seen:
            _, result = train(script, *small(script, "CudaPoint-v0", "--device", "cuda", "--checkpoint-every", 10**6))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counts.steps >= 160 and result.steps >= 320


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("env_id", "device"), [("CudaPoint-v0", "cpu"), ("Point-v0", "cuda")])
def test_another_device_than_the_environments(env_id, device, folder):
    """What it gives is moved at every step."""
    for script in ("ppo", "td3"):
        assert train(script, *small(script, env_id, "--device", device))[1].steps >= 320
