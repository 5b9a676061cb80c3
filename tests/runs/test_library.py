"""Training from Python: in a sweep, a thread, a notebook; nothing is left open, and errors are exceptions."""

import contextlib
import io
import multiprocessing
import os
import threading
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import Single, children
from harness import BY_PROCESS, ROOT, SCRIPTS, checkpoint, differences, last_line, parse, train

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
EACH_FAMILY = pytest.mark.parametrize("script", BY_PROCESS)
OPEN_FILES = Path("/proc/self/fd")


def args_of(script, updates, *flags):
    """Args of a small run; flags are those of the command line."""
    row = SCRIPTS[script]
    return parse(script, *row.short, "--env-id", "Pendulum-v1", "--total-timesteps", updates * row.period, *flags)


@EACH_FAMILY
def test_sweep_goes_on_after_diverging_run(script, folder):
    module = import_module(script)
    for rate, trains in ((3e-3, True), (1e30, False), (1e-3, True)):
        args = args_of(script, 4, "--learning-rate", rate)
        if trains:
            assert isinstance(module.train(args), module.Agent)
        else:
            with pytest.raises(module.RunError, match="finite"):
                module.train(args)


@EACH_FAMILY
def test_train_works_in_a_thread(script, folder):
    agents = []
    worker = threading.Thread(target=lambda: agents.append(import_module(script).train(args_of(script, 2))))
    worker.start()
    worker.join()
    assert len(agents) == 1


@EACH_SCRIPT
def test_source_trains_in_a_notebook_cell(script, folder):
    """A cell has no __file__, and its module is not importable."""
    cell = {"__name__": "notebook"}
    exec(compile((ROOT / f"{script}.py").read_text(), "<cell>", "exec"), cell)
    args = cell["Args"](**vars(parse(script, *SCRIPTS[script].short, "--env-id", SCRIPTS[script].env_ids[0])))
    args.total_timesteps = 2 * SCRIPTS[script].period
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        agent = cell["train"](args)
    loaded, _ = cell["load"](last_line(stdout.getvalue()).folder)
    assert differences(agent.state_dict(), loaded.state_dict()) == []


@pytest.mark.skipif(not OPEN_FILES.exists(), reason="only Linux lists a process's open files there")
@EACH_FAMILY
@pytest.mark.parametrize("flag", ["--async-envs", "--no-async-envs"])
def test_many_runs_leave_nothing_open(script, flag, folder):
    """Files, threads and processes are as many after five runs as after one."""
    args, counts = args_of(script, 2, flag), []
    for _ in range(5):
        import_module(script).train(args)
        assert not multiprocessing.active_children()
        counts.append((len(os.listdir(OPEN_FILES)), threading.active_count()))
    assert counts[0] == counts[-1]


BAD_FLAGS = [
    ("gamma", 1.5),
    ("gamma", -0.1),
    ("gamma", float("nan")),
    ("learning_rate", float("inf")),
    ("num_envs", 0),
    ("num_envs", 2.5),
    ("seed", -1),
    ("eval_episodes", -1),
    ("async_envs", 2),
    ("device", "tpu"),
    ("env_id", "CartPol-v1"),
    ("env_kwargs", "3"),
]


@EACH_FAMILY
@pytest.mark.parametrize(("name", "value"), BAD_FLAGS)
def test_bad_flag_raises_run_error(script, name, value, folder):
    module, args = import_module(script), args_of(script, 1)
    setattr(args, name, value)
    with pytest.raises(module.RunError, match=str(value)):
        module.train(args)
    assert not Path("runs").exists()


def child_args(script, *flags):
    env_id = {"ppo": "cases:Child-v0", "td3": "cases:BoxChild-v0"}[script]
    return args_of(script, 3, "--env-id", env_id, "--checkpoint-every", SCRIPTS[script].period, *flags)


@EACH_FAMILY
@pytest.mark.parametrize("flag", ["--async-envs", "--no-async-envs"])
def test_environments_are_closed_at_the_end(script, flag, folder):
    import_module(script).train(child_args(script, flag))
    assert not children()


@EACH_FAMILY
@pytest.mark.parametrize("flag", ["--async-envs", "--no-async-envs"])
@pytest.mark.parametrize("fails", [1, 2])
def test_environments_are_closed_after_their_error(script, flag, fails, folder):
    """Closed at once, also while the exception is still held, as a notebook does."""
    args = child_args(script, flag, "--env-kwargs", f'{{"fails": {fails}}}')
    with pytest.raises(RuntimeError, match="the simulator broke") as error:
        import_module(script).train(args)
    assert not children()
    assert error.value.__notes__


@pytest.mark.parametrize(("script", "flags"), [("ppo", ("--num-minibatches", 100)), ("td3", ())])
def test_environments_are_closed_after_refused_flags(script, flags, folder):
    """Whether these flags fit is known only when the environments are open: td3.py needs a Box of actions."""
    module = import_module(script)
    with pytest.raises(module.RunError):
        module.train(args_of(script, 3, "--env-id", "cases:Child-v0", *flags))
    assert not children()


@EACH_FAMILY
def test_environment_that_exists_once_trains_without_evaluation(script, folder):
    args = args_of(script, 3, "--env-id", "cases:Single-v0", "--num-envs", 1, "--eval-episodes", 0)
    import_module(script).train(args)
    assert not Single.is_open


@EACH_FAMILY
def test_failed_evaluation_says_where_the_checkpoint_is(script, folder):
    """The evaluation cannot open a second environment; all is saved by then."""
    module = import_module(script)
    args = args_of(script, 3, "--env-id", "cases:Single-v0", "--num-envs", 1, "--eval-episodes", 1)
    with pytest.raises(module.RunError, match="port 11311 is in use") as error:
        module.train(args)
    (run,) = Path("runs").iterdir()
    assert checkpoint(run)["step"] == args.total_timesteps
    assert f"--resume {run} continues from {args.total_timesteps}" in error.value.__notes__[0]
    assert not Single.is_open


@EACH_SCRIPT
@pytest.mark.parametrize("kind", [0, 1])
def test_loaded_agent_acts(script, kind, folder):
    """On raw observations, greedily as in an evaluation, and with the flags of its run."""
    row = SCRIPTS[script]
    flags = ("--env-id", row.env_ids[kind], *row.short, "--total-timesteps", 2 * row.period)
    agent, result = train(script, *flags)
    loaded, args = import_module(script).load(result.folder)
    assert args == parse(script, *flags)
    envs = import_module(script).make_envs(args, 3)
    obs = torch.as_tensor(envs.reset(seed=1)[0], dtype=torch.float32)
    action = loaded.act(obs, greedy=True)
    assert torch.equal(action, agent.act(obs, greedy=True))
    envs.step(action.numpy().reshape(envs.action_space.shape))
    envs.close()


@EACH_FAMILY
def test_resume_from_python_restores_the_flags(script, folder):
    """Flags that are given override those of the run."""
    module, row = import_module(script), SCRIPTS[script]
    _, result = train(script, *row.short, "--env-id", row.env_ids[1], "--total-timesteps", 2 * row.period, "--seed", 7)
    module.train(module.Args(resume=str(result.folder), total_timesteps=4 * row.period))
    saved = checkpoint(result.folder)
    assert saved["step"] == saved["args"]["total_timesteps"] == 4 * row.period
    assert saved["args"] | {"total_timesteps": 0, "resume": ""} == vars(
        parse(script, *row.short, "--env-id", row.env_ids[1], "--seed", 7)
    ) | {"total_timesteps": 0}


@EACH_FAMILY
def test_evaluate_from_python_takes_the_flags_of_the_run(script, folder, capsys):
    module, row = import_module(script), SCRIPTS[script]
    _, result = train(script, *row.short, "--env-id", row.env_ids[1], "--total-timesteps", 2 * row.period)
    before = (result.folder / "checkpoint.pt").read_bytes()
    module.train(module.Args(evaluate=str(result.folder)))
    again = last_line(capsys.readouterr().out)
    assert (again.mean, again.deviation, again.episodes) == (result.mean, result.deviation, result.episodes)
    assert (result.folder / "checkpoint.pt").read_bytes() == before


@EACH_FAMILY
def test_resume_and_evaluate_together_are_refused(script, folder):
    module = import_module(script)
    _, result = train(script, *SCRIPTS[script].short, "--total-timesteps", SCRIPTS[script].period)
    with pytest.raises(module.RunError, match="--resume or --evaluate"):
        module.train(module.Args(resume=str(result.folder), evaluate=str(result.folder)))


@EACH_FAMILY
def test_numpy_numbers_as_flags_give_a_loadable_checkpoint(script, folder):
    module, args = import_module(script), args_of(script, 2)
    args.gamma, args.seed, args.num_envs = np.float64(0.9), np.int64(3), np.int32(2)
    module.train(args)
    (run,) = Path("runs").iterdir()
    _, loaded = module.load(run)
    assert (loaded.gamma, loaded.seed, loaded.num_envs) == (0.9, 3, 2)
    assert type(loaded.gamma) is float


@EACH_FAMILY
def test_folder_can_be_a_path(script, folder):
    module, row = import_module(script), SCRIPTS[script]
    _, result = train(script, *row.short, "--total-timesteps", row.period)
    module.train(module.Args(resume=result.folder, total_timesteps=2 * row.period))
    assert checkpoint(result.folder)["step"] == 2 * row.period
    assert module.load(result.folder)[1].total_timesteps == 2 * row.period
    module.train(module.Args(evaluate=result.folder))


@EACH_FAMILY
def test_train_leaves_its_args_alone(script, folder):
    args = args_of(script, 2)
    before = dict(vars(args))
    import_module(script).train(args)
    assert vars(args) == before
