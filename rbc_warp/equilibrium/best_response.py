"""The distance of a run's checkpoints from an equilibrium: the gain from deviating alone.

For each checkpoint and agent type, :func:`fine_tune` trains the type (or one agent of it) further against the others
as they are; fixed actions and enumerated plans (``deviations.py``, ``exact.py``) are tried where asked for. The largest
gain that any of them finds bounds the exploitability from below. ``docs/equilibrium.md`` says what each figure means.

A measurement that was stopped goes on when it is asked for again: what best_response.json holds is not repeated, and
the fine-tuning at work continues from its last state.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from rbc_warp.config import Config, load_config
from rbc_warp.config.temporary import sweep
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.parameters import Economy
from rbc_warp.equilibrium.deviations import scan
from rbc_warp.equilibrium.exact import best_plan
from rbc_warp.equilibrium.fine_tuning import ResumeState, fine_tune
from rbc_warp.equilibrium.game import (
    REPORT_STREAM,
    Estimate,
    Forced,
    Gained,
    Game,
    of_deviator,
    paired_gain,
    sample_of_agents,
)
from rbc_warp.equilibrium.request import Checkpoint, Plan, Request, prepare
from rbc_warp.equilibrium.results import FINE_TUNED, Record, Results
from rbc_warp.equilibrium.rules import best_rule
from rbc_warp.equilibrium.verdict import QUICK, Candidate, Effort, Verdict, environments_for, judge
from rbc_warp.errors import RunFileError, printable
from rbc_warp.runs.console import ProgressBar
from rbc_warp.runs.folder import RunDir
from rbc_warp.runs.locks import LONG, locked
from rbc_warp.runs.recorder import save_episode
from rbc_warp.runs.resume import RESUMABLE
from rbc_warp.training.policy import Policy
from rbc_warp.training.recorder import Recorder
from rbc_warp.training.rollout import Draw
from rbc_warp.training.trainer import RbcTrainer

Advance = Callable[[int], None]
# How often the fine-tuning looks for its best policy, unless told.
CHECKPOINTS = 10


def run_request(request: Request) -> list[Results]:
    """Prepare, say what was chosen, measure run by run, and print each run's tables."""
    plans = prepare(request)
    for plan in plans:
        labels = ", ".join(checkpoint.label for checkpoint in plan.checkpoints)
        print(
            f"{printable(str(plan.run.path))}: {', '.join(plan.agent_types)} at checkpoints {labels}, "
            f"{plan.iterations} iterations, {request.repeats} seed(s)",
            *(f"note: {printable(note)}" for note in plan.notes),
            sep="\n",
            file=sys.stderr,
        )
    results = []
    for plan in plans:
        results.append(measure(plan, request))
        words = [results[-1].summary()]
        if plan.effort is not None:
            *earlier, last = sorted(plan.checkpoints, key=lambda checkpoint: checkpoint.iteration)
            for checkpoint in earlier if request.verdict else []:  # asked for: of every checkpoint
                verdict = judged(plan, checkpoint, plan.effort, request)
                words.append(f"checkpoint {checkpoint.label}: {verdict.sentence()}")
            words.insert(0, told(judged(plan, last, plan.effort, request)))
        files = f"files: {plan.run.best_response_path}, br_<type>_output.txt"
        print("\n\n".join([str(plan.run.path), *words, files]))
    return results


def quick_verdict(run: RunDir, backend: str = "auto", quiet: bool = False) -> str:
    """Judge a run's latest checkpoint by a quick search; keep the verdict and return it in words."""
    request = Request(run.path, labels=("latest",), verdict=QUICK.name, backend=backend, quiet=quiet)
    (plan,) = prepare(request)
    return told(judged(plan, plan.checkpoints[0], QUICK, request))


def told(verdict: Verdict) -> str:
    """Return a verdict in words, and what to look at where it is not passed."""
    failed = [f"look at: {found.who}, {found.how}" for found in verdict.largest.values() if not found.passed]
    return "\n".join([verdict.sentence(), *failed])


def judged(plan: Plan, checkpoint: Checkpoint, effort: Effort, request: Request) -> Verdict:
    """Judge a checkpoint by all single agents' deviations and by its fine-tuned types; keep the verdict."""
    batch = environments_for(sum(agent.count for agent in Economy.from_config(plan.config).agents.values()))
    trainer = RbcTrainer(load_config(plan.config, [f"train.batch_size={batch}"]), request.backend, recorder=Recorder())
    game = Game(trainer, checkpoint.policies, checkpoint.iteration, multipliers=checkpoint.multipliers)
    played = _fingerprint(plan.config, checkpoint)
    tuned: dict[str, list[Candidate]] = {agent: [] for agent in plan.agent_types}
    for record in plan.results.records:
        if record.agent in tuned and not record.greedy and record.settings.get("game") == played:
            estimate = Estimate(record.gain, record.low, record.high)
            how = f"{record.method}, {record.found}"
            tuned[record.agent].append(Candidate(estimate, record.settings["episodes"], record.deviator, how))
    verdict = judge(game, plan.untrained, plan.agent_types, checkpoint.label, effort, tuned, request.quiet)
    trainer.graceful_close()
    with plan.results.updating(plan.run):
        plan.results.add_verdict(verdict.to_dict())
    return verdict


def measure(plan: Plan, request: Request) -> Results:
    """Measure all that was asked of one run and is not known; files are written as results come in."""
    sweep(plan.run.path)
    trainer = RbcTrainer(plan.config, request.backend)
    known = 0
    for checkpoint in plan.checkpoints:
        args = (checkpoint.iteration, request.episodes, request.greedy, checkpoint.multipliers)
        game = Game(trainer, checkpoint.policies, *args)
        steps: dict[str, list[Step]] = {}
        for agent in plan.agent_types:
            steps[agent] = []
            for step in _steps(plan, request, game, checkpoint, agent):
                if request.restart or not plan.results.hold(step.what):
                    steps[agent].append(step)
                else:
                    step.tidy()
                    known += 1
        wanted = [agent for agent in steps if steps[agent]]
        gained: dict[str, Gained] = {}
        if plan.untrained and checkpoint.iteration > 0 and wanted:
            gained = game.gained(plan.untrained, wanted, game.num_episodes)
        updates = sum(step.updates for of_type in steps.values() for step in of_type)
        with ProgressBar(updates, quiet=request.quiet or not updates) as bar:
            for agent in steps:
                bar.show(f"checkpoint {checkpoint.label}, {agent}")
                for step in steps[agent]:
                    with step.claimed():
                        plan.results.refresh(plan.run)  # another process may have measured it meanwhile
                        if not request.restart and plan.results.hold(step.what):
                            known += 1
                            continue
                        record = step.measure(bar.advance).compared_with(gained.get(agent))
                        with plan.results.updating(plan.run):
                            plan.results.add(record)
                        step.forget()
                    if not request.quiet:
                        print(f"{plan.run.path.name}: {record.line()}", file=sys.stderr)
    if known:
        print(f"{plan.run.path}: {known} known from before; --restart measures them again", file=sys.stderr)
    return plan.results


@dataclass(frozen=True)
class Step:
    """One deviation to measure. ``what``: the fields of its record that say which one, and under what settings."""

    what: dict[str, Any]
    measure: Callable[[Advance], Record]
    folder: RunDir | None = None  #: Folder of its state while it is not finished.
    updates: int = 0  #: Of a fine-tuning; it tells an :data:`Advance` of each.

    @contextmanager
    def claimed(self, patience: float = LONG) -> Iterator[None]:
        """Let no other process write into its folder meanwhile."""
        if self.folder is None:
            yield
            return
        path, remedy = self.folder.path, "wait until it ends, or stop it"
        with locked(path / "lock", path, "another process fine-tunes into this folder", remedy, patience):
            yield

    def tidy(self) -> None:
        """Its record was written before: a state that is left is nobody's, unless another process is at work there."""
        if self.folder and self.folder.has_state:
            with suppress(RunFileError), self.claimed(patience=0.0):
                self.forget()

    def forget(self) -> None:
        """Its record is written: its state is not needed any more."""
        if self.folder:
            self.folder.remove_state()


def _steps(plan: Plan, request: Request, game: Game, checkpoint: Checkpoint, agent: str) -> list[Step]:
    """All that was asked of one type at one checkpoint, in order. Each puts back what the one before changed."""
    count = game.economy.agents[agent].count
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
            tuned = what(FINE_TUNED[request.fresh], index, repeat, iterations=plan.iterations, every=every)
            folder = result_folder(plan.run, agent, checkpoint.label, repeat, index, game.greedy, request.fresh)
            measured = partial(_fine_tuned, plan, request, game, folder, tuned)
            steps.append(Step(tuned, measured, folder, plan.iterations))
    if request.scan:
        # All firms at once, too: that is what the type's fine-tuning is compared with.
        for index in [None, *chosen] if agent == "firm" and count > 1 else chosen:
            fixed = what("fixed", index)
            steps.append(Step(fixed, partial(_scanned, plan, game, fixed)))
    if request.rules is not None:
        for index in chosen:
            ruled = what("rule", index, rules=request.rules)
            steps.append(Step(ruled, partial(_ruled, request.rules, game, ruled)))
    if request.max_plans is not None and game.economy.agents[agent].num_joint_actions <= request.max_plans:
        for index in chosen:
            planned = what("planned", index, plans=request.max_plans)
            steps.append(Step(planned, partial(_planned, request.max_plans, game, planned)))
    return steps


def _fingerprint(config: Config, checkpoint: Checkpoint) -> str:
    """Of all that decides how a checkpoint's agents play: configuration, policies, multipliers on final debt."""
    sections = config.to_dict()
    # The resumable ones say how far a run goes and what it leaves; the other two are settings of their own.
    free = {*RESUMABLE, "precision", "best_response_episodes"}
    train = {key: value for key, value in sections["train"].items() if key not in free}
    text = json.dumps([sections["agents"], sections["world"], train, checkpoint.multipliers], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for agent in AGENT_TYPES:
        digest.update(checkpoint.policies[agent].flat.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _interval(gain: Estimate) -> dict[str, Any]:
    return {"gain": gain.mean, "low": gain.low, "high": gain.high}


def _without_choice(game: Game, what: Mapping[str, Any], advance: Advance) -> Record:
    return Record.without_choice(game.baseline()[what["agent"]].mean(axis=1), **what)


def _fine_tuned(
    plan: Plan, request: Request, game: Game, folder: RunDir, what: Mapping[str, Any], advance: Advance
) -> Record:
    agent, index, repeat, settings = (what[name] for name in ("agent", "index", "repeat", "settings"))
    iterations = settings["iterations"]
    if request.restart:
        folder.remove_state()

    def save(label: int | str, policy: Policy) -> None:
        folder.save_policy(agent, label, policy.state_dict())

    resume = ResumeState(folder, plan.config, settings)
    first = plan.untrained[agent] if request.fresh and plan.untrained else None
    tuned = fine_tune(game, agent, iterations, settings["every"], repeat, index, save, resume, advance, first)
    save("latest", tuned.policy)
    if index is None and repeat == 0:
        for other in plan.agent_types:
            if other != agent:
                folder.save_policy(other, "latest", game.policies[other].state_dict())
        game.trainer.play(Draw(game.iteration, greedy=game.greedy, stream=REPORT_STREAM), keep_consumption=True)
        save_episode(folder, game.trainer, "final")
    selection = tuned.selection
    return Record(
        found=f"update {tuned.best_iteration} of {iterations}",
        before=float(tuned.before.mean()),
        after=float(tuned.after.mean()),
        before_std=float(tuned.before.std()),
        after_std=float(tuned.after.std()),
        seconds_per_iteration=tuned.seconds_per_iteration,
        details={
            "best_iteration": tuned.best_iteration,
            "selection": selection,
            "last_gain_on_selection_draws": selection[iterations] - selection[0],
            "folder": str(folder.path.relative_to(plan.run.path)),
        },
        **_interval(tuned.gain),
        **what,
    )


def _scanned(plan: Plan, game: Game, what: Mapping[str, Any], advance: Advance) -> Record:
    """Measure the best constant action; all that were tried go to the scans."""
    game.restore()
    found = scan(game, what["agent"], what["index"])
    place = {name: what[name] for name in ("checkpoint", "iteration", "agent", "greedy", "settings", "index")}
    gains = {
        "gains": {name: gain.mean for name, gain in found.gains.items()},
        "low": {name: gain.low for name, gain in found.gains.items()},
        "high": {name: gain.high for name, gain in found.gains.items()},
    }
    with plan.results.updating(plan.run):
        plan.results.add_scan({**place, **gains, "rewards": found.rewards})
    best = found.found
    after = best.before + best.gain.mean
    return Record(found=best.deviation.name, before=best.before, after=after, **_interval(best.gain), **what)


def _planned(max_plans: int, game: Game, what: Mapping[str, Any], advance: Advance) -> Record:
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


def _ruled(episodes: int, game: Game, what: Mapping[str, Any], advance: Advance) -> Record:
    """The best feedback rule that a search against drawn play finds for one agent."""
    game.restore()
    best = best_rule(game, what["agent"], what["index"], episodes, game.num_episodes)
    after = best.before + best.gain.mean
    return Record(found=best.rule.name, before=best.before, after=after, **_interval(best.gain), **what)


def result_folder(
    run: RunDir, agent: str, label: str, repeat: int, index: int | None, greedy: bool, fresh: bool = False
) -> RunDir:
    """Return the folder of a fine-tuning: ``br<type>/`` for the latest checkpoint's first, else one of its own."""
    base = run.best_response(agent)
    if label == "latest" and repeat == 0 and index is None and not greedy and not fresh:
        return base
    parts = [f"ep_{label}", f"{'greedy_' if greedy else ''}{'fresh_' if fresh else ''}seed_{repeat}"]
    return base.inside(*parts, *([] if index is None else [f"agent_{index}"]))
