"""How far a run's checkpoints are from an equilibrium: what anyone could gain by departing alone.

For each checkpoint and agent type, :func:`fine_tune` trains the type (or one agent of it) further against the others
as they are; fixed actions and enumerated plans (``deviations.py``, ``exact.py``) are tried where asked for. The largest
gain that any of them finds bounds the exploitability from below. ``docs/equilibrium.md`` says what each figure means.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rbc_warp import curriculum
from rbc_warp.best_response_request import Checkpoint, Plan, Request, prepare
from rbc_warp.best_response_results import Record, Results
from rbc_warp.deviations import (
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
from rbc_warp.economy import AGENT_TYPES
from rbc_warp.exact import best_plan
from rbc_warp.policies import Policy
from rbc_warp.run import save_episode
from rbc_warp.rundir import RunDir
from rbc_warp.trainer import Draw, RbcTrainer

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


def fine_tune(
    game: Game,
    agent: str,
    iterations: int,
    every: int,
    repeat: int = 0,
    index: int | None = None,
    save: Callable[[int | str, Policy], None] = lambda label, policy: None,
) -> Departure:
    """Trains one type further, or one agent of it (``index``), while everybody else stays as in the checkpoint.

    Algorithm, learning rate and entropy weight are those of the run at this iteration; the stage stays. Every ``every``
    updates the policy becomes a candidate; the checkpoint's own policy is one too. The best on the selection draws is
    compared with the checkpoint's policy on the report draws. ``save`` gets each candidate, then the best.
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

    selection = {0: float(of_deviator(game.baseline(SELECTION_STREAM, repeat), agent, index).mean())}
    best, best_flat = 0, policy.flat.detach().clone()
    seconds = 0.0
    for done in range(1, iterations + 1):
        start = time.monotonic()
        first = repeat * ENVIRONMENTS_PER_REPEAT
        with game.changed(*([MostLikely(trainer, peers)] if peers else []), *own):
            trainer.play(Draw(game.iteration + done, FINE_TUNING_STREAM, first_environment=first))
        trainer.update_type(agent, entropy, game.iteration + done, learner if index is not None else None, index)
        seconds += time.monotonic() - start
        if done % every == 0 or done == iterations:
            selection[done] = float(reward(SELECTION_STREAM).mean())
            save(done, policy)
            if selection[done] > selection[best]:
                best, best_flat = done, policy.flat.detach().clone()
    with torch.no_grad():
        policy.flat.copy_(best_flat)
    save("best", policy)
    after = reward(REPORT_STREAM)
    gain = paired_gain(after, before, game.greedy)
    return Departure(before, after, gain, best, selection, seconds / iterations, copy.deepcopy(policy))


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
    """Measures all that was asked of one run; files are written as results come in."""
    trainer = RbcTrainer(plan.config, request.backend)
    for checkpoint in plan.checkpoints:
        args = (checkpoint.iteration, request.episodes, request.greedy, checkpoint.noponzi)
        earlier: dict[str, dict[str, float]] = {}
        if plan.untrained and checkpoint.iteration > 0:
            at_start = Game(trainer, plan.untrained, *args)
            for agent in plan.agent_types:  # before the next game takes over the trainer
                earlier[agent] = {"training_gain": _reward_of(at_start, agent)}
            for agent in plan.agent_types:
                unlearned = Game(trainer, {**checkpoint.policies, agent: plan.untrained[agent]}, *args)
                earlier[agent]["learning_gain"] = _reward_of(unlearned, agent)
        game = Game(trainer, checkpoint.policies, *args)
        for agent in plan.agent_types:
            now = _reward_of(game, agent)
            measures = {name: now - reward for name, reward in earlier.get(agent, {}).items()}
            for record in _departures(plan, request, game, checkpoint, agent):
                plan.results.add(record.compared_with(**measures))
                plan.results.write(plan.run)
                if not request.quiet:
                    print(f"{plan.run.path.name}: {record.line()}", file=sys.stderr)
    return plan.results


def _reward_of(game: Game, agent: str) -> float:
    return float(game.baseline()[agent].mean())


def _departures(plan: Plan, request: Request, game: Game, checkpoint: Checkpoint, agent: str) -> Iterator[Record]:
    """All that was asked of one type at one checkpoint, result by result."""
    count = game.economy.num_agents[agent]
    chosen: list[int | None] = [None]
    if agent != "government":
        chosen = list(dict.fromkeys(request.agents or sample_of_agents(count)))
    common: dict[str, Any] = {
        "checkpoint": checkpoint.label,
        "iteration": checkpoint.iteration,
        "agent": agent,
        "greedy": request.greedy,
        "settings": {"overrides": list(request.overrides), "episodes": request.episodes},
    }
    if not game.has_choice(agent):
        yield Record.without_choice(game.baseline()[agent].mean(axis=1), **common)
        return
    for index in chosen if request.individual else [None]:
        for repeat in range(request.repeats):
            yield _fine_tuned(plan, request, game, common, index, repeat)
    game.restore()
    if request.scan:
        # All firms at once, too: that is what the type's fine-tuning is compared with.
        for index in [None, *chosen] if agent == "firm" and count > 1 else chosen:
            found = scan(game, agent, index)
            plan.results.add_scan({**common, "index": index, "gains": found.gains, "rewards": found.rewards})
            after = found.before + found.gain.mean
            yield Record(
                method="fixed", index=index, found=found.best.name, before=found.before, after=after,
                **_interval(found.gain), **common,
            )  # fmt: skip
    sizes = np.prod(np.array(game.economy.head_sizes[agent], dtype=object))
    if request.max_plans is not None and sizes <= request.max_plans:
        for index in chosen:
            yield _planned(request.max_plans, game, common, index)


def _interval(gain: Estimate) -> dict[str, Any]:
    return {"gain": gain.mean, "low": gain.low, "high": gain.high}


def _fine_tuned(
    plan: Plan, request: Request, game: Game, common: Mapping[str, Any], index: int | None, repeat: int
) -> Record:
    agent, iterations = common["agent"], plan.iterations
    every = request.checkpoint_every or max(1, iterations // CHECKPOINTS)
    folder = result_folder(plan.run, agent, common["checkpoint"], repeat, index, game.greedy)

    def save(label: int | str, policy: Policy) -> None:
        folder.save_policy(agent, label, policy.state_dict())

    departure = fine_tune(game, agent, iterations, every, repeat, index, save)
    save("latest", departure.policy)
    if index is None and repeat == 0:
        for other in plan.agent_types:
            if other != agent:
                folder.save_policy(other, "latest", game.policies[other].state_dict())
        game.trainer.play(Draw(game.iteration, greedy=game.greedy, stream=REPORT_STREAM), keep_consumption=True)
        save_episode(folder, game.trainer, "final")
    selection = departure.selection
    return Record(
        method="fine-tuned",
        index=index,
        repeat=repeat,
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
        **{**common, "settings": {**common["settings"], "iterations": iterations, "every": every}},
    )


def _planned(max_plans: int, game: Game, common: Mapping[str, Any], index: int | None) -> Record:
    """The best plan against deterministic play; in a game of drawn actions, what that plan gains there."""
    agent = common["agent"]
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
        method="planned", index=index, found=found, before=float(before.mean()), after=float(after.mean()),
        details=details, **_interval(paired_gain(after, before, game.greedy)), **common,
    )  # fmt: skip


def result_folder(run: RunDir, agent: str, label: str, repeat: int, index: int | None, greedy: bool) -> RunDir:
    """Where a fine-tuning's files go: ``br<type>/`` for the latest checkpoint's first, else a folder of its own."""
    base = run.best_response(agent)
    if label == "latest" and repeat == 0 and index is None and not greedy:
        return base
    path = base.path / f"ep_{label}" / f"{'greedy_' if greedy else ''}seed_{repeat}"
    return RunDir(path if index is None else path / f"agent_{index}", must_exist=False)
