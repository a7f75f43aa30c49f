"""Baseline against reform: two runs, or one run under other taxes, on the same random numbers, with paired differences.

Both play the same number of episodes from the same draws at their own latest checkpoint's stage, so that the difference
of two figures is paired episode by episode. Agents answer as they learned to: in a run whose taxes are fixed from
outside they do not learn anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rbc_warp.analysis.inequality import gini
from rbc_warp.config import Config, load_config
from rbc_warp.config.types import GOVERNMENT_CHOICE
from rbc_warp.economy.agents import FIRM_PRICE, FIRM_WAGE, GOVERNMENT_CORPORATE_TAX, GOVERNMENT_INCOME_TAX
from rbc_warp.economy.parameters import Economy
from rbc_warp.economy.welfare import consumption_equivalent
from rbc_warp.equilibrium.game import REPORT_STREAM, Estimate, Forced, Game
from rbc_warp.equilibrium.request import open_checkpoint
from rbc_warp.errors import ConfigError
from rbc_warp.runs.console import number_text, range_text, text_table
from rbc_warp.runs.folder import RunDir
from rbc_warp.training.recorder import Recorder
from rbc_warp.training.rollout import Draw
from rbc_warp.training.trainer import RbcTrainer

GROUPS = 10
"""Groups of consumers by θ, of equal size where their number allows it."""
SIZES = ("agents.num_consumers", "agents.num_firms", "world.maxtime")


@dataclass(frozen=True)
class Difference:
    """One figure in both, and its paired difference with a 95 % interval."""

    figure: str
    unit: str
    base: float
    reform: float
    change: Estimate


@dataclass(frozen=True)
class Group:
    """Consumers of neighboring θ. Changes are of utility per period and of consumption that is worth it."""

    first: int
    last: int  #: Numbers of the first and the last consumer.
    theta: float  #: Mean disutility of an hour's work.
    change: Estimate
    equivalent: float | None  #: [%]
    winners: float  #: Share of its consumers whose whole interval is a gain.
    losers: float


@dataclass(frozen=True)
class Comparison:
    """Everything that is told apart."""

    base: str
    reform: str
    episodes: int
    differences: list[Difference]
    groups: list[Group]
    winners: float
    losers: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            (each.figure, each.unit, number_text(each.base), number_text(each.reform), str(each.change))
            for each in self.differences
        ]
        groups = [
            (
                range_text(group.first, group.last),
                number_text(group.theta),
                str(group.change),
                "-" if group.equivalent is None else f"{group.equivalent:.3g} %",
                f"{group.winners:.0%}",
                f"{group.losers:.0%}",
            )
            for group in self.groups
        ]
        said = (
            f"base:   {self.base}\nreform: {self.reform}\n{self.episodes} episodes with common random numbers; "
            f"{self.winners:.0%} of the consumers gain, {self.losers:.0%} lose, of the others it cannot be told (95 %)"
        )
        head = ("figure, mean over periods", "unit", "base", "reform", "change [95 %]")
        by_theta = ("consumers", "θ", "change of utility [95 %]", "in consumption", "gain", "lose")
        return "\n\n".join([said, text_table(head, rows), text_table(by_theta, groups)])


class _Played:
    """Figures of one side: per episode (episodes,), and of each consumer (episodes, I)."""

    def __init__(self, game: Game, taxes: Sequence[float] | None, episodes: int):
        self.economy = economy = game.economy
        forced = [] if taxes is None else [Forced("government", None, _tax_action(economy, taxes))]
        parts: list[dict[str, np.ndarray]] = []
        units, utilities = [], []
        game.restore()
        with game.changed(*forced):
            for first in range(0, episodes, game.trainer.num_local_envs):
                game.trainer.play(Draw(game.iteration, REPORT_STREAM, first_environment=first), keep_consumption=True)
                rollout = game.trainer.rollout
                rewards = {name: rollout.rewards(name).double().mean(0).cpu().numpy() for name in economy.agents}
                firms = economy.firm_choices[rollout.actions("firm").cpu().numpy()]
                taxed = economy.government_choices[rollout.actions("government").cpu().numpy()]
                hours = economy.work_choices[rollout.actions("consumer")[..., -2].cpu().numpy()]
                consumed = rollout.aux("consumer").double().cpu().numpy()  # (T, E, I, J)
                parts.append(
                    {
                        "utility": rewards["consumer"].mean(axis=1),
                        "profit": rewards["firm"].mean(axis=1),
                        "welfare": rewards["government"].mean(axis=1),
                        "price": firms[..., FIRM_PRICE].mean(axis=(0, 2)),
                        "wage": firms[..., FIRM_WAGE].mean(axis=(0, 2)),
                        "income tax": taxed[..., GOVERNMENT_INCOME_TAX].mean(axis=(0, 2)),
                        "corporate tax": taxed[..., GOVERNMENT_CORPORATE_TAX].mean(axis=(0, 2)),
                        "hours": hours.mean(axis=(0, 2)),
                        "consumption": consumed.sum(axis=3).mean(axis=(0, 2)),
                        "exports": rollout.aux("firm").double().mean(dim=(0, 2)).cpu().numpy(),
                        "Gini of consumption": np.array([gini(each) for each in consumed.sum(axis=(0, 3))]),
                    }
                )
                units.append(consumed)
                utilities.append(rewards["consumer"])
        self.figures = {name: np.concatenate([part[name] for part in parts])[:episodes] for name in parts[0]}
        self.utility = np.concatenate(utilities)[:episodes]
        self.units = np.concatenate(units, axis=1)[:, :episodes]


UNITS = {
    "utility": "per consumer and period",
    "profit": "money per firm and period",
    "welfare": "per period",
    "price": "money per unit",
    "wage": "money per hour",
    "income tax": "share",
    "corporate tax": "share",
    "hours": "per consumer and period",
    "consumption": "units per consumer and period",
    "exports": "units per firm and period",
    "Gini of consumption": "1",
}


def compare(
    base: RunDir, reform: RunDir, taxes: Sequence[float] | None = None, episodes: int = 256, backend: str = "auto"
) -> Comparison:
    """Play both and compare them.

    Args:
        base, reform: runs, or the same run twice.
        taxes: income and corporate tax that the reform's government sets in every period, whatever it learned.
        episodes: of each.

    Raises:
        ConfigError: the runs differ in size, or a tax is not among the choices. RunFileError: a file cannot be used.
    """
    if episodes < 2:
        raise ConfigError(f"--episodes {episodes}: an interval needs 2 or more")
    configs = [load_config(run.hparams_path) for run in (base, reform)]
    _check_sizes(base, reform, *configs)
    if taxes is not None:
        _tax_action(Economy.from_config(configs[1]), taxes)
    seed, batch = configs[0].train.base_seed, configs[0].train.batch_size
    sides = []
    opened = zip((base, reform), configs, strict=True)
    checkpoints = [open_checkpoint(run, config, "latest", []) for run, config in opened]
    for config, checkpoint, fixed in zip(configs, checkpoints, (None, taxes), strict=True):
        same = load_config(config, [f"train.base_seed={seed}", f"train.batch_size={batch}"])
        trainer = RbcTrainer(same, backend, recorder=Recorder())
        game = Game(trainer, checkpoint.policies, checkpoint.iteration, multipliers=checkpoint.multipliers)
        sides.append(_Played(game, fixed, episodes))
        trainer.graceful_close()
    before, after = sides
    differences = [
        Difference(name, UNITS[name], float(old.mean()), float(new.mean()), Estimate.of(new - old))
        for name, (old, new) in {name: (before.figures[name], after.figures[name]) for name in UNITS}.items()
    ]
    told = "" if taxes is None else f", income tax {taxes[0]:g} and corporate tax {taxes[1]:g} in every period"
    change = after.utility - before.utility  # (episodes, I)
    each = [Estimate.of(change[:, consumer]) for consumer in range(change.shape[1])]
    gain, lose = np.array([one.low > 0.0 for one in each]), np.array([one.high < 0.0 for one in each])
    groups = [
        _group(members, before, change, gain, lose)
        for members in np.array_split(np.arange(change.shape[1]), min(GROUPS, change.shape[1]))
    ]
    return Comparison(
        str(base.path), f"{reform.path}{told}", episodes, differences, groups, float(gain.mean()), float(lose.mean())
    )


def _group(members: np.ndarray, before: _Played, change: np.ndarray, gain: np.ndarray, lose: np.ndarray) -> Group:
    estimate = Estimate.of(change[:, members].mean(axis=1))
    return Group(
        int(members[0]),
        int(members[-1]),
        float(before.economy.theta[members].mean()),
        estimate,
        consumption_equivalent(before.units[:, :, members], estimate.mean, before.economy.crra),
        float(gain[members].mean()),
        float(lose[members].mean()),
    )


def _tax_action(economy: Economy, taxes: Sequence[float]) -> np.ndarray:
    """The government's action (1, 1, 1) that sets both taxes."""
    distance = np.abs(economy.government_choices - np.asarray(taxes)).max(axis=1)
    if distance.min() > 1e-6:
        names = " and ".join(f"{tax:g}" for tax in taxes)
        grids = [f"agents.{column}_choices" for column in GOVERNMENT_CHOICE]
        raise ConfigError(
            f"--taxes {names}: no such pair among {' and '.join(grids)}; "
            f"choose from {sorted(set(map(float, economy.government_choices.ravel())))}"
        )
    return np.array([[[int(distance.argmin())]]], dtype=np.int32)


def _check_sizes(base: RunDir, reform: RunDir, here: Config, there: Config) -> None:
    for key in SIZES:
        section, name = key.split(".")
        values = [getattr(getattr(config, section), name) for config in (here, there)]
        if values[0] != values[1]:
            raise ConfigError(
                f"{base.path} and {reform.path} cannot be compared: {key} is {values[0]} and {values[1]}; "
                "name runs of one size"
            )
