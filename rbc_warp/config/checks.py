"""Faults between keys that are each right alone."""

from typing import Any

from rbc_warp.config.messages import Fault, show
from rbc_warp.config.types import ALPHA, FIRM_CHOICE, GOVERNMENT_CHOICE, INTERVALS, MAX_JOINT_ACTIONS


def agent_faults(agents: Any) -> list[Fault]:
    """Find what is wrong between the keys of a section ``agents``."""
    faults: list[Fault] = []

    def fault(name: str, *more: Any, problem: str, allowed: str = "", remedy: str = "correct one of them") -> None:
        value: Any = agents
        for part in (name, *more):
            value = value[part] if isinstance(part, int) else getattr(value, part)
        faults.append(Fault(("agents", name, *more), value, problem, allowed, remedy))

    for name in ("consumer_training_list", "firm_training_list", "government_training_list"):
        for index, (start, end) in enumerate(getattr(agents, name) or ()):
            if start >= end:
                fault(name, index, problem="is an empty interval", allowed=INTERVALS, remedy="remove the pair")

    mod, threshold = agents.training_schedule_mod, agents.consumer_mod_threshold
    if mod is None and threshold is not None:
        fault("consumer_mod_threshold", problem="needs agents.training_schedule_mod", remedy="give both or none")
    elif mod is not None and threshold is None:
        fault("training_schedule_mod", problem="needs agents.consumer_mod_threshold", remedy="give both or none")
    elif mod is not None and threshold is not None and threshold >= mod:
        allowed = f"0 to {mod - 1}, below training_schedule_mod"
        fault("consumer_mod_threshold", problem="leaves firms no turn", allowed=allowed)

    for name in ("consumer_anneal_entropy", "firm_anneal_entropy", "govt_anneal_entropy"):
        block = getattr(agents, name)
        if block is None:
            continue
        if (block.fall_start is None) != (block.fall_end is None):
            given, missing = ("fall_start", "fall_end") if block.fall_end is None else ("fall_end", "fall_start")
            fault(name, given, problem=f"needs agents.{name}.{missing}", remedy="give both or none")
        elif block.fall_start is not None and block.fall_end <= block.fall_start:
            fault(name, "fall_end", problem="lies before the fall", allowed=f"> {block.fall_start}, fall_start")

    sizes = {
        "firm": (agents.num_firm_actions, " × ".join(f"{column}_choices" for column in FIRM_CHOICE)),
        "government": (agents.num_government_actions, " × ".join(f"{column}_choices" for column in GOVERNMENT_CHOICE)),
    }
    for agent_type, (size, grids) in sizes.items():
        if size > MAX_JOINT_ACTIONS:
            first = grids.split(" ")[0]
            fault(first, problem=f"makes {size} joint actions", allowed=f"{grids} <= {MAX_JOINT_ACTIONS}")
        frozen = getattr(agents, f"frozen_{agent_type}_action")
        if frozen is not None and frozen >= size:
            allowed = f"0 to {size - 1} with {grids}, or null"
            fault(f"frozen_{agent_type}_action", problem="is no action index", allowed=allowed)

    for name, grid_key in (("firm_anneal_prices", "price_choices"), ("firm_anneal_wages", "wage_choices")):
        block, grid = getattr(agents, name), getattr(agents, grid_key)
        if block is not None and block.anneal_on and block.start not in grid:
            problem = "allows no action when annealing begins"
            fault(name, "start", problem=problem, allowed=f"an entry of agents.{grid_key}, {show(grid)}")
    cap = agents.government_anneal_taxes
    lowest = max(grid[0] for grid in agents.grids(GOVERNMENT_CHOICE))
    if cap is not None and cap.anneal_on and cap.start < lowest:
        allowed = f">= {lowest}, the lowest choice of all taxes"
        fault("government_anneal_taxes", "start", problem="allows no tax when annealing begins", allowed=allowed)
    return faults


def alpha_faults(alpha: str | float | tuple[float, ...], num_firms: int) -> list[Fault]:
    path = ("world", "production_alpha")
    if isinstance(alpha, tuple) and len(alpha) != num_firms:
        problem = f"has {len(alpha)} entries for {num_firms} firms"
        return [Fault(path, alpha, problem, f"{num_firms} entries", "give one entry per firm, or one number for all")]
    if alpha == "proportional" and num_firms > 11:
        return [Fault(path, alpha, "exceeds 1 with more than 11 firms", ALPHA, "use fixed_array or a list")]
    return []
