"""The configuration's schema: what loads, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rbc_warp.config import Agents, Config, Train, World, load_config
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.parameters import Economy
from rbc_warp.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
SECTIONS = {"agents": Agents, "world": World, "train": Train}
ANNEAL = {"anneal_on": True, "start": 1000, "increase_const": 1, "decrease_const": 1}


def through_yaml(config: Config, with_derived: bool = False) -> Config:
    return load_config(yaml.safe_load(yaml.safe_dump(config.to_dict(with_derived), sort_keys=False)))


def message(source, overrides=None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    assert "pydantic" not in str(caught.value) and "http" not in str(caught.value)
    return str(caught.value)


# Shipped files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rbc", "paper_open", "paper_closed", "paper_long", "smoke"])
def test_shipped_config_loads_and_round_trips(name):
    config = load_config(CONFIGS / f"{name}.yaml")
    assert through_yaml(config) == config
    assert through_yaml(config, with_derived=True) == config
    assert Economy.from_config(config).num_consumers == config.agents.num_consumers


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_config_comments_every_key(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    previous = [""] + lines
    bare = [now for now, last in zip(lines, previous, strict=False) if ":" in now and "#" not in now + last]
    assert bare == []


PUBLISHED = {  # the paper's settings and the public code's, whatever rbc.yaml, their base, comes to say
    "agents.num_consumers": 100,
    "agents.num_firms": 10,
    "agents.consumer_reward_scale": 5.0,
    "agents.firm_reward_scale": 30000.0,
    "agents.government_reward_scale": 1000.0,
    **{f"agents.{agent}_minibatches": 1 for agent in AGENT_TYPES},
    "agents.firm_one_hot_scale": 1.0,
    "agents.employer_entropy_floor": 0.0,
    "train.gae_lambda": 1.0,
    "agents.firm_trials": 0,
    "agents.government_trials": 0,
    "agents.consumer_own_scale": False,
    "agents.consumer_lr_multiple": 1.0,
    "agents.firm_lr_multiple": 1.0,
    "agents.government_lr_multiple": 0.05,
    "agents.government_counts_firm_reward": 1,
    "agents.firm_reward_for_government_factor": 0.0025,
    "agents.consumer_training_start": 0,
    "agents.firm_training_start": 30_000,
    "agents.government_training_start": 60_000,
    "agents.firm_begin_anneal_action": 0,
    "agents.firm_anneal_prices": {"start": 1000.0, "increase_const": 1500 / 30_000, "decrease_const": 1000 / 30_000},
    "agents.firm_anneal_wages": {"start": 22.0, "increase_const": 22 / 30_000, "decrease_const": 22 / 30_000},
    "agents.government_begin_anneal_action": 30_000,
    "agents.government_anneal_taxes": {"start": 0.0, "increase_const": 1 / 30_000},
    "agents.consumer_anneal_theta": {"exp_decay_length_in_steps": 10_000.0},
    "agents.consumer_anneal_entropy": {"exp_decay_length_in_steps": 10_000.0, "coef_floor": 0.1},
    "agents.firm_anneal_entropy": {"exp_decay_length_in_steps": 10_000.0, "coef_floor": 0.1},
    "agents.govt_anneal_entropy": {"exp_decay_length_in_steps": 10_000.0, "coef_floor": 0.1},
    "world.maxtime": 10,
    "world.initial_wages": 0.0,
    "world.interest_rate": 0.0,
    "world.importer_price": 500.0,
    "world.importer_quantity": 100.0,
    "world.use_importer": 1,
    "world.paretoscaletheta": 4.0,
    "world.initial_capital": "twolevel",
    "train.num_episodes": 200_000,
    "train.batch_size": 128,
    "train.lr": 0.001,
    "train.clip_grad_norm": 2.0,
    "train.gamma": 0.9999,
    "train.value_loss_weight": 1.0,
    "train.entropy": 0.5,
    "train.use_ppo": True,
    "train.ppo_num_updates": 4,
    "train.ppo_clip_param": 0.1,
    "train.hidden_size": 128,
    "train.save_dense_every": 2000,
    "train.save_model_every": 10_000,
    "train.base_seed": 2345,
}


def test_published_settings():
    config = load_config(CONFIGS / "paper_open.yaml").to_dict()
    assert not {"consumer_passes", "firm_passes", "government_passes"} & config["agents"].keys()
    assert "lr_decay_start" not in config["train"]
    for path, expected in PUBLISHED.items():
        section, key = path.split(".")
        value = config[section][key]
        if isinstance(expected, dict):
            assert value.pop("anneal_on") is True
            assert value == pytest.approx(expected), path
        else:
            assert value == expected, path


def differences(name):
    """Where a shipped configuration differs from the published open economy, names and annealing lengths aside."""
    published, other = (load_config(CONFIGS / f"{file}.yaml").to_dict() for file in ("paper_open", name))
    keys = [(section, key) for section in ("agents", "world", "train") for key in published[section]]
    return {key: other[s].get(key) for s, key in keys if published[s][key] != other[s].get(key)}


def test_the_other_published_runs_differ_where_the_paper_says():
    assert differences("paper_closed") == {"use_importer": 0}
    longer = differences("paper_long")
    assert longer["num_episodes"] == 500_000 and longer["firm_training_start"] == 100_000
    assert longer["consumer_anneal_theta"]["exp_decay_length_in_steps"] == 30_000
    assert longer["firm_anneal_prices"]["increase_const"] == 1500 / 100_000 and len(longer) == 11


def test_defaults():
    config = load_config({})
    assert config.world.initial_firm_endowment == 2_200_000
    assert config.train.clip_grad_norm == 2.0 and config.agents.firm_anneal_prices is None
    assert load_config({"agents": None, "world": {"initial_firm_endowment": None}}) == config


def test_firm_endowment_follows_the_number_of_consumers():
    config = load_config({"agents": {"num_consumers": 7}})
    assert config.world.initial_firm_endowment == 154_000
    assert load_config(config, ["agents.num_consumers=8"]).world.initial_firm_endowment == 176_000
    assert load_config(config.to_dict(), ["agents.num_consumers=8"]).world.initial_firm_endowment == 154_000


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+.001", "0.001", "1.0e-03"])
def test_numbers_as_people_write_them(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(f"train: {{lr: {text}, batch_size: 64.0}}\nworld: {{importer_price: 010}}\n")
    config = load_config(path)
    assert config.train.lr == 0.001 and config.world.importer_price == 10
    assert type(config.train.batch_size) is int and type(config.world.importer_price) is float


def test_round_trip_keeps_what_is_off_and_what_is_metadata():
    metadata = {"hparamhash": "1234e567", "day": "2021-12-13", "yes": "yes", "code": "010", "n": 3, "x": 1.5, "a": None}
    config = load_config({"train": {"clip_grad_norm": None}, "metadata": metadata})
    assert config.train.clip_grad_norm is None
    assert through_yaml(config) == config and config.metadata == metadata


def test_metadata_text_survives_a_file(tmp_path):
    metadata = {"hparamhash": "1234e567", "day": "2021-12-13", "answer": "yes", "code": "08", "n": 3}
    path = tmp_path / "hparams.yaml"
    path.write_text(yaml.safe_dump({"metadata": metadata}))
    assert load_config(path).metadata == metadata


def written(folder: Path, **files: str) -> Path:
    """YAML files by name; the path of the last."""
    for name, text in files.items():
        (folder / f"{name}.yaml").parent.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{name}.yaml"


def test_bases_are_layered(tmp_path):
    (tmp_path / "deep").mkdir()
    prices = "{anneal_on: true, start: 1000, increase_const: 1, decrease_const: 2}"
    low = f"agents: {{num_firms: 3, firm_anneal_prices: {prices}}}"
    written(tmp_path / "deep", low=low)
    written(tmp_path, middle="base: deep/low.yaml\nagents: {firm_anneal_prices: {increase_const: 5}}\ntrain: {lr: 0.1}")
    config = load_config(written(tmp_path, top="base: middle.yaml\ntrain: {lr: 0.2, clip_grad_norm: null}"))
    assert config.agents.num_firms == 3 and config.train.lr == 0.2 and config.train.clip_grad_norm is None
    prices = config.agents.firm_anneal_prices
    assert (prices.increase_const, prices.decrease_const) == (5.0, 2.0)
    assert load_config(written(tmp_path, off="base: top.yaml\nagents: {firm_anneal_prices: null}")).agents == Agents(
        num_firms=3
    )


def test_bases_that_lead_nowhere_are_refused(tmp_path):
    one = written(tmp_path, two="base: one.yaml", one="base: two.yaml")
    text = message(one)
    assert "in a circle" in text and text.count("one.yaml") >= 2 and "two.yaml" in text and "remove one base" in text
    chain = {f"c{n}": f"base: c{n + 1}.yaml" for n in range(30)}
    assert "too far" in message(written(tmp_path, **chain, last="base: c0.yaml"))
    below = written(tmp_path, bad="train: {lr: -1}", top="base: bad.yaml\ntrain: {lr: 1}")
    assert message(below).startswith(f"{tmp_path / 'bad.yaml'}: train.lr = -1 is out of range")
    assert "missing.yaml: no such file" in message(written(tmp_path, lost="base: missing.yaml"))
    assert "name a YAML file, relative to this one" in message(written(tmp_path, number="base: 3"))


def looped():
    mapping: dict = {}
    mapping["agents"] = mapping
    return mapping


@pytest.mark.parametrize(
    ("source", "overrides", "expected"),
    [
        (None, None, "null is empty; give the path of a YAML file, a mapping or a Config"),
        (3, None, "3 is a number"),
        (b"configs/rbc.yaml", None, "is of type bytes"),
        (looped(), None, "nested deeper than 20 levels"),
        ({}, 3, "--set: 3 is no list; give a list of section.key=value strings"),
        ({"agents": {1: 2}}, None, "agents[1] = 1 keys should be strings"),
        ({"agents": {"\x1b[31mred": 1}}, None, r"agents.\x1b[31mred = 1 is not a known key"),
    ],
    ids=str,
)
def test_what_is_no_configuration_is_refused(source, overrides, expected):
    assert expected in message(source, overrides)


def test_config_is_immutable():
    config = load_config({})
    with pytest.raises(ValidationError):
        config.train.lr = 1.0
    with pytest.raises(ValidationError):
        config.world = World()
    assert isinstance(config.agents.price_choices, tuple)


def test_every_key_has_a_one_line_description_and_every_number_a_range():
    for section in SECTIONS.values():
        for key, field in section.model_fields.items():
            assert field.description and "\n" not in field.description and len(field.description) < 120, key
            if any(kind in str(field.annotation) for kind in ("int", "float")) and "Literal" not in str(
                field.annotation
            ):
                has_range = any(hasattr(m, bound) for m in field.metadata for bound in ("ge", "gt"))
                assert has_range or field.json_schema_extra["allowed"], key


# Overrides -----------------------------------------------------------------------------------------------------------


def test_overrides_apply_in_order_and_leave_the_source_alone():
    source = {"agents": {"firm_anneal_prices": dict(ANNEAL)}, "world": {"maxtime": 5}}
    config = load_config(
        source,
        [
            "agents.firm_anneal_prices.start=500",
            "agents.wage_choices=[0, 1.5]",
            "world.maxtime=3",
            "world.maxtime=4",
            "train.clip_grad_norm=null",
            "metadata.note=a=b",
        ],
    )
    assert config.agents.firm_anneal_prices.start == 500 and config.agents.wage_choices == (0.0, 1.5)
    assert config.world.maxtime == 4 and config.train.clip_grad_norm is None and config.metadata == {"note": "a=b"}
    assert source["agents"]["firm_anneal_prices"]["start"] == 1000
    assert load_config(config, ["agents.firm_anneal_prices=null"]).agents.firm_anneal_prices is None


def test_override_can_make_a_wrong_source_right():
    assert load_config({"world": {"maxtime": -1}}, ["world.maxtime=2"]).world.maxtime == 2


def numeric_keys():
    for section, model in SECTIONS.items():
        for key, field in model.model_fields.items():
            bounds = {b: getattr(m, b) for m in field.metadata for b in ("ge", "gt", "le", "lt") if hasattr(m, b)}
            if bounds and not key.startswith(("frozen", "training_schedule", "consumer_mod")):
                yield f"{section}.{key}", "int" in str(field.annotation), bounds


def override_for(key):
    name, whole, bounds = key
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt", 1e6))
    if whole:
        values = st.integers(low, high)
    else:
        values = st.floats(low, high, exclude_min="gt" in bounds, exclude_max="lt" in bounds)
    return values.map(lambda value: f"{name}={value!r}")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(sorted(numeric_keys(), key=str)).flatmap(override_for), min_size=1, max_size=8))
def test_any_valid_override_of_numbers_round_trips(overrides):
    config = load_config({}, overrides)
    assert through_yaml(config) == config
    assert load_config(config.to_dict(with_derived=True)) == config
    last = dict(override.split("=") for override in overrides)
    for name, value in last.items():
        section, key = name.split(".")
        assert getattr(getattr(config, section), key) == float(value)


# Sweeps --------------------------------------------------------------------------------------------------------------


def test_sweep_values_are_checked_one_by_one():
    sweep = {"agents": {"num_firms": [4, 10], "price_choices": [[0, 1], [0, 2, 4]]}, "train": {"base_seed": [1, 2]}}
    config = load_config({"sweep": sweep})
    assert config.sweep["agents"] == {"num_firms": (4, 10), "price_choices": ((0.0, 1.0), (0.0, 2.0, 4.0))}
    assert through_yaml(config) == config
    assert "sweep" not in load_config({}).to_dict()


# Public runs ---------------------------------------------------------------------------------------------------------


def public_hparams() -> dict:
    """What the public implementation writes for its default sizes, worked out by hand."""
    stocks = list(range(20, 30))
    agents = {
        "num_consumers": 100,
        "num_firms": 10,
        "num_governments": 1,
        "global_state_dim": 43,
        "consumer_state_dim": 45,
        "firm_state_dim": 56,
        "government_state_dim": 43,
        "consumer_action_dim": 12,
        "consumer_num_consume_actions": 11,
        "consumer_num_work_actions": 5,
        "consumer_num_whichfirm_actions": 10,
        "firm_action_dim": 3,
        "firm_num_actions": 30,
        "government_action_dim": 2,
        "government_num_actions": 36,
        "max_possible_consumption": 10.0,
        "max_possible_hours_worked": 1040.0,
        "max_possible_wage": 44.0,
        "max_possible_price": 2500.0,
        "consumer_digit_dims": [*stocks, 43],
        "firm_digit_dims": [*stocks, 43],
        "government_digit_dims": stocks,
        "should_boost_firm_reward": False,
        "government_counts_firm_reward": 1,
    }
    train = {"seed": 2345, "save_dir": "rollout-1-2", "should_boost_firm_reward": True, "clip_grad_norm": 2.0}
    metadata = {"dirname": "rollout-1-2", "group": "g", "hparamhash": "ab12"}
    return {"agents": agents, "world": {"use_importer": 1}, "train": train, "metadata": metadata}


def test_public_hparams_load():
    config = load_config(public_hparams())
    assert config.train.should_boost_firm_reward is True  # the public code obeys the one in train
    assert config.metadata["hparamhash"] == "ab12" and config.agents.government_counts_firm_reward == 1
    hparams = public_hparams()
    derived = {
        key: value for key, value in config.to_dict(with_derived=True)["agents"].items() if key in hparams["agents"]
    }
    assert {**derived, "should_boost_firm_reward": False} == hparams["agents"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [("firm_state_dim", 57, "56"), ("max_possible_price", 2000.0, "2500.0"), ("government_digit_dims", [1], "[20, 21")],
)
def test_derived_key_that_disagrees_is_refused(key, value, expected):
    hparams = public_hparams()
    hparams["agents"][key] = value
    text = message(hparams)
    assert text.startswith(f"<mapping>: agents.{key} = ") and f"allowed: {expected}" in text and "remove" in text


def test_override_of_sizes_is_not_held_against_derived_keys():
    config = load_config(public_hparams(), ["agents.num_firms=5"])
    assert config.derived()["firm_state_dim"] == 31


def test_misplaced_boost_counts_where_train_is_silent():
    assert load_config({"agents": {"should_boost_firm_reward": True}}).train.should_boost_firm_reward is True


def action_tables() -> dict[str, np.ndarray]:
    economy = Economy.from_config(load_config({"agents": {"price_choices": [0, 0.1, 7], "wage_choices": [1, 2]}}))
    tables = {
        "consumption_choices": economy.consumption_choices[:, None],
        "work_choices": economy.work_choices[:, None],
        "price_and_wage": economy.firm_choices,
        "tax_choices": economy.government_choices,
    }
    return {key: table.astype(np.float32) for key, table in tables.items()}


@pytest.fixture
def run_with_tables(tmp_path, monkeypatch):
    """A hparams.yaml beside an action_arrays.pickle whose reader gives the returned tables."""
    tables = action_tables()
    monkeypatch.setattr("rbc_warp.config.load.read_action_arrays", lambda path: tables)
    (tmp_path / "action_arrays.pickle").write_bytes(b"")
    path = tmp_path / "hparams.yaml"
    path.write_text("agents: {max_possible_price: 7.0, firm_num_actions: 6, work_choices: [0, 5]}\n")
    return path, tables


def test_grids_come_from_the_action_tables(run_with_tables):
    agents = load_config(run_with_tables[0]).agents
    assert agents.price_choices == (0.0, 0.1, 7.0) and agents.wage_choices == (1.0, 2.0)
    assert agents.work_choices == (0.0, 5.0)  # the YAML's own
    assert agents.income_tax_choices == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.mark.parametrize("spoil", [lambda t: t[::-1], lambda t: t[:-1], lambda t: t[:, :2], lambda t: t * np.nan])
def test_action_table_that_is_no_product_is_refused(run_with_tables, spoil):
    path, tables = run_with_tables
    tables["price_and_wage"] = spoil(tables["price_and_wage"])
    text = message(path)
    assert "action_arrays.pickle" in text and "price_and_wage" in text and "give agents.price_choices" in text


# Faults of the user --------------------------------------------------------------------------------------------------

BAD_FILES = {
    "duplicate key": (b"train:\n  lr: 1\n  lr: 2\n", ["line 3", "lr", "given twice", "keep one"]),
    "duplicate section": (b"world: {}\nworld: {}\n", ["line 2", "world", "given twice"]),
    "empty": (b"", ["is empty", "start from configs/rbc.yaml"]),
    "comment only": (b"# nothing\n", ["is empty"]),
    "list": (b"- 1\n- 2\n", ["top level is a list", "allowed: a mapping"]),
    "text": (b"hello\n", ["top level is a string"]),
    "python tag": (b"world: !!python/object/apply:os.system ['true']\n", ["line 1", "tag", "refused"]),
    "float tag": (b"train: {lr: !!float '1'}\n", ["line 1", "tag", "refused"]),
    "not utf-8": (b"metadata: {a: \xff}\n", ["not UTF-8", "save it as UTF-8"]),
    "control character": (b"metadata: {a: \x00}\n", ["not readable as YAML"]),
    "broken": (b"train: {lr: 1\nworld: 2", ["line 2", "correct the YAML"]),
    "two documents": (b"train: {}\n---\nworld: {}\n", ["line 2"]),
    "number as key": (b"world: {1: 2}\n", ["line 1", "a key must be text"]),
    "too large": (b"#" * (1 << 20) + b"\n", ["larger than", "kilobytes"]),
    "deep": (b"a: " + b"[" * 5000, ["nested deeper"]),
    "endless number": (b"world: {maxtime: " + b"9" * 5000 + b"}", ["not readable as YAML"]),
    "alias bomb": (b"a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]\n", ["line 3", "alias", "write the value out"]),
    "quoted number": (
        b"world: {interest_rate: '1e-3'}",
        ["world.interest_rate = '1e-3'", "string", "write 0.001 without"],
    ),
    "range": (
        b"world: {interest_rate: -1}",
        ["world.interest_rate = -1 is out of range; allowed: >= 0; remove the key to use the default 0.0"],
    ),
    "nan": (b"train: {lr: .nan}", ["train.lr = nan is not finite", "allowed: > 0", "default 0.001"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(tmp_path, name):
    data, expected = BAD_FILES[name]
    path = tmp_path / "x.yaml"
    path.write_bytes(data)
    text = message(path)
    assert text.startswith(f"{path}: ")
    assert all(part in text for part in expected), text


@pytest.mark.parametrize(("name", "expected"), [("missing.yaml", "no such file"), (".", "is a directory")])
def test_bad_path(tmp_path, name, expected):
    assert expected in message(str(tmp_path / name))


BAD_VALUES = [
    ("agents.num_consumer=3", "num_consumer", "did you mean num_consumers?"),
    ("agents.batch_size=3", "agents.batch_size", "it belongs to section train"),
    ("agents.btch_size=3", "agents.btch_size", "did you mean batch_size in section train?"),
    ("agents.zzzzzz=3", "agents.zzzzzz", "remove it"),
    ("agent.lr=3", "agent", "did you mean agents?"),
    ("agents.num_consumers=100001", "agents.num_consumers = 100001", "allowed: whole number 1 to 100000"),
    ("agents.num_firms=1001", "agents.num_firms = 1001", "whole number 1 to 1000"),
    ("agents.num_firms=2.5", "agents.num_firms = 2.5 is not a whole number", "1 to 1000"),
    ("agents.num_governments=2", "agents.num_governments = 2", "allowed: 1;"),
    ("agents.num_firms=true", "agents.num_firms = true is a boolean", "1 to 1000"),
    ("agents.price_choices=[]", "agents.price_choices = []", "is empty"),
    ("agents.price_choices=500", "agents.price_choices = 500", "allowed: a list of strictly increasing"),
    ("agents.price_choices=[0, 500, 500]", "agents.price_choices", "is not strictly increasing"),
    ("agents.price_choices=[0]", "agents.price_choices", "no positive entry"),
    ("agents.wage_choices=[-1, 2]", "agents.wage_choices[0] = -1", "is out of range"),
    ("agents.wage_choices=[0, .inf]", "agents.wage_choices[1] = inf", "is not finite"),
    ("agents.income_tax_choices=[0, 1.5]", "agents.income_tax_choices[1] = 1.5", "0 to 1"),
    ("agents.frozen_firm_action=30", "agents.frozen_firm_action = 30", "allowed: 0 to 29"),
    ("agents.frozen_government_action=36", "agents.frozen_government_action = 36", "allowed: 0 to 35"),
    ("agents.consumer_training_list=[[5, 5]]", "agents.consumer_training_list[0] = [5, 5]", "0 <= from < to"),
    ("agents.firm_training_list=[[5]]", "agents.firm_training_list[0]", "[from, to) pairs"),
    ("agents.training_schedule_mod=4", "agents.training_schedule_mod = 4", "give both or none"),
    ("agents.consumer_mod_threshold=4", "agents.consumer_mod_threshold = 4", "give both or none"),
    ("agents.firm_anneal_prices.start=1000", "agents.firm_anneal_prices.increase_const is missing", "add the key"),
    ("agents.firm_anneal_prices=3", "agents.firm_anneal_prices = 3", "a mapping of anneal_on, start"),
    ("agents.consumer_anneal_theta={anneal_on: true, exp_decay_length_in_steps: 0}", "_in_steps = 0", "allowed: > 0"),
    ("world.maxtime=0", "world.maxtime = 0", "allowed: whole number 1 to 100000"),
    ("world.maxtime=", "world.maxtime=", "write for example world.interest_rate=0.1"),
    ("world.initial_prices=-1", "world.initial_prices = -1", "allowed: 0 to 1e+12"),
    ("world.interest_rate=1e39", "world.interest_rate", "out of range for float32"),
    ("world.interest_rate=null", "world.interest_rate = null is empty", "allowed: >= 0"),
    ("world.use_importer=2", "world.use_importer = 2", "allowed: 0 or 1"),
    ("world.initial_capital=three", "world.initial_capital = 'three'", "allowed: twolevel, proportional or null"),
    ("world.production_alpha=[0.5, 0.5]", "world.production_alpha", "has 2 entries for 10 firms"),
    ("world.production_alpha=0", "world.production_alpha = 0", "a number > 0 and <= 1"),
    ("world.production_alpha=fixed", "world.production_alpha = 'fixed'", "allowed: fixed_array"),
    ("world.paretoscaletheta=0", "world.paretoscaletheta = 0", "allowed: > 0"),
    ("train.batch_size=1000001", "train.batch_size = 1000001", "1 to 1000000"),
    ("train.batch_size='64'", "train.batch_size = '64' is a string", "write 64 without quotes"),
    ("train.use_ppo=1", "train.use_ppo = 1 is a number", "allowed: true or false"),
    ("train.use_ppo=yes", "train.use_ppo = 'yes' is a string", "allowed: true or false"),
    ("train.lr=0", "train.lr = 0 is out of range", "allowed: > 0 and <= 100"),
    ("train.gamma=1.1", "train.gamma = 1.1", "allowed: 0 to 1"),
    ("train.digit_representation_size=11", "train.digit_representation_size = 11", "1 to 10"),
    ("train.clip_grad_norm=0", "train.clip_grad_norm = 0", "or null"),
    ("train.consumer_update_fraction=0", "train.consumer_update_fraction = 0", "> 0 and <= 1"),
    ("train.precision=float16", "train.precision = 'float16'", "allowed: auto, float32, tf32, bfloat16"),
    ("train=3", "'train=3'", "not of the form section.key=value"),
    ("lr", "'lr'", "write for example"),
    ("train.lr.x.y=3", "train.lr", "is a mapping"),
    ("train.lr=!!float 1", "train.lr", "refused"),
    ("metadata.a=[1]", "metadata", "'a': [1]"),
    ("sweep.train.lr=[1, -1]", "sweep.train.lr[1] = -1", "allowed: > 0"),
    ("sweep.train.lr=[]", "sweep.train.lr = [] is empty", "a list of values"),
    ("sweep.train.lr=1", "sweep.train.lr = 1", "a list of values"),
    ("sweep.agents.lr=[1]", "sweep.agents.lr", "it belongs to section train"),
    ("sweep.metadata.a=[1]", "sweep.metadata", "is not a known key"),
]


@pytest.mark.parametrize(("override", "key", "remedy"), BAD_VALUES)
def test_bad_override(override, key, remedy):
    text = message({}, [override])
    assert text.startswith("--set: ") and key in text and remedy in text, text


@pytest.mark.parametrize(
    ("key", "block", "start"),
    [
        ("firm_anneal_prices", ANNEAL, 1001),
        ("firm_anneal_wages", ANNEAL, 1000),
        ("government_anneal_taxes", {"anneal_on": True, "increase_const": 0.1}, 0.1),
    ],
)
def test_anneal_that_allows_no_action_at_first(key, block, start):
    agents = {key: {**block, "start": start}, "corporate_tax_choices": [0.2, 0.4]}
    text = message({"agents": agents})
    assert f"agents.{key}.start = {float(start)} allows no" in text and "allowed: " in text and "correct" in text
    agents[key]["anneal_on"] = False
    load_config({"agents": agents})


def test_proportional_alpha_needs_few_firms():
    load_config({"agents": {"num_firms": 11}, "world": {"production_alpha": "proportional"}})
    assert "exceeds 1" in message({"agents": {"num_firms": 12}, "world": {"production_alpha": "proportional"}})


def test_joint_action_tables_are_bounded():
    grid = list(range(1000))
    text = message({"agents": {"price_choices": grid, "wage_choices": grid}})
    assert "agents.price_choices" in text and "1000000 joint actions" in text


def test_all_faults_are_listed_one_line_each():
    source = {"agents": {"num_firms": 0}, "world": {"maxtime": "x"}, "train": {"lrr": 1}, "extra": {}}
    lines = message(source, ["world.crra_param=-1"]).splitlines()
    assert len(lines) == 5
    assert sum(line.startswith("--set: world.crra_param") for line in lines) == 1
    assert sum(line.startswith("<mapping>: ") for line in lines) == 4


def test_very_many_faults_are_cut():
    lines = message({"agents": {f"key{i}": 1 for i in range(200)}}).splitlines()
    assert len(lines) == 51 and "150 more" in lines[-1]
