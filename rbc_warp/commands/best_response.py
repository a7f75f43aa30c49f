"""Measures how far a run is from an equilibrium: ``python run_best_response.py RUN 200 --ep-strs 0 latest``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rbc_warp.commands.launch import add_common_arguments
from rbc_warp.errors import ConfigError


def parse(arguments: list[str] | None = None, name: str = "python -m rbc_warp best-response") -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=name, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("rollout_dir", nargs="?", metavar="ROLLOUT_DIR", help="a run (default: the newest finished one)")
    add("num_episodes", nargs="?", type=int, help="iterations of fine-tuning (default: train.best_response_episodes)")
    add("--experiment-dir", nargs="?", const="", metavar="DIR", help="all runs in the folder ROLLOUT_DIR, or DIR")
    add("--ep-strs", nargs="+", metavar="N", help="checkpoints: iterations, or latest (default: first, middle, latest)")
    add("--agent-type", choices=["all", "consumer", "firm", "government"], default="all", help="who deviates")
    add("--repeat-runs", type=int, default=1, metavar="N", help="seeds of each fine-tuning")
    add("--checkpoint-model", type=int, metavar="N", help="iterations between policies that compete (default: a tenth)")
    add(
        "--deviator", choices=["type", "individual"], default="type", help="who is fine-tuned: a type, or single agents"
    )
    add("--agents", nargs="+", type=int, metavar="I", help="single agents that deviate (default: ten spread evenly)")
    add("--fresh", action="store_true", help="fine-tune from untrained networks, which no collapsed policy holds back")
    add("--scan", action="store_true", help="try every fixed action as well")
    add("--exact", type=int, metavar="PLANS", help="enumerate up to so many plans against deterministic play")
    add("--rules", type=int, metavar="EPISODES", help="search feedback rules of single agents, each action on so many")
    add("--greedy", action="store_true", help="everybody else always takes the most likely action")
    add("--eval-episodes", type=int, metavar="N", help="episodes of each evaluation (default: 512; of a mixture 128)")
    add(
        "--verdict",
        nargs="?",
        const="full",
        choices=["full", "quick", "none"],
        help="how far to search every single agent's deviations (default: full for a long run's latest checkpoint)",
    )
    add("--restart", action="store_true", help="ignore earlier results: measure again what is known or begun")
    add("--cross-play", nargs="+", metavar="RUN", help="do these runs' policies make equilibria in every mixture?")
    add("-o", "--output", metavar="FILE", help="what --cross-play writes (default: cross_play.json)")
    add_common_arguments(parser)
    options = parser.parse_args(arguments)
    check_cross_play(parser, options)
    if options.experiment_dir == "":  # a bare flag: the folder is the first argument
        if options.rollout_dir is None:
            parser.error("--experiment-dir needs the folder that holds the runs")
        options.experiment_dir, options.rollout_dir = options.rollout_dir, None
    elif options.experiment_dir and options.rollout_dir and options.rollout_dir.lstrip("-").isdecimal():
        # With --experiment-dir the first number is that of iterations.
        options.rollout_dir, options.num_episodes = None, int(options.rollout_dir)
    return options


def check_cross_play(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what is given beside ``--cross-play`` and has no part in it, and what only has a part in it."""
    if options.cross_play is None:
        if options.output is not None:
            raise ConfigError("-o/--output belongs to --cross-play RUN RUN …; leave it out")
        return
    used = {"cross_play", "output", "ep_strs", "eval_episodes", "backend", "threads", "overrides", "quiet"}
    for name, value in vars(options).items():
        if name not in used and value != parser.get_default(name):
            given = value if name in ("rollout_dir", "num_episodes") else f"--{name.replace('_', '-')}"
            raise ConfigError(f"{given} does not go with --cross-play; leave it out, and name runs after --cross-play")


def main(arguments: list[str] | None = None, **name: str) -> int:
    """Test a run, or runs; ``name``: of the command, in its usage."""
    options = parse(arguments, **name)
    from rbc_warp.commands.launch import prepare_process

    if options.cross_play:
        from rbc_warp.equilibrium.cross_play import EPISODES, run_cross_play

        prepare_process(options)
        runs, output = [Path(run) for run in options.cross_play], Path(options.output or "cross_play.json")
        episodes = EPISODES if options.eval_episodes is None else options.eval_episodes
        run_cross_play(runs, options.ep_strs, episodes, options.backend, options.overrides, output, options.quiet)
        return 0
    # torch loads only after the arguments are known to be sound
    from rbc_warp.equilibrium.best_response import run_request
    from rbc_warp.equilibrium.request import Request

    prepare_process(options)
    request = Request(
        run_dir=Path(options.rollout_dir) if options.rollout_dir else None,
        experiment_dir=Path(options.experiment_dir) if options.experiment_dir else None,
        iterations=options.num_episodes,
        labels=tuple(options.ep_strs) if options.ep_strs else None,
        agent_type=options.agent_type,
        repeats=options.repeat_runs,
        checkpoint_every=options.checkpoint_model,
        individual=options.deviator == "individual",
        fresh=options.fresh,
        agents=tuple(options.agents) if options.agents else None,
        scan=options.scan,
        max_plans=options.exact,
        rules=options.rules,
        greedy=options.greedy,
        episodes=Request.episodes if options.eval_episodes is None else options.eval_episodes,
        backend=options.backend,
        overrides=tuple(options.overrides),
        quiet=options.quiet,
        verdict=options.verdict,
        restart=options.restart,
    )
    run_request(request)
    return 0
