"""A best-response measurement as it is asked for: everything is read and checked before anything is written."""

from dataclasses import dataclass
from pathlib import Path

from rbc_warp.config import Config, load_config
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.parameters import Economy
from rbc_warp.equilibrium.game import ENVIRONMENTS_PER_REPEAT
from rbc_warp.equilibrium.results import Results
from rbc_warp.equilibrium.verdict import EFFORTS, FULL, QUICK, Effort
from rbc_warp.errors import ConfigError, RunFileError
from rbc_warp.runs.folder import RunDir, find_runs, newest_finished_run
from rbc_warp.runs.resume import read_state
from rbc_warp.runs.run import load_policies
from rbc_warp.training.policy import Policy

MAX_REPEATS, MAX_ITERATIONS = 2000, 10_000_000
MAX_PLANS = 10_000_000
"""Plans that are enumerated at most: each is an episode."""
LONG_RUN = 500_000
"""Environment steps of training that take longer than a full search."""


@dataclass(frozen=True)
class Request:
    """The measurement that is wanted. The defaults are those of the command line."""

    run_dir: Path | None = None
    experiment_dir: Path | None = None
    iterations: int | None = None  #: Of fine-tuning; None takes ``train.best_response_episodes``.
    labels: tuple[str, ...] | None = None  #: Checkpoints; None takes the first, the middle and the last.
    agent_type: str = "all"
    repeats: int = 1
    checkpoint_every: int | None = None
    """Iterations between the policies that compete for the best; None makes ten of them."""
    individual: bool = False  #: One agent deviates, instead of its whole type.
    fresh: bool = False  #: Fine-tuning starts from the policies of checkpoint 0.
    agents: tuple[int, ...] | None = None  #: Agents that deviate alone; None takes ten of each type, spread evenly.
    scan: bool = False
    max_plans: int | None = None  #: Largest number of plans to enumerate; None enumerates none.
    rules: int | None = None
    """Episodes of each action and period in a search for feedback rules of single agents; None searches none."""
    greedy: bool = False  #: Everybody else takes the most likely action.
    episodes: int = 512
    backend: str = "auto"
    overrides: tuple[str, ...] = ()
    quiet: bool = False
    verdict: str | None = None
    """How far every single agent's deviations are searched at the last checkpoint: a name of EFFORTS, or 'none'. None:
    as suits the length of the run, where all types are measured at its latest checkpoint as they play."""
    restart: bool = False  #: Measures again what is known, and begins anew what was begun.


@dataclass(frozen=True)
class Checkpoint:
    """Policies by type, the label of their files, and the iteration they were played at."""

    label: str
    iteration: int
    policies: dict[str, Policy]
    multipliers: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """A run that was found sound, and what to measure of it."""

    run: RunDir
    config: Config
    checkpoints: list[Checkpoint]
    untrained: dict[str, Policy] | None  #: Policies of checkpoint 0, None where the run does not have it.
    agent_types: list[str]
    iterations: int
    results: Results
    effort: Effort | None  #: Of the verdict; None: there is to be none.
    notes: list[str]


def prepare(request: Request) -> list[Plan]:
    """Open every run and checkpoint asked for. Raises ConfigError or RunFileError at the first that cannot be used."""
    for name, value, most in (
        ("NUM_EPISODES", request.iterations, MAX_ITERATIONS),
        ("--repeat-runs", request.repeats, MAX_REPEATS),
        ("--checkpoint-model", request.checkpoint_every, MAX_ITERATIONS),
        ("--eval-episodes", request.episodes, ENVIRONMENTS_PER_REPEAT),
        ("--exact", request.max_plans, MAX_PLANS),
        ("--rules", request.rules, ENVIRONMENTS_PER_REPEAT),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"{name} {value} is not a positive number; give 1 to {most}")
        if value is not None and value > most:
            raise ConfigError(f"{name} {value} is too many; give 1 to {most}")
    if request.verdict in EFFORTS and request.greedy:
        raise ConfigError("--verdict judges play that is drawn, --greedy the most likely play; give one of them")
    if request.rules is not None and request.greedy:
        raise ConfigError("--rules searches against drawn play, --greedy is the most likely play; give one of them")
    if request.run_dir is not None and request.experiment_dir is not None:
        raise ConfigError("give either ROLLOUT_DIR or --experiment-dir, not both")
    if request.experiment_dir is not None:
        runs = find_runs(request.experiment_dir)
        if not runs:
            raise RunFileError(request.experiment_dir, "holds no runs", "give the folder that holds rollout-… folders")
    else:
        runs = [RunDir(request.run_dir) if request.run_dir else newest_finished_run("experiment")]
    return [_prepare_run(run, request) for run in runs]


def _prepare_run(run: RunDir, request: Request) -> Plan:
    run.check_links()
    config = load_config(run.hparams_path, list(request.overrides))
    economy = Economy.from_config(config)
    learning = [name for name, agent in economy.agents.items() if not agent.is_frozen]
    wanted = list(AGENT_TYPES) if request.agent_type == "all" else [request.agent_type]
    types = [agent for agent in wanted if agent in learning]
    notes = [f"{agent}: frozen in this run, left out" for agent in wanted if agent not in learning]
    if not types:
        raise ConfigError(f"{run.path}: {', '.join(notes)}; choose another --agent-type")
    for agent in types:
        outside = [index for index in request.agents or () if not 0 <= index < economy.agents[agent].count]
        if outside and (agent != "government" or types == ["government"]):
            raise ConfigError(
                f"--agents {outside[0]}: the run has {agent} 0 to {economy.agents[agent].count - 1}; "
                "name others, or one --agent-type"
            )
    labels = list(request.labels) if request.labels is not None else _first_middle_last(run)
    checkpoints = []
    for label in dict.fromkeys(labels):
        if not label.isdecimal() and label != "latest":
            raise ConfigError(f"--ep-strs {label!r} is no checkpoint; give iterations (digits) or 'latest'")
        missing = [path for agent in learning if not (path := run.policy_path(agent, label)).exists()]
        if missing:
            notes.append(f"checkpoint {label}: left out, there is no {missing[0].name}")
        else:
            checkpoints.append(open_checkpoint(run, config, label, notes))
    if not checkpoints:
        whole = [
            label
            for label in run.labels(learning[0])
            if all(run.policy_path(agent, label).exists() for agent in learning)
        ]
        remedy = f"it has: {', '.join(whole)}" if whole else "it has none with a file for each type: copy the whole run"
        raise RunFileError(run.saved_models_path, f"holds none of the checkpoints {', '.join(labels)}", remedy)
    has_start = all(run.policy_path(agent, 0).exists() for agent in learning)
    if not has_start:
        notes.append("no checkpoint 0: gains are not given in percent of the training gain")
    if request.fresh and not has_start:
        remedy = "leave --fresh out, or use a run that has it"
        raise RunFileError(run.saved_models_path, "holds no checkpoint 0 for --fresh to start from", remedy)
    if request.max_plans is not None:
        _check_plans(config, request, types, notes)
    results = Results.read(run, last_iteration(run, config))
    return Plan(
        run,
        config,
        checkpoints,
        load_policies(run, config, 0) if has_start else None,
        types,
        request.iterations or config.train.best_response_episodes,
        results,
        _effort(config, request, checkpoints),
        notes,
    )


def _effort(config: Config, request: Request, checkpoints: list[Checkpoint]) -> Effort | None:
    """How far to search for the verdict."""
    if request.verdict is not None:
        return EFFORTS.get(request.verdict)
    whole = request.agent_type == "all" and not request.individual and not request.greedy
    last = max(checkpoints, key=lambda checkpoint: checkpoint.iteration)
    if not whole or last.label != "latest":
        return None
    return FULL if is_long(config, last.iteration) else QUICK


def is_long(config: Config, iterations: int) -> bool:
    """Return whether a full search takes less time than so many iterations of training."""
    return iterations * config.train.batch_size * config.world.maxtime >= LONG_RUN


def open_checkpoint(run: RunDir, config: Config, label: str, notes: list[str]) -> Checkpoint:
    """A checkpoint's policies and stage; ``notes`` gets what is not known of it. RunFileError if it cannot be used."""
    iteration = int(label) if label.isdecimal() else last_iteration(run, config)
    return Checkpoint(label, iteration, load_policies(run, config, label), _multipliers(run, config, label, notes))


def _check_plans(config: Config, request: Request, types: list[str], notes: list[str]) -> None:
    """Leave nothing to fail later: with all actions open, is each type's plan of one period allowed?"""
    economy = Economy.from_config(config)
    assert request.max_plans is not None
    for agent in list(types):
        choices = economy.agents[agent].num_joint_actions
        if choices > request.max_plans:
            text = f"--exact {request.max_plans}: a {agent} has {choices} joint actions"
            if request.agent_type == agent:
                raise ConfigError(f"{text}; allow that many plans, or leave --exact out")
            notes.append(f"{text}, so none of its plans is enumerated")


def _labels(run: RunDir) -> list[str]:
    """Labels of the checkpoints that are saved, by the first type that has any."""
    return next(filter(None, map(run.labels, AGENT_TYPES)), [])


def _first_middle_last(run: RunDir) -> list[str]:
    """The first and the middle numbered checkpoint, and the latest."""
    numbers = [label for label in _labels(run) if label.isdecimal()]
    chosen = [numbers[0], numbers[len(numbers) // 2]] if numbers else []
    return list(dict.fromkeys([*chosen, "latest"]))


def last_iteration(run: RunDir, config: Config) -> int:
    """The iteration that 'latest' was saved at."""
    numbers = [int(label) for label in _labels(run) if label.isdecimal()]
    status = run.read_status()
    done = [status.iteration - 1] if status is not None and status.iteration > 0 else []
    return max([*numbers, *done], default=config.train.num_episodes - 1)


def _multipliers(run: RunDir, config: Config, label: str, notes: list[str]) -> dict[str, float]:
    """Lagrange multipliers on final debt at a checkpoint: they are kept for the latest only."""
    payers = {name: agent.settings for name, agent in Economy.from_config(config).agents.items() if agent.penalty_scale}
    start = {name: settings.noponzi_start for name, settings in payers.items()}
    if not any(settings.noponzi_eta for settings in payers.values()):
        return start
    if label == "latest" and run.state_path.exists():
        state = read_state(run, load_config(run.hparams_path))  # as the run was, without what --set changes here
        return dict(state["trainer"]["noponzi"]) if state else start
    notes.append(
        f"checkpoint {label}: the Lagrange multipliers on final debt are not kept, their starting values are taken"
    )
    return start
