"""One training run from start to end: its files, progress, interruption and summary."""

from __future__ import annotations

import itertools
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tqdm import tqdm

from rbc_warp import curriculum, metrics
from rbc_warp.config import Config
from rbc_warp.economy import AGENT_TYPES, Economy
from rbc_warp.policies import Policy, make_policies
from rbc_warp.rundir import RunDir, RunFileError
from rbc_warp.trainer import RbcTrainer

STATE_VERSION = 1


class ResumeError(ValueError):
    """A run cannot be continued; the message says what differs."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended. ``iterations``: completed, from the start of the run."""

    run: RunDir
    status: str
    iterations: int
    seconds: float
    record: dict


def prepare_run(run: RunDir, config: Config) -> None:
    """Writes what describes a run before it starts: hparams.yaml and action_arrays.pickle."""
    economy = Economy.from_config(config)
    run.write_action_arrays(
        {
            "consumption_choices": economy.consumption_choices[:, None],
            "work_choices": economy.work_choices[:, None],
            "price_and_wage": economy.firm_choices,
            "tax_choices": economy.government_choices,
        }
    )
    run.write_hparams(config.to_dict(with_derived=True))
    run.write_status("created", 0)


def load_policies(run: RunDir, config: Config, label: int | str = "latest") -> dict[str, Policy]:
    """The policies of a checkpoint. A frozen type, which has no file, keeps its untrained network."""
    policies = make_policies(config, Economy.from_config(config))
    for agent, policy in policies.items():
        if curriculum.frozen_action(config, agent) is None:
            policy.load_state_dict(run.load_policy_state(agent, label, policy.file_shapes()))
    return policies


class _Interrupt:
    """Turns Ctrl-C into a request to stop after the current iteration; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        def request(signum, frame):
            if self.requested:
                raise KeyboardInterrupt
            self.requested = True

        try:
            before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: whoever runs this thread interrupts it
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train_run(run: RunDir, config: Config, backend: str = "auto", *, resume: bool = False, quiet: bool = False) -> RunResult:
    """Trains in ``run``, writing checkpoints, dense rollouts, metrics and states as it goes.

    With ``resume``, continues from the run's last state. Returns after the last iteration or an interruption.
    """
    trainer = RbcTrainer(config, backend)
    start = _restore(run, config, trainer) if resume else 0
    end = None if config.train.infinite_episodes else config.train.num_episodes
    interrupt = _Interrupt()
    began = time.monotonic()
    record: dict = {}
    done = start
    run.write_status("running", start)
    iterations = itertools.count(start) if end is None else range(start, end)
    bar = tqdm(iterations, initial=start, total=end, unit="it", disable=quiet or None, dynamic_ncols=True, file=sys.stderr)
    try:
        with interrupt.watching(), bar:
            for iteration in bar:
                last = end is not None and iteration == end - 1
                record = _run_iteration(run, config, trainer, iteration, last) or record
                done = iteration + 1
                if record:
                    bar.set_postfix_str(_rewards_text(record), refresh=False)
                if done % config.train.save_state_every == 0 or last or interrupt.requested:
                    save_state(run, trainer, config, done)
                if interrupt.requested:
                    break
    except BaseException as error:
        run.write_status("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", done, repr(error))
        raise
    finished = end is not None and done >= end
    _save_policies(run, trainer, ["latest"])
    if finished and end is not None and end > start:
        save_episode(run, trainer, "final")
    run.write_status("finished" if finished else "interrupted", done)
    return RunResult(run, "finished" if finished else "interrupted", done, time.monotonic() - began, record)


def _run_iteration(run: RunDir, config: Config, trainer: RbcTrainer, iteration: int, last: bool) -> dict | None:
    """Plays, saves what is due, updates; returns the metrics if they were due."""
    train = config.train
    dense = iteration % train.save_dense_every == 0
    trainer.train_iteration(iteration, keep_consumption=dense or last)
    if iteration % train.save_model_every == 0:
        _save_policies(run, trainer, [str(iteration), "latest"])
    if dense:
        save_episode(run, trainer, str(iteration))
    losses = trainer.update(iteration)
    if last and iteration:
        _save_policies(run, trainer, [str(iteration)])
    if iteration % train.log_every and not last:
        return None
    record = metrics.record(trainer, iteration, losses)
    run.append_metrics([record])
    return record


def _save_policies(run: RunDir, trainer: RbcTrainer, labels: list[str]) -> None:
    for agent in AGENT_TYPES:
        if curriculum.frozen_action(trainer.settings, agent) is None:
            for label in labels:
                run.save_policy(agent, label, trainer.models[agent].state_dict())


def save_episode(run: RunDir, trainer: RbcTrainer, label: str) -> None:
    """The last rollout as dense files, environments first; consumption must have been kept."""
    economy = trainer.economy
    tables = {
        "consumer": economy.work_choices[:, None],
        "firm": economy.firm_choices,
        "government": economy.government_choices,
    }
    for agent in AGENT_TYPES:
        arrays = [trainer.states(agent), trainer.actions(agent), trainer.rewards(agent)]
        states, actions, rewards = (array.transpose(0, 1).cpu().numpy() for array in arrays)
        aux = None if agent == "government" else trainer.aux(agent).transpose(0, 1).cpu().numpy()
        run.write_episode(label, agent, states, actions, rewards, tables[agent], aux)


def save_state(run: RunDir, trainer: RbcTrainer, config: Config, iteration: int) -> None:
    """All that continues the run at ``iteration``."""
    state = {"version": STATE_VERSION, "iteration": iteration, "precision": str(trainer.precision)}
    run.save_state({**state, "config": config.to_dict(), "trainer": trainer.state()})


def _restore(run: RunDir, config: Config, trainer: RbcTrainer) -> int:
    """Loads the last state into the trainer; returns the iteration to go on with."""
    state, warning = run.load_state()
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    if state.get("version") != STATE_VERSION:
        raise RunFileError(run.state_path, f"its version is {state.get('version')!r}", f"version {STATE_VERSION} is known")
    trainer.load_state(state["trainer"])
    run.truncate_metrics(state["iteration"])
    return int(state["iteration"])


def _rewards_text(record: dict) -> str:
    reward = record["reward"]
    return f"consumer {reward['consumer']:.3g}  firm {reward['firm']:.4g}  government {reward['government']:.4g}"


def summary(result: RunResult, threads: int | None = None) -> str:
    """What to tell the user at the end: rewards, where the files are, what to do next."""
    run = result.run
    lines = [f"{result.status} after {result.iterations} iterations, {result.seconds:.0f} s on {threads or torch.get_num_threads()} threads"]
    if result.record:
        economy = result.record["economy"]
        shown = ("price", "wage", "hours", "sales", "exports", "income_tax", "corporate_tax")
        lines.append(f"rewards per agent and period: {_rewards_text(result.record)}")
        lines.append("means: " + "  ".join(f"{name} {economy[name]:.4g}" for name in shown))
    lines.append(f"files: {run.path}  (metrics.jsonl, saved_models/, episode_*.npz, hparams.yaml)")
    if result.status == "finished":
        lines.append(f"next:  python run_best_response.py {run.path}")
    else:
        lines.append(f"next:  python run_training.py --resume {run.path}")
    return "\n".join(lines)
