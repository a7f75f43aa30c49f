"""A configuration whose schedule is stretched or shortened in proportion: the same curriculum in another time."""

from __future__ import annotations

from rbc_warp.config.load import load_config
from rbc_warp.config.schema import Config

# Counted in iterations, by section; where a key is absent, it stays so.
TIMES = {
    "agents": (
        *("consumer_training_start", "firm_training_start", "government_training_start"),
        *("firm_begin_anneal_action", "government_begin_anneal_action", "trials_end"),
    ),
    "train": (*("num_episodes", "lr_decay_start", "save_dense_every", "save_model_every", "save_state_every"),),
}
INTERVALS = ("consumer_training_list", "firm_training_list", "government_training_list")
BLOCKS = (
    *("firm_anneal_prices", "firm_anneal_wages", "government_anneal_taxes", "consumer_anneal_theta"),
    *("consumer_anneal_entropy", "firm_anneal_entropy", "govt_anneal_entropy"),
)
RATES = ("increase_const", "decrease_const")
WHOLE = ("fall_start", "fall_end")


def stretched(config: Config, factor: float) -> Config:
    """Return the configuration with all times of its schedule multiplied by ``factor`` and rounded to iterations.

    Rates per iteration are divided by it. Cycles of a few iterations (``train_firms_every``, ``training_schedule_mod``)
    stay as they are, and so does the number of environments.
    """
    sections = config.to_dict()

    def whole(value: int) -> int:
        return max(1, round(value * factor)) if value else 0

    for section, keys in TIMES.items():
        for key in keys:
            if key in sections[section]:
                sections[section][key] = whole(sections[section][key])
    agents = sections["agents"]
    for key in INTERVALS:
        if key in agents:
            agents[key] = [[whole(start), whole(end)] for start, end in agents[key]]
    for name in BLOCKS:
        block = agents.get(name, {})
        for key in block:
            if key in RATES:
                block[key] /= factor
            elif key in WHOLE:
                block[key] = whole(block[key])
            elif key == "exp_decay_length_in_steps":
                block[key] *= factor
    return load_config(sections)
