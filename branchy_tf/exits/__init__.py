"""Exits: their names, their heads, and how to add them to a model."""

from branchy_tf.exits.adding import add_exits
from branchy_tf.exits.heads import Head, conv_head, linear_head, logits_head, pool_head
from branchy_tf.exits.logits import check_logits
from branchy_tf.exits.names import baseline, exit_names, exit_tensors, num_classes
from branchy_tf.exits.proposing import exit_places, propose_exits
from branchy_tf.exits.spelling import ExitPlan, parse_exits
from branchy_tf.results import exit_name

__all__ = [
    "ExitPlan",
    "Head",
    "add_exits",
    "baseline",
    "check_logits",
    "conv_head",
    "exit_name",
    "exit_names",
    "exit_places",
    "exit_tensors",
    "linear_head",
    "logits_head",
    "num_classes",
    "parse_exits",
    "pool_head",
    "propose_exits",
]
