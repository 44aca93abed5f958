"""Results of invented studies, in the form of ``results.json``."""

import random

LABELS = {
    "unpruned": "unpruned",
    "pruned": "pruned, not fine-tuned",
    "finetune": "fine-tuned",
    "scratch_e": "Scratch-E",
    "scratch_b": "Scratch-B",
    "uniform": "uniform widths",
}

LONG = "some_package.with_a_long_name.models:factory_of_networks?width=0.25&norm=group_norm_of_eight_channels"
SCORES = {
    "seed": 0,
    "edges": [0.0, 0.25, 0.5, 0.75, 1.0],
    "kept": [0, 0, 7, 21],
    "removed": [15, 5, 0, 0],
    "cut": 0.5,
    "to": "",
    "log": False,
}
KERNELS = {"8x8": {"3x3": [0.1, 0.2, 0.1, 0.2, 0.9, 0.2, 0.1, 0.2, 0.1]}, "1": {"1": [0.25]}}


def row(method, goal, arm, mean, ratio):
    seeds = {"0": mean - 0.2, "1": mean, "2": mean + 0.2}
    return {
        "network": "zoo:digitsnet",
        "data": "digits",
        "method": method,
        "goal": goal,
        "arm": arm,
        "label": LABELS[arm],
        "accuracy": {"mean": mean, "std": 0.2, "n": 3, "seeds": seeds},
        "macs": 1_230_000 * ratio,
        "params": 45_678 * ratio,
        "macs_ratio": ratio,
        "params_ratio": ratio,
        "bytes": 182_712 * ratio,
        "epochs": 16.0,
        "seconds": 3.0,
        "latency_ms": 0.5478,
        "proof": None,
        "widths": {"conv1": [8.3, 16], "layer1.0.conv1": [20.0, 32]} if arm == "pruned" else {},
        "cells": {},
    }


def make_results(method="l1"):
    arms = {"pruned": 41.0, "finetune": 97.1, "scratch_e": 96.0, "scratch_b": 96.9, "uniform": 96.1}
    rows = [row("none", "", "unpruned", 97.8, 1.0)]
    rows += [row(method, "50 % of MACs", arm, mean, 0.495) for arm, mean in arms.items()]
    comparison = {
        "network": "zoo:digitsnet",
        "data": "digits",
        "method": method,
        "goal": "50 % of MACs",
        "when": "",
        "a": "finetune",
        "b": "scratch_b",
        "mean": 0.2,
        "low": -0.1,
        "high": 0.5,
        "n": 3,
        "level": 0.95,
        "significant": False,
        "verdict": "no significant difference between fine-tuning and Scratch-B",
    }
    other = {**comparison, "b": "scratch_e", "low": 0.3, "high": 1.5, "mean": 0.9, "significant": True}
    return {
        "topiarist": "0.1.0",
        "title": "A study",
        "study": {
            "seeds": [0, 1, 2],
            "prunings": [{"method": {"name": method, "p": 2}, "budget": {}}],
            "recipe": {"epochs": 16},
            "finetune": {},
            "cap": 2.0,
        },
        "conclusion": ["No significant difference between fine-tuning and Scratch-B for l1 at 50 % of MACs."],
        "rows": rows,
        "comparisons": [comparison, {**other, "verdict": "fine-tuning outperforms Scratch-E by 0.90 points"}],
        "failed": {},
        "environment": {"python": "3.11"},
    }


def large_results():
    """Two networks, one with a long name; structures and weights; published numbers; cells that failed."""
    results = make_results()
    results["title"] = "A_study_with_a_long_title_that_has_no_space_in_it_where_a_line_could_break_on_a_telephone"
    results["note"] = "Scale mini: a quarter of the width."
    results["failed"] = {"-".join([LONG, "l1", "finetune"]): "the loss is not finite: take a smaller learning rate."}
    chance, rows = random.Random(0), []
    for network in ("zoo:digitsnet", LONG):
        plain = row("none", "", "unpruned", 93.5, 1.0) | {"network": network}
        rows.append(plain | {"published": {"accuracy": 93.63, "source": "Liu et al. 2019, Table 1"}})
        for method, goal, share in (
            ("l1", "50 % of MACs", 0.5),
            ("slimming", "30 % of MACs", 0.3),
            ("obd", "5 %", 0.05),
        ):
            for arm in list(LABELS)[1:]:
                one = row(method, goal, arm, round(chance.uniform(88, 93), 2), share) | {"network": network}
                if arm == "pruned":
                    one |= {"scores": SCORES, "kernels": KERNELS if method == "obd" else {}}
                rows.append(one)
    results["rows"] = rows
    results["comparisons"] = [
        entry | {"network": name} for entry in results["comparisons"] for name in ("zoo:digitsnet", LONG)
    ]
    return results
