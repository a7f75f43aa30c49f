"""What published findings look like here: finished runs → claims, each with a number, an interval and an answer.

Every rule is stated where it is applied; the page says which were changed after numbers were known. An answer follows
from an interval over seeds (95 %): "reproduced" or "not reproduced" where all of it lies on one side, "cannot tell"
where it does not, or where there are too few runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from rbc_warp.analysis.claims import (
    ABOVE_0,
    BELOW_0,
    CANNOT_TELL,
    FEWEST,
    MOSTLY,
    MUCH_MORE_OFTEN,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Question,
    Table,
    above,
    below,
    claim,
    correlation,
    difference,
    difference_of_shares,
    mean,
    much_more_often,
    share,
)
from rbc_warp.analysis.equivalence import EQUIVALENCE, FARTHEST, NEAREST, log_distances, ratio, same_conclusions
from rbc_warp.analysis.finding_tables import REWARDS, TAXES, final_table, gap_table, mean_of, mean_text, passed_text
from rbc_warp.analysis.fiscal import LEARNED, premium
from rbc_warp.analysis.outcomes import Outcome, figure, passes
from rbc_warp.analysis.relations import regress, within_groups
from rbc_warp.equilibrium.game import Estimate
from rbc_warp.equilibrium.results import PUBLISHED_BARS
from rbc_warp.runs.console import number_text

UNSEEN = "seeds that no setting was chosen by"
MIDDLE, LATER = 1560, 2340
"""Iterations of the checkpoints in the middle of training, and at three quarters of it."""
UNTRAINED = (MIDDLE, "government")
"""Who has not begun to learn in the middle: what it gains there says nothing of training."""
TABLE_3_SEEDS = 10
"""Seeds of which the published bars are the worst."""
PUBLISHED_PREMIUM = 15.0
"""What learned taxes bring over the best fixed ones, as published [%]."""
FIXED_AS_PUBLISHED = ("20 % / 20 %", "40 % / 40 %", "60 % / 60 %")
"""Of the fixed taxes that are tried, those that lie in the published range, 20 to 80 % on both."""
UNCORRELATED = 0.25
"""r² below which two quantities do not go together."""

Runs = Mapping[str, Sequence[Outcome]]
"""Finished runs of each part."""


# Figures of runs


def where(runs: Sequence[Outcome], key: str, value: Any) -> list[Outcome]:
    """Return the runs with this setting."""
    return [run for run in runs if run.settings[key] == value]


def taxes_of(run: Outcome) -> str:
    """The fixed taxes of a run, income / corporate, of the lists in rbc.yaml."""
    action = run.settings["agents.frozen_government_action"]
    return " / ".join(f"{20 * rate:g} %" for rate in divmod(action, 6))


def collapses(runs: Sequence[Outcome]) -> list[bool]:
    return [run.activity.has_collapsed for run in runs if run.activity is not None]


# The questions


def open_economy(runs: Runs, cross_play: Mapping[str, Any] | None = None) -> Question:
    """Question 1: training by phase, the gap table, and whether there is one equilibrium."""
    found, unseen, parts = runs.get("open", ()), runs.get("unseen", ()), ("open",)
    claims = []
    for when, text in (
        ("after", "in the first sixth of their phase"),
        ("end", "at its end, when taxes are drawn, too"),
    ):
        for name, direction in (("price", "up"), ("wage", "down"), ("profit", "up"), ("utility", "down")):
            shifts = [shift for run in found for shift in run.shifts if shift.figure.startswith(name)]
            unit = shifts[0].figure.partition("[")[2].rstrip("]") if shifts else ""
            claims.append(
                claim(
                    f"When firms learn, {name} goes {direction}, {text}",
                    f"then less before their phase, mean over seeds: {ABOVE_0 if direction == 'up' else BELOW_0}",
                    mean(getattr(shift, when) - shift.before for shift in shifts),
                    unit,
                    above(0.0) if direction == "up" else below(0.0),
                    found,
                    parts,
                )
            )
    for agent in PUBLISHED_BARS:
        claims.append(
            claim(
                f"In its own phase, training raises the reward of the {agent} type",
                f"against its untrained policy, all else equal, mean over seeds: {ABOVE_0}",
                mean(run.learned.get(agent) for run in found),
                "reward per period",
                above(0.0),
                [run for run in found if agent in run.learned],
                parts,
            )
        )
    for some, part, where_text in ((found, "open", "ten seeds"), (unseen, "unseen", f"ten {UNSEEN}")):
        claims += [_table_3(agent, some, part, where_text) for agent in PUBLISHED_BARS]
    for first in (MIDDLE, LATER):
        claims += [_shrinks(agent, found, first) for agent in PUBLISHED_BARS if (first, agent) != UNTRAINED]
    for some, part, where_text in ((found, "open", "types only were tested there"), (unseen, "unseen", UNSEEN)):
        claims.append(
            claim(
                f"No agent alone, nor a type fine-tuned, gains more than the published bars ({where_text})",
                f"share of seeds whose full verdict passes: {MOSTLY}",
                share(passes(some)),
                "of seeds",
                above(0.5),
                [run for run in some if run.verdict],
                (part,),
            )
        )
    claims.append(_several(found, cross_play))
    tables = [gap_table(found), final_table("open", found), final_table(f"open, at {UNSEEN}", unseen)]
    return Question(1, "The open economy", (*parts, "unseen"), claims, tables)


def _table_3(agent: str, runs: Sequence[Outcome], part: str, where_text: str) -> Claim:
    """The published bar: fine-tuning of the type in the worst seed."""
    bar = PUBLISHED_BARS[agent]
    known, shares = [], []
    for run in runs:
        tuned = run.tuned_at(agent, run.last)
        if tuned is not None and tuned.base is not None:
            known.append(run)
            shares.append(Estimate(*(100.0 * value / tuned.base for value in (tuned.gain, tuned.low, tuned.high))))

    def judge(worst: Estimate) -> str:
        if any(each.low > bar for each in shares):
            return NOT_REPRODUCED
        return REPRODUCED if len(known) >= TABLE_3_SEEDS and worst.high < bar else CANNOT_TELL

    return claim(
        f"Table 3: fine-tuned, the {agent} type gains less than {bar:g} %, worst of {where_text}",
        f"upper ends, of the training gain, or of own learning where that is not positive (consumers): reproduced if "
        f"below {bar:g} % in {TABLE_3_SEEDS} seeds, not if in any seed the whole interval lies above; the number is "
        "the worst seed's",
        max(shares, key=lambda each: each.high, default=None),
        "%",
        judge,
        known,
        (part,),
    )


def _shrinks(agent: str, runs: Sequence[Outcome], first: int) -> Claim:
    """What fine-tuning gains shrinks from a checkpoint to the end."""
    pairs = [(run, run.tuned_at(agent, first), run.tuned_at(agent, run.last)) for run in runs]
    known = [(run, before, end) for run, before, end in pairs if before is not None and end is not None]
    return claim(
        f"Fig. 4: what the {agent} type gains by fine-tuning shrinks from iteration {first:,} to the end",
        f"gain at the latest checkpoint less that at iteration {first:,}, mean over seeds: {BELOW_0}",
        mean(end.gain - before.gain for _, before, end in known),
        "reward per period",
        below(0.0),
        [run for run, _, _ in known],
        ("open",),
    )


def _several(runs: Sequence[Outcome], cross_play: Mapping[str, Any] | None) -> Claim:
    names = {str(run["path"]).rsplit("/", 1)[-1] for run in (cross_play or {"runs": []})["runs"]}
    played = [run for run in runs if run.name in names]
    equivalent = cross_play["equivalent"] if cross_play else None
    number = None
    if cross_play and "government" in cross_play["differences"]:
        welfare = [float(mixture["values"]["government"]["mean"]) for mixture in cross_play["mixtures"]]
        found = max(cross_play["differences"]["government"], key=lambda each: each["low"])
        number = Estimate(*(100.0 * found[end] / max(welfare) for end in ("mean", "low", "high")))
    answer = {True: NOT_REPRODUCED, False: REPRODUCED, None: CANNOT_TELL}[equivalent]
    return claim(
        "Seeds end in several outcomes, not one",
        "cross-play: reproduced if mixtures of runs are not equivalent (some type's values differ by more than its "
        "bar, intervals included), not if they are; the number is the largest difference of welfare",
        number,
        "% of welfare",
        lambda _: answer,
        played,
        ("open",),
        str(cross_play["sentence"]) if cross_play else "",
    )


def closed_economy(runs: Runs) -> Question:
    """Question 2: does the closed economy collapse?"""
    closed, opened, parts = runs.get("closed", ()), runs.get("open", ()), ("closed", "open")
    known = [run for run in closed if run.activity is not None]
    worked = ", ".join(f"{100.0 * run.activity.worked:.3g}" for run in known if run.activity)
    claims = [
        claim(
            "The closed economy mostly collapses",
            f"share of seeds without work or trade at the end: {MOSTLY}",
            share(collapses(known)),
            "of seeds",
            above(0.5),
            known,
            ("closed",),
            f"hours of the last rollouts, in % of the most: {worked}" if worked else "",
        )
    ]
    for name, unit in (("wage", "money per hour"), ("hours", "per consumer"), ("production", "units per firm")):
        text = "production (sold and exported)" if name == "production" else name
        claims.append(
            claim(
                f"Closed, {text} is lower than open",
                f"closed less open, means over seeds: {BELOW_0}",
                difference([figure(run, name) for run in closed], [figure(run, name) for run in opened]),
                unit,
                below(0.0),
                [*closed, *opened],
                parts,
            )
        )
    return Question(2, "The closed economy", parts, claims, [final_table("closed", closed)], COLLAPSE)


COLLAPSE = (
    "**Collapse** is a lack of work or of trade in the last rollout: hours below 1 % of the most that a consumer can "
    "work, or fewer than 0.01 units sold and exported per firm and period."
)


def curriculum(runs: Runs) -> Question:
    """Question 3: a curriculum against none, with the same environment steps."""
    parts, claims = ("no_curriculum", "unseen", "closed"), []
    tables = []
    for name, part, importer in (("open", "unseen", 1), ("closed", "closed", 0)):
        without = where(runs.get("no_curriculum", ()), "world.use_importer", importer)
        with_it = runs.get(part, ())
        both = [*without, *with_it]
        claims.append(
            claim(
                f"The {name} economy collapses much more often without a curriculum",
                "share of seeds that collapse, without less with: reproduced if the interval lies above 0, not if its "
                f"upper end is below {MUCH_MORE_OFTEN:g}",
                difference_of_shares(collapses(without), collapses(with_it)),
                "of seeds",
                much_more_often,
                [run for run in both if run.activity],
                ("no_curriculum", part),
            )
        )
        gap = difference(log_distances(without), log_distances(with_it))
        claims.append(
            claim(
                f"With the same samples, the {name} economy ends farther from an equilibrium without a curriculum",
                "ratio of distances, without over with: the largest upper end of a gain in bars, "
                f"{NEAREST:g} to {FARTHEST:g}, geometric means over seeds: reproduced if above 1, not if below",
                gap and ratio(gap),
                "times as far",
                above(1.0),
                [run for run in both if run.verdict],
                ("no_curriculum", part),
            )
        )
        tables.append(final_table(f"{name}, without a curriculum", without))
    return Question(3, "A curriculum against none", parts, claims, tables, COLLAPSE)


def taxes(runs: Runs) -> Question:
    """Question 4: learned taxes against fixed ones."""
    opened, fixed, parts = runs.get("open", ()), runs.get("fixed_taxes", ()), ("fixed_taxes", "open")
    by_taxes: dict[str, list[Outcome]] = {}
    for run in fixed:
        by_taxes.setdefault(taxes_of(run), []).append(run)
    rule = f"reproduced if the interval lies above {PUBLISHED_PREMIUM:g} %, not if below"
    claims = []
    for text, tried in (
        ("the best fixed of 20, 40, 60 % on both", FIXED_AS_PUBLISHED),
        ("the best fixed, none among them", tuple(by_taxes)),
    ):
        best, number = _premium(opened, {name: some for name, some in by_taxes.items() if name in tried})
        claims.append(
            claim(
                f"Learned taxes bring at least {PUBLISHED_PREMIUM:g} % more welfare than {text}; all learn anew",
                f"ratio of mean welfare over seeds: {rule}",
                number,
                "%",
                above(PUBLISHED_PREMIUM),
                [*opened, *(run for name in tried for run in by_taxes.get(name, ()))],
                parts,
                f"best fixed taxes, income / corporate: {best}" if best else "",
            )
        )
    scanned = [run for run in opened if run.scan]
    published = [f"income tax {rate:g}, corporate tax {rate:g}" for rate in (0.2, 0.4, 0.6, 0.8)]
    for text, chosen in (("the best fixed of 20 to 80 % on both", published), ("the best fixed of all 36", None)):
        best_of = [max(run.scan[pair] for pair in chosen or run.scan) for run in scanned]
        claims.append(
            claim(
                f"Learned taxes bring at least {PUBLISHED_PREMIUM:g} % more welfare than {text}; others stay",
                f"constant taxes while consumers and firms play their policies, mean over seeds: {rule}",
                mean(100.0 * (1.0 / best - 1.0) for best in best_of),
                "%",
                above(PUBLISHED_PREMIUM),
                scanned,
                ("open",),
            )
        )
    equal = [run for name in FIXED_AS_PUBLISHED for run in by_taxes.get(name, ())]
    levels = [20.0 * (run.settings["agents.frozen_government_action"] % 6) for run in equal]
    for name, judge, rule in (
        ("consumer reward", above(0.0), ABOVE_0),
        ("firm reward", below(0.0), BELOW_0),
    ):
        direction = "raise" if name.startswith("consumer") else "lower"
        table = pd.DataFrame({"taxes": levels, name: [figure(run, name) for run in equal]})
        line = regress(table, "taxes", name)
        claims.append(
            claim(
                f"From 20 over 40 to 60 % on both, higher fixed taxes {direction} the {name}",
                f"slope over runs: {rule}",
                None if line is None else Estimate(line.slope, line.low, line.high),
                "per percentage point",
                judge,
                equal,
                ("fixed_taxes",),
                f"r² {line.r_squared:.2f}" if line else "",
            )
        )
    names = (*REWARDS, "price", "wage", "hours")
    rows = [
        (
            name,
            *(mean_text([figure(run, each) for run in some]) for each in names),
            passed_text(some),
        )
        for name, some in [("learned", list(opened)), *sorted(by_taxes.items())]
    ]
    table = Table(
        "Means over seeds, and 95 % intervals, by taxes (income / corporate); verdicts that pass",
        ("taxes", *names, "verdict"),
        rows,
    )
    return Question(4, "Learned taxes against fixed ones", parts, claims, [table], NOT_TRIED)


NOT_TRIED = (
    "The published grid is 20, 40, 60 and 80 % on both; under 80 % nobody learned anew here. Where verdicts do not "
    "pass, welfare is of policies that are no equilibrium."
)


def _premium(learned: Sequence[Outcome], fixed: Mapping[str, Sequence[Outcome]]) -> tuple[str, Estimate | None]:
    """Return the best fixed taxes, and by how much welfare under learned ones exceeds that under them [%]."""
    groups = {LEARNED: learned, **fixed}
    known = {name: some for name, some in groups.items() if len(some) >= FEWEST}
    if LEARNED not in known or len(known) < 2:
        return "", None
    rows = [(name, figure(run, "welfare")) for name, some in known.items() for run in some]
    found = premium(pd.DataFrame(rows, columns=["taxes", "welfare"]))
    return found.best, Estimate(found.percent, found.low, found.high)


RELATIONS = (
    ("price", "sales", "Where prices are higher, less is consumed", below(0.0), BELOW_0, 0.73),
    ("consumer reward", "firm reward", "Consumers' and firms' rewards rise together", above(0.0), ABOVE_0, 0.25),
    ("wage", "hours", "Where wages are higher, more is worked", above(0.0), ABOVE_0, 0.19),
)
"""x, y, the published relation over solutions (Fig. 7), how it is judged, and its r²."""
EXPORTED = "world.importer_quantity"
CLUSTERS = (
    "Runs with the same export quantity are much alike, whatever its price; so intervals of slopes are over the means "
    "of the quantities. r² is over runs, as published, with Fisher's interval. Within a quantity: the slope over runs "
    "less their quantity's mean."
)


def relations(runs: Runs) -> Question:
    """Question 5: how figures go together over solutions, over a sweep of export price and quantity."""
    found, parts = runs.get("exports", ()), ("exports",)
    claims = []
    for x, y, text, judge, rule, published in RELATIONS:
        values = pd.DataFrame({name: [figure(run, name) for run in found] for name in (x, y)})
        quantities = [run.settings[EXPORTED] for run in found]
        line = regress(values.groupby(quantities).mean(), x, y) if found else None
        claims.append(
            claim(
                text,
                f"slope of {y} on {x} over the means of export quantities: {rule}",
                None if line is None else Estimate(line.slope, line.low, line.high),
                f"{y} per {x}",
                judge,
                found,
                parts,
                _relation_text(values, quantities, published) if line else "",
            )
        )
    rates = [sum(figure(run, name) for name in TAXES) / 2 for run in found]
    number = correlation(rates, [figure(run, "welfare") for run in found])
    limit = UNCORRELATED**0.5

    def judge_none(each: Estimate) -> str:
        if -limit < each.low and each.high < limit:
            return REPRODUCED
        return NOT_REPRODUCED if each.low > limit or each.high < -limit else CANNOT_TELL

    claims.append(
        claim(
            "Taxes and welfare do not go together",
            f"correlation of welfare with the mean of both taxes over runs: reproduced if the interval of r lies "
            f"within ±{limit:g} (r² ≤ {UNCORRELATED:g}), not if all of it lies outside",
            number,
            "r",
            judge_none,
            found,
            parts,
            f"r² {_squared(number)}, published 0.06" if number else "",
        )
    )
    names = (*REWARDS, "price", "wage", "hours", "sales", "exports")
    groups: dict[tuple, list[Outcome]] = {}
    for run in found:
        key = tuple(run.settings[f"world.importer_{name}"] for name in ("price", "quantity"))
        groups.setdefault(key, []).append(run)
    rows = [
        (
            *(f"{each:g}" for each in key),
            str(len(some)),
            *(number_text(mean_of(some, name)) for name in names),
            passed_text(some),
        )
        for key, some in sorted(groups.items())
    ]
    head = ("export price", "export quantity", "runs", *names, "verdict")
    return Question(
        5,
        "Relations over solutions",
        parts,
        claims,
        [Table("Means over seeds; verdicts that pass", head, rows)],
        CLUSTERS,
    )


def _relation_text(table: pd.DataFrame, groups: Sequence[Any], published: float) -> str:
    """r² over runs with its interval, and the slope within groups."""
    x, y = (table[name].to_numpy(dtype=float) for name in table)
    r = correlation(x, y)
    text = f"r² {_squared(r)}, published {published:g}" if r else ""
    within = within_groups(x, y, groups)
    return f"{text}; within a quantity {within}" if within else text


def _squared(r: Estimate) -> Estimate:
    """The interval of r² that follows from that of r."""
    ends = sorted((r.low**2, r.high**2))
    return Estimate(r.mean**2, 0.0 if r.low <= 0.0 <= r.high else ends[0], ends[1])


def draws(runs: Runs) -> Question:
    """Question 6: what the public code's defect of draws changes."""
    base, claims, tables = runs.get("unseen", ()), [], []
    for part, text in (
        ("draws_forever", "each firm and the government draw by one uniform number for ever, as in the public code"),
        ("draws_shared", "all firms and the government share one uniform number per environment and period"),
    ):
        text = f"Conclusions are the same where {text}"
        found, table = same_conclusions(text, base, runs.get(part, ()), ("unseen", part))
        claims.append(found)
        tables += table
    parts = ("draws_forever", "draws_shared", "unseen")
    return Question(6, "The public code's draws", parts, claims, tables, EQUIVALENCE)


def machinery(runs: Runs) -> Question:
    """Question 7: precision, and the number of environments."""
    precision = runs.get("precision", ())
    first, tables = same_conclusions(
        "bfloat16 products bring the conclusions of float32",
        where(precision, "train.precision", "float32"),
        where(precision, "train.precision", "bfloat16"),
        ("precision",),
    )
    second, more = same_conclusions(
        "128 environments bring the conclusions of 32",
        runs.get("unseen", ()),
        runs.get("environments", ()),
        ("unseen", "environments"),
    )
    parts = ("precision", "environments", "unseen")
    title = "Precision, and the number of environments"
    words = f"{EQUIVALENCE} 128 environments have four times the samples, 7 million env-steps, in as many iterations."
    return Question(7, title, parts, [first, second], [*tables, *more], words)


PER_HEAD = (
    "Only numbers change: a firm's first budget stays 22,000 per consumer, and the importer buys up to 100 units of "
    "each firm, however many consumers there are. More than 300 consumers and more than 10 firms were not tried."
)


def sizes(runs: Runs) -> Question:
    """Question 8: how many consumers and firms until results stop changing."""
    base, claims, tables = runs.get("unseen", ()), [], []
    for part, numbers, whole in (("consumers", (10, 30, 300), "100 consumers"), ("firms", (2, 5), "10 firms")):
        for number in numbers:
            some = where(runs.get(part, ()), f"agents.num_{part}", number)
            found, table = same_conclusions(
                f"{number} {part} bring the conclusions of {whole}", base, some, ("unseen", part)
            )
            claims.append(found)
            tables += table
    title, parts = "How many consumers and firms", ("consumers", "firms", "unseen")
    return Question(8, title, parts, claims, tables, f"{EQUIVALENCE} {PER_HEAD}")


def questions(runs: Runs, cross_play: Mapping[str, Any] | None = None) -> list[Question]:
    """Answer all of them."""
    rest = (closed_economy, curriculum, taxes, relations, draws, machinery, sizes)
    return [open_economy(runs, cross_play), *(answer(runs) for answer in rest)]
