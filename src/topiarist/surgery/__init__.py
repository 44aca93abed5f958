"""Cuts, masks, and the proof that both compute the same."""

from topiarist.surgery.carrying import Attachment, as_optimizer, carry_over, check_training
from topiarist.surgery.checking import check, non_degenerate
from topiarist.surgery.cutting import cut, mask, masked, rewound, with_values
from topiarist.surgery.decisions import TOLERANCE, Answer, answer, difference
from topiarist.surgery.plans import Plan, apply_plan, check_shapes, copied, plan
from topiarist.surgery.proof import Proof, prove
from topiarist.surgery.rule_check import check_rule
from topiarist.surgery.selectors import add_selectors

__all__ = [
    "TOLERANCE",
    "Answer",
    "Attachment",
    "Plan",
    "Proof",
    "add_selectors",
    "answer",
    "apply_plan",
    "as_optimizer",
    "carry_over",
    "check",
    "check_rule",
    "check_shapes",
    "check_training",
    "copied",
    "cut",
    "difference",
    "mask",
    "masked",
    "non_degenerate",
    "plan",
    "prove",
    "rewound",
    "with_values",
]
