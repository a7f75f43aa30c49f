"""One training run from start to end: its files, interruption, exact resume and summary."""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch

from rbc_warp.config import Config
from rbc_warp.config.shipped import launcher
from rbc_warp.config.temporary import sweep
from rbc_warp.economy.parameters import Economy
from rbc_warp.errors import NumbersError, RunFileError, UserError, printable
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.interrupt import Interrupt
from rbc_warp.runs.live import LiveView
from rbc_warp.runs.locks import locked
from rbc_warp.runs.metrics import SHOWN, rewards_text
from rbc_warp.runs.recorder import RunRecorder
from rbc_warp.runs.resume import continue_from, restore_metrics, resumable_state
from rbc_warp.runs.tracking import Tracker, open_trackers
from rbc_warp.training.policy import Policy, make_policies
from rbc_warp.training.processes import Processes
from rbc_warp.training.trainer import RbcTrainer

# How long a resume waits for the process that still trains the run, such as one that saves before it stops [seconds].
PATIENCE = 60.0


@dataclass(frozen=True)
class RunResult:
    """The end of a run. ``iterations``: completed, from the start of the run; ``start``: those completed before."""

    run: RunDir
    status: str
    start: int
    iterations: int
    seconds: float
    record: dict


def prepare_run(run: RunDir, config: Config) -> None:
    """Write what describes a run before it starts: hparams.yaml and action_arrays.pickle."""
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
    """Load the policies of a checkpoint. A frozen type, which has no file, keeps its untrained network."""
    economy = Economy.from_config(config)
    policies = make_policies(config, economy)
    for name, policy in policies.items():
        if not economy.agents[name].is_frozen:
            policy.load_state_dict(run.load_policy_state(name, label, policy.file_shapes()))
    return policies


def train_run(
    run: RunDir,
    config: Config,
    backend: str = "auto",
    *,
    resume: bool = False,
    quiet: bool = False,
    processes: Processes | None = None,
    track: Sequence[str] = (),
    parent: int | None = None,
) -> RunResult:
    """Train in ``run``, writing checkpoints, dense rollouts, metrics and states as it goes.

    With ``resume``, continue from the run's last state, or from the start where there is none yet. Return after the
    last iteration or an interruption: by a signal, or by the end of the process ``parent`` that started this one.
    ``track`` names trackers beside TensorBoard.

    Raises:
        ResumeError: ``config`` is not the run's. RunFileError: another process trains it, or a file cannot be used.
        NumbersError: something was not finite; what was saved before stays.
    """
    processes = processes or Processes()
    end = None if config.train.infinite_episodes else config.train.num_episodes
    with ExitStack() as stack:
        if processes.is_first:
            run.check_links()
            remedy = "wait until it ends, or stop it"
            lock = run.state_path.with_name("lock")
            stack.enter_context(locked(lock, run.path, "is trained by another process", remedy, PATIENCE))
            sweep(run.path)
        state = processes.shared(lambda: resumable_state(run, config) if resume else None)
        if state and state["iteration"] == end:
            done = int(state["iteration"])
            if processes.is_first:
                run.write_status("finished", done)
            return RunResult(run, "finished", done, done, 0.0, {})
        trainer = RbcTrainer(config, backend, processes=processes)
        stack.callback(trainer.graceful_close)
        start = continue_from(trainer, state) if state else 0
        trackers: list[Tracker] = []
        if processes.is_first:
            kept = restore_metrics(run, state)
            if resume:
                if not quiet:
                    length = "" if end is None else f" of {end}"
                    print(f"{printable(str(run.path))}: goes on after {start}{length} iterations", file=sys.stderr)
                run.write_hparams(config.to_dict(with_derived=True))
            trackers = open_trackers(track, run, config, kept)
            for tracker in trackers:
                stack.callback(tracker.close)
        interrupt = Interrupt(parent)
        records = run.read_metrics() if start and not quiet and processes.is_first else []
        view = LiveView(trainer, start, end, quiet or not processes.is_first, records)
        recorder = RunRecorder(run, trainer, end, interrupt, trackers, view)
        # Not beyond the training: the recorder leads back to the trainer, and within a cycle the trainer's arrays would
        # stay until Python's next full collection, which may be hundreds of runs away.
        with trainer.under(trainer.schedule, recorder), interrupt.watching(), view:
            return _train(run, trainer, start, end, recorder)


def _train(run: RunDir, trainer: RbcTrainer, start: int, end: int | None, recorder: RunRecorder) -> RunResult:
    """Train, and keep the run's status with it."""

    def note(status: str, iteration: int, message: str = "") -> None:
        if trainer.processes.is_first:
            run.write_status(status, iteration, message)

    began = time.monotonic()
    note("running", start)
    try:
        done = trainer.train(start, end)
    except BaseException as error:
        with suppress(RunFileError):  # a full disk, say, must not hide the error
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            message = str(error) if isinstance(error, UserError) else repr(error)
            note(status, start + trainer.perf_stats.iters, message)
        if isinstance(error, NumbersError):
            kept = f"The state after {recorder.saved or start} iterations and all that was saved before it stay"
            remedy = "a resume, which keeps to the settings, would come here again: start a new run with others"
            raise NumbersError(f"{run.path}: {error}.\n{kept}; {remedy}.") from error
        raise
    status = "finished" if end is not None and done >= end else "interrupted"
    note(status, done)
    return RunResult(run, status, start, done, time.monotonic() - began, recorder.record)


def summary(result: RunResult, threads: int | None = None) -> str:
    """Return the closing words for the user: rewards, where the files are, what to do next."""
    run = result.run
    if result.status == "finished" and result.start == result.iterations:
        longer = f"{launcher('train')} --resume {run.path} --set train.num_episodes={2 * result.iterations}"
        return f"{run.path} is finished after {result.iterations} iterations\nto extend it:  {longer}"
    threads = threads or torch.get_num_threads()
    on = f"{threads} thread{'s' if threads > 1 else ''}"
    lines = [f"{result.status} after {result.iterations} iterations, {result.seconds:.0f} s on {on}"]
    if result.record:
        economy = result.record["economy"]
        lines.append(f"rewards per agent and period: {rewards_text(result.record)}")
        lines.append("means: " + "  ".join(f"{name} {economy[name]:.4g}" for name in SHOWN))
    lines.append(f"files: {run.path}  (metrics.jsonl, saved_models/, episode_*.npz, hparams.yaml)")
    if result.status == "finished":
        lines.append(f"next:  {launcher('best-response')} {run.path}")
    else:
        lines.append(f"next:  {launcher('train')} --resume {run.path}")
    return "\n".join(lines)
