"""The audit of a run: sound ones pass, a number that is changed is named, and a collapse is told."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_rollouts import CONSUMERS, E, J, T, raw, run, trained  # noqa: F401 (fixtures)

from rbc_warp import __main__
from rbc_warp.analysis.audit import quick_audit
from rbc_warp.config import load_config
from rbc_warp.economy import curriculum, reference
from rbc_warp.economy.agents import AGENT_TYPES
from rbc_warp.economy.parameters import Economy
from rbc_warp.runs.folder import RunDir

PUBLIC = 4 * J + 3
FIRM_0, LAST, ALL = "2, firm 0", "2, consumer 4", "2: "
Shown = pytest.CaptureFixture[str]


def told(run: RunDir, capsys: Shown, code: int) -> str:  # noqa: F811
    """What the command prints, with the exit code that is due."""
    assert __main__.main(["audit", str(run.path)]) == code
    return capsys.readouterr().out


def change(run: RunDir, agent: str, key: str, index: tuple[int, ...], by: float, label: str = "final") -> None:  # noqa: F811
    arrays = raw(run, agent, label)
    arrays[key][index] += by
    (run.path / "manifest.json").unlink(missing_ok=True)
    np.savez(run.episode_path(label, agent), **arrays)


def test_a_sound_run_passes(trained: RunDir, capsys: Shown) -> None:  # noqa: F811
    shown = told(trained, capsys, 0)
    assert shown.startswith("3 rollouts (0, 10, final)") and "goods, money, hours and taxes add up" in shown
    assert f"all {3 * E * T * (CONSUMERS * (J + 2) + J + 1):,} actions were allowed" in shown
    assert "frequencies agree with the policies'" in shown and "no collapse in rollout final" in shown
    assert "note: rollout final: the policies that played it are not saved" in shown
    assert quick_audit(trained) == "goods, money, hours and taxes add up in the last rollout, and nothing has collapsed"


@pytest.mark.parametrize(
    ("agent", "key", "index", "by", "faults"),
    [
        (
            "firm",
            "states",
            (1, 2, 0, PUBLIC),
            50.0,
            {"replay of the firm's budget": FIRM_0, "hours": ALL, "money": ALL},
        ),
        ("firm", "states", (1, 2, 0, PUBLIC + 1), 50.0, {"replay of the firm's capital": FIRM_0, "money": ALL}),
        ("consumer", "states", (3, 2, 4, PUBLIC), 5.0, {"replay of the consumer's budget": LAST, "taxes": ALL}),
        ("consumer", "states", (3, 2, 4, PUBLIC + 1), 0.1, {"replay of the consumer's theta": LAST}),
        (
            "consumer",
            "aux_array",
            (0, 0, 4, 1),
            30.0,
            {"replay of consumption": "0, consumer 4, good 1", "goods": "0, "},
        ),
        ("firm", "aux_array", (2, 1, 0), 60.0, {"replay of exports": "1, firm 0", "goods": "1, firm 0"}),
        ("firm", "actions", (2, 1, 0), 1.0, {"replay of wages": FIRM_0}),
        ("government", "states", (0, 2, 0, 2 * J), 3.0, {"inventories as a firm sees it": FIRM_0, "goods": FIRM_0}),
        ("consumer", "rewards", (0, 2, 4), 0.01, {"replay of the consumer's reward": LAST, "welfare": ALL}),
        ("firm", "rewards", (0, 2, 0), 10.0, {"replay of the firm's reward": FIRM_0}),
        ("government", "rewards", (3, 2, 0), float("nan"), {"welfare": ALL}),
        ("consumer", "states", (1, 0, 4, PUBLIC), 5.0, {"start: the consumer's budget": "0, consumer 4"}),
    ],
)
def test_a_changed_number_is_named(
    run: RunDir,  # noqa: F811
    capsys: Shown,
    agent: str,
    key: str,
    index: tuple[int, ...],
    by: float,
    faults: dict[str, str],
) -> None:
    arrays = raw(run, agent)
    if key == "actions":
        by = 1.0 if arrays[key][index] % 5 == 0 else -1.0  # another wage, the same price
    change(run, agent, key, index, by)
    shown = told(run, capsys, 1)
    for check, period_and_agent in faults.items():
        place = f"rollout final, episode {index[0]}, period {period_and_agent}"
        pattern = rf"^FAILS: {re.escape(check)}.*: {place}.*[-\d.,nae]+ where [-\d.,e]+ is due; [\d,]+ of [\d,]+ such"
        assert re.search(pattern, shown, re.MULTILINE), f"{check}, {place}\n{shown}"
    assert "add up" not in shown
    assert quick_audit(run).endswith(f"more: python -m rbc_warp audit {run.path}")


def test_an_action_that_was_not_allowed_is_named(run: RunDir, capsys: Shown) -> None:  # noqa: F811
    taken = raw(run, "government", "0")["actions"][2, 1, 0]
    assert taken == 0  # at first, no taxes are all that is allowed
    change(run, "government", "actions", (2, 1, 0), 7, "0")
    shown = told(run, capsys, 1)
    assert "FAILS: masks: government: choice allowed at iteration 0" in shown
    assert "rollout 0, episode 2, period 1, government 0: 7 where 0 is due; 1 of 12 such numbers are off" in shown


def test_another_policy_s_frequencies_differ(run: RunDir, capsys: Shown) -> None:  # noqa: F811
    state = torch.load(run.policy_path("consumer", 0), weights_only=True)
    state[f"action_heads.{J}.bias"][2] += 3.0
    run.save_policy("consumer", 0, state)
    shown = told(run, capsys, 0)
    assert re.search(r"^DIFFER: .* consumer, hours, action 2 in rollout 0: drawn", shown, re.MULTILINE), shown


def test_a_collapse_is_told(run: RunDir, capsys: Shown) -> None:  # noqa: F811
    config = load_config(run.hparams_path, ["world.use_importer=false"])
    economy = Economy.from_config(config)
    actions = {agent: np.zeros_like(raw(run, agent)["actions"]) for agent in AGENT_TYPES}
    actions["firm"] += raw(run, "firm")["actions"][0, 0, 0]
    stage = replace(reference.DEFAULT_STAGE, theta_factor=curriculum.theta_factor(config, 11))
    for agent, arrays in reference.rollout(economy, actions, stage).items():
        choices = economy.agents[agent].choices
        arrays.pop("final_states")
        run.write_episode("final", agent, actions=actions[agent], action_array=choices, **arrays)
    for label in ("0", "10"):
        for agent in AGENT_TYPES:
            run.episode_path(label, agent).unlink()
    run.write_hparams(config.to_dict(with_derived=True))
    shown = told(run, capsys, 0)
    assert "COLLAPSE in rollout final: no work: 0 hours per consumer and period, of at most 1040" in shown
    assert "COLLAPSE in rollout final: no trade: 0 units sold and exported per firm and period" in shown
    assert "one action: 100.00% of the draws of the consumer type are units 0 0, hours 0, employer 0" in shown
    assert re.search(r"one action: 100.00% of the draws of the firm type are price \d+, wage \d+", shown)
    assert quick_audit(run).count("COLLAPSE") >= 4


def test_negative_units_of_the_published_code_are_left_out(run: RunDir, capsys: Shown) -> None:  # noqa: F811
    arrays = raw(run, "government")
    (run.path / "manifest.json").unlink(missing_ok=True)
    np.savez(run.episode_path("final", "government"), **arrays | {"aux_array": None})
    arrays = raw(run, "consumer")
    arrays["aux_array"][1, 0, 3, 0] = -1.0
    np.savez(run.episode_path("final", "consumer"), **arrays)
    assert "FAILS: replay of consumption" in told(run, capsys, 1)
    run.status_path.unlink()
    shown = told(run, capsys, 0)
    assert f"note: rollout final: left out 1 of {E * T} periods, in which consumers in debt get negative units" in shown
    assert "note: rollout final: its iteration is not known" in shown


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: Shown) -> None:
    with pytest.raises(SystemExit) as ended:
        __main__.main(["audit", str(tmp_path / "nowhere")])
    assert ended.value.code == 2 and "is not a folder" in capsys.readouterr().err
