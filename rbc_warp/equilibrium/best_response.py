"""How far a run's checkpoints are from an equilibrium: what anyone could gain by departing alone.

For each checkpoint and agent type, :func:`fine_tune` trains the type (or one agent of it) further against the others
as they are; fixed actions and enumerated plans (``deviations.py``, ``exact.py``) are tried where asked for. The largest
gain that any of them finds bounds the exploitability from below. ``docs/equilibrium.md`` says what each figure means.

A measurement that was stopped goes on when it is asked for again: what best_response.json holds is not repeated, and
the fine-tuning at work continues from its last state.
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from rbc_warp.config import Config
from rbc_warp.economy import curriculum
from rbc_warp.economy.parameters import AGENT_TYPES
from rbc_warp.equilibrium.exact import best_plan
from rbc_warp.equilibrium.game import (
    ENVIRONMENTS_PER_REPEAT,
    FINE_TUNING_STREAM,
    REPORT_STREAM,
    SELECTION_STREAM,
    Estimate,
    Forced,
    Game,
    Intervention,
    MostLikely,
    OwnPolicy,
    of_deviator,
    paired_gain,
    sample_of_agents,
    scan,
)
from rbc_warp.equilibrium.request import Checkpoint, Plan, Request, prepare
from rbc_warp.equilibrium.results import Record, Results
from rbc_warp.errors import ResumeError, RunFileError
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.run import RESUMABLE, continue_from, read_state, save_episode, save_state
from rbc_warp.training.learner import Learner
from rbc_warp.training.policy import Policy
from rbc_warp.training.trainer import Draw, RbcTrainer

# How often the fine-tuning looks for its best policy, unless told.
CHECKPOINTS = 10


@dataclass(frozen=True)
class Departure:
    """What further training of one type, or of one agent, led to. Rewards are per episode, (episodes,)."""

    before: np.ndarray
    after: np.ndarray
    gain: Estimate
    best_iteration: int
    """Updates after which the best policy was found; 0 where none was better than the checkpoint's."""
    selection: dict[int, float]
    """Mean reward of every candidate on the selection draws, by the number of updates."""
    seconds_per_iteration: float
    policy: Policy


@dataclass(frozen=True)
class Bookmark:
    """Keeps a fine-tuning's last state in its folder, and takes up only one that ``settings`` describe, too."""

    folder: RunDir
    config: Config
    settings: Mapping[str, Any]

    def save(self, trainer: RbcTrainer, done: int, progress: Mapping[str, Any]) -> None:
        save_state(self.folder, trainer, self.config, done, settings=dict(self.settings), progress=dict(progress))

    def read(self) -> dict[str, Any] | None:
        try:
            state = read_state(self.folder, self.config)
        except (ResumeError, RunFileError):
            state = {}
        if state is None or state.get("settings") == self.settings:
            return state
        print(f"note: {self.folder.path}: its state is of another request, or damaged; begun anew", file=sys.stderr)
        return None


def fine_tune(
    game: Game,
    agent: str,
    iterations: int,
    every: int,
    repeat: int = 0,
    index: int | None = None,
    save: Callable[[int | str, Policy], None] = lambda label, policy: None,
    bookmark: Bookmark | None = None,
) -> Departure:
    """Trains one type further, or one agent of it (``index``), while everybody else stays as in the checkpoint.

    Algorithm, learning rate and entropy weight are those of the run at this iteration; the stage stays. Every ``every``
    updates the policy becomes a candidate; the checkpoint's own policy is one too. The best on the selection draws is
    compared with the checkpoint's policy on the report draws. ``save`` gets each candidate, then the best. With a
    ``bookmark`` it goes on from the state there, and leaves one with each candidate and when one is due.
    """
    game.restore()
    trainer, config = game.trainer, game.trainer.settings
    began = max(game.iteration, getattr(config.agents, f"{agent}_training_start"))
    entropy = curriculum.entropy_coefficient(config, agent, began)
    before = of_deviator(game.baseline(repeat=repeat), agent, index)
    peers = [other for other in AGENT_TYPES if other != agent or index is not None] if game.greedy else []
    own: list[Intervention] = []
    if index is None:
        learner = trainer.learners[agent]
    else:
        departing = OwnPolicy(trainer, agent, index, copy.deepcopy(trainer.models[agent]))
        learner, own = departing.learner, [departing]
    policy = learner.policy

    def reward(stream: int) -> np.ndarray:
        return of_deviator(game.evaluate(*own, stream=stream, repeat=repeat), agent, index)

    progress: dict[str, Any] = {
        "selection": {0: float(of_deviator(game.baseline(SELECTION_STREAM, repeat), agent, index).mean())},
        "best": 0,
        "best_flat": policy.flat.detach().clone(),
        "seconds": 0.0,
    }
    start = 0
    if bookmark and (state := bookmark.read()):
        start, progress = continue_from(trainer, state), state["progress"]
        if index is not None:
            _put(learner, progress["own"])
    selection = progress["selection"]
    for done in range(start + 1, iterations + 1):
        began_at = time.monotonic()
        first = repeat * ENVIRONMENTS_PER_REPEAT
        with game.changed(*([MostLikely(trainer, peers)] if peers else []), *own):
            trainer.play(Draw(game.iteration + done, FINE_TUNING_STREAM, first_environment=first))
        trainer.update_type(agent, entropy, game.iteration + done, learner if index is not None else None, index)
        progress["seconds"] += time.monotonic() - began_at
        is_candidate = done % every == 0 or done == iterations
        if is_candidate:
            selection[done] = float(reward(SELECTION_STREAM).mean())
            save(done, policy)
            if selection[done] > selection[progress["best"]]:
                progress |= {"best": done, "best_flat": policy.flat.detach().clone()}
        if bookmark and (is_candidate or done % config.train.save_state_every == 0):
            mine = {"policy": policy.flat.detach(), "optimizer": learner.optimizer.state_dict()}
            bookmark.save(trainer, done, progress | ({} if index is None else {"own": mine}))
    with torch.no_grad():
        policy.flat.copy_(progress["best_flat"])
    save("best", policy)
    after = reward(REPORT_STREAM)
    gain = paired_gain(after, before, game.greedy)
    seconds = progress["seconds"] / iterations
    return Departure(before, after, gain, progress["best"], selection, seconds, copy.deepcopy(policy))


@torch.no_grad()
def _put(learner: Learner, kept: Mapping[str, Any]) -> None:
    """One agent's own policy and optimizer, which the trainer's state does not know."""
    learner.policy.flat.copy_(kept["policy"])
    learner.optimizer.load_state_dict(kept["optimizer"])


def run_request(request: Request) -> list[Results]:
    """Prepares, says what was chosen, measures run by run, and prints each run's tables."""
    plans = prepare(request)
    for plan in plans:
        labels = ", ".join(checkpoint.label for checkpoint in plan.checkpoints)
        print(
            f"{plan.run.path}: {', '.join(plan.agent_types)} at checkpoints {labels}, "
            f"{plan.iterations} iterations, {request.repeats} seed(s)",
            *(f"note: {note}" for note in plan.notes),
            sep="\n",
            file=sys.stderr,
        )
    results = []
    for plan in plans:
        results.append(measure(plan, request))
        print(
            f"{plan.run.path}\n\n{results[-1].summary()}\n\nfiles: {plan.run.best_response_path}, br_<type>_output.txt"
        )
    return results


def measure(plan: Plan, request: Request) -> Results:
    """Measures all that was asked of one run and is not known; files are written as results come in."""
    trainer = RbcTrainer(plan.config, request.backend)
    known = 0
    for checkpoint in plan.checkpoints:
        args = (checkpoint.iteration, request.episodes, request.greedy, checkpoint.noponzi)
        game = Game(trainer, checkpoint.policies, *args)
        steps: dict[str, list[Step]] = {}
        for agent in plan.agent_types:
            steps[agent] = []
            for step in _steps(plan, request, game, checkpoint, agent):
                if request.restart or not plan.results.hold(step.what):
                    steps[agent].append(step)
                else:
                    step.forget()
                    known += 1
        # Games share the trainer; each puts its own policies back before it plays.
        earlier: dict[str, dict[str, float]] = {agent: {} for agent in steps}
        if plan.untrained and checkpoint.iteration > 0:
            at_start = Game(trainer, plan.untrained, *args)
            for agent in steps:
                if steps[agent]:
                    earlier[agent]["training_gain"] = _reward_of(at_start, agent)
            for agent in steps:
                if steps[agent]:
                    unlearned = Game(trainer, {**checkpoint.policies, agent: plan.untrained[agent]}, *args)
                    earlier[agent]["learning_gain"] = _reward_of(unlearned, agent)
        for agent in steps:
            for step in steps[agent]:
                measures = {name: _reward_of(game, agent) - reward for name, reward in earlier[agent].items()}
                record = step.measure()
                plan.results.add(record.compared_with(**measures))
                plan.results.write(plan.run)
                step.forget()
                if not request.quiet:
                    print(f"{plan.run.path.name}: {record.line()}", file=sys.stderr)
    if known:
        print(f"{plan.run.path}: {known} known from before; --restart measures them again", file=sys.stderr)
    return plan.results


def _reward_of(game: Game, agent: str) -> float:
    return float(game.baseline()[agent].mean())


@dataclass(frozen=True)
class Step:
    """One departure to measure. ``what``: the fields of its record that say which one, and under what settings."""

    what: dict[str, Any]
    measure: Callable[[], Record]
    folder: RunDir | None = None
    """Where it leaves its state while it is not finished."""

    def forget(self) -> None:
        """Its record is written: its state is not needed any more."""
        if self.folder:
            self.folder.remove_state()


def _steps(plan: Plan, request: Request, game: Game, checkpoint: Checkpoint, agent: str) -> list[Step]:
    """All that was asked of one type at one checkpoint, in order. Each puts back what the one before changed."""
    count = game.economy.num_agents[agent]
    chosen: list[int | None] = [None]
    if agent != "government":
        chosen = list(dict.fromkeys(request.agents or sample_of_agents(count)))
    settings = {
        "overrides": list(request.overrides),
        "episodes": request.episodes,
        "precision": str(game.trainer.precision).removeprefix("torch."),
        "game": _fingerprint(plan.config, checkpoint),
    }
    common = {
        "checkpoint": checkpoint.label,
        "iteration": checkpoint.iteration,
        "agent": agent,
        "greedy": request.greedy,
    }

    def what(method: str, index: int | None = None, repeat: int = 0, **more: int) -> dict[str, Any]:
        return {**common, "method": method, "index": index, "repeat": repeat, "settings": {**settings, **more}}

    if not game.has_choice(agent):
        return [Step(stuck := what("fixed"), partial(_without_choice, game, stuck))]
    steps = []
    every = request.checkpoint_every or max(1, plan.iterations // CHECKPOINTS)
    for index in chosen if request.individual else [None]:
        for repeat in range(request.repeats):
            tuned = what("fine-tuned", index, repeat, iterations=plan.iterations, every=every)
            folder = result_folder(plan.run, agent, checkpoint.label, repeat, index, game.greedy)
            steps.append(Step(tuned, partial(_fine_tuned, plan, request, game, folder, tuned), folder))
    if request.scan:
        # All firms at once, too: that is what the type's fine-tuning is compared with.
        for index in [None, *chosen] if agent == "firm" and count > 1 else chosen:
            fixed = what("fixed", index)
            steps.append(Step(fixed, partial(_scanned, plan, game, fixed)))
    sizes = np.prod(np.array(game.economy.head_sizes[agent], dtype=object))
    if request.max_plans is not None and sizes <= request.max_plans:
        for index in chosen:
            planned = what("planned", index, plans=request.max_plans)
            steps.append(Step(planned, partial(_planned, request.max_plans, game, planned)))
    return steps


def _fingerprint(config: Config, checkpoint: Checkpoint) -> str:
    """Of all that decides how a checkpoint's agents play: configuration, policies, prices of final debt."""
    sections = config.to_dict()
    # The resumable ones say how far a run goes and what it leaves; the other two are settings of their own.
    free = {*RESUMABLE, "precision", "best_response_episodes"}
    train = {key: value for key, value in sections["train"].items() if key not in free}
    text = json.dumps([sections["agents"], sections["world"], train, checkpoint.noponzi], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for agent in AGENT_TYPES:
        digest.update(checkpoint.policies[agent].flat.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _interval(gain: Estimate) -> dict[str, Any]:
    return {"gain": gain.mean, "low": gain.low, "high": gain.high}


def _without_choice(game: Game, what: Mapping[str, Any]) -> Record:
    return Record.without_choice(game.baseline()[what["agent"]].mean(axis=1), **what)


def _fine_tuned(plan: Plan, request: Request, game: Game, folder: RunDir, what: Mapping[str, Any]) -> Record:
    agent, index, repeat, settings = (what[name] for name in ("agent", "index", "repeat", "settings"))
    iterations = settings["iterations"]
    if request.restart:
        folder.remove_state()

    def save(label: int | str, policy: Policy) -> None:
        folder.save_policy(agent, label, policy.state_dict())

    bookmark = Bookmark(folder, plan.config, settings)
    departure = fine_tune(game, agent, iterations, settings["every"], repeat, index, save, bookmark)
    save("latest", departure.policy)
    if index is None and repeat == 0:
        for other in plan.agent_types:
            if other != agent:
                folder.save_policy(other, "latest", game.policies[other].state_dict())
        game.trainer.play(Draw(game.iteration, greedy=game.greedy, stream=REPORT_STREAM), keep_consumption=True)
        save_episode(folder, game.trainer, "final")
    selection = departure.selection
    return Record(
        found=f"update {departure.best_iteration} of {iterations}",
        before=float(departure.before.mean()),
        after=float(departure.after.mean()),
        before_std=float(departure.before.std()),
        after_std=float(departure.after.std()),
        seconds_per_iteration=departure.seconds_per_iteration,
        details={
            "best_iteration": departure.best_iteration,
            "selection": selection,
            "last_gain_on_selection_draws": selection[iterations] - selection[0],
            "folder": str(folder.path.relative_to(plan.run.path)),
        },
        **_interval(departure.gain),
        **what,
    )


def _scanned(plan: Plan, game: Game, what: Mapping[str, Any]) -> Record:
    """The best fixed action; all that were tried go to the scans."""
    game.restore()
    found = scan(game, what["agent"], what["index"])
    place = {name: what[name] for name in ("checkpoint", "iteration", "agent", "greedy", "settings", "index")}
    plan.results.add_scan({**place, "gains": found.gains, "rewards": found.rewards})
    after = found.before + found.gain.mean
    return Record(found=found.best.name, before=found.before, after=after, **_interval(found.gain), **what)


def _planned(max_plans: int, game: Game, what: Mapping[str, Any]) -> Record:
    """The best plan against deterministic play; in a game of drawn actions, what that plan gains there."""
    game.restore()
    agent, index = what["agent"], what["index"]
    best = best_plan(game, agent, index, max_plans)
    details = {
        "actions": best.actions.tolist(),
        "plans": best.num_plans,
        "periods": best.num_periods,
        "is_exact": best.is_exact,
        "deterministic_before": best.before,
        "deterministic_gain": best.gain,
    }
    plan = Forced(agent, None if index is None else [index], best.actions[None])
    before = of_deviator(game.baseline(), agent, index)
    after = of_deviator(game.evaluate(plan), agent, index)
    found = f"best of {best.num_plans} plans of {best.num_periods} periods{', exact' if best.is_exact else ''}"
    return Record(
        found=found, before=float(before.mean()), after=float(after.mean()), details=details,
        **_interval(paired_gain(after, before, game.greedy)), **what,
    )  # fmt: skip


def result_folder(run: RunDir, agent: str, label: str, repeat: int, index: int | None, greedy: bool) -> RunDir:
    """Where a fine-tuning's files go: ``br<type>/`` for the latest checkpoint's first, else a folder of its own."""
    base = run.best_response(agent)
    if label == "latest" and repeat == 0 and index is None and not greedy:
        return base
    path = base.path / f"ep_{label}" / f"{'greedy_' if greedy else ''}seed_{repeat}"
    return RunDir(path if index is None else path / f"agent_{index}", must_exist=False)
