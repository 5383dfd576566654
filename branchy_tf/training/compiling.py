"""For those who call `compile` and `fit` themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from branchy_tf import checks, exits
from branchy_tf.errors import BranchyError
from branchy_tf.training.losses import check_loss_weights


def compile_exits(
    model: keras.Model,
    optimizer: str | keras.Optimizer = "adam",
    loss_weights: Sequence[float] | None = None,
    metrics: Sequence[str | keras.Metric] = ("accuracy",),
) -> keras.Model:
    """Compiles a multi-exit model with a cross-entropy and the metrics at every exit.

    Keras itself refuses `metrics=["accuracy"]` for several outputs, and its default loss
    takes logits for probabilities. Fit it with the labels from `by_exit`.

    Args:
        model: outputs `{"exit_1": logits, ..., "exit_N": logits}`.
        optimizer: as for `compile`.
        loss_weights: one weight for each exit; default: 1 each.
        metrics: names or `keras.Metric`s for class indices and logits; each exit gets
            its own copy.

    Returns:
        The model.

    Raises:
        BranchyError: the model has no exits, or the arguments do not fit.

    Example:

    ```python
    training.compile_exits(model, loss_weights=[1.0, 0.3])
    model.fit(images, training.by_exit(model, labels), epochs=5)
    ```
    """
    names = exits.exit_names(model)
    weights = check_loss_weights(names, loss_weights)
    if not isinstance(metrics, (list, tuple)) or not all(
        isinstance(metric, (str, keras.Metric)) for metric in metrics
    ):
        raise BranchyError(
            '`metrics` must be a list of names or keras.Metrics, such as ["accuracy"]. '
            f"Received {checks.shown(metrics)}."
        )
    try:
        model.compile(
            optimizer=optimizer,
            loss={
                name: keras.losses.SparseCategoricalCrossentropy(from_logits=True)
                for name in names
            },
            loss_weights=dict(zip(names, weights, strict=True)),
            metrics={name: [_own(metric) for metric in metrics] for name in names},
        )
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BranchyError(f"{model.name} cannot be compiled so: {reason}") from None
    return model


def by_exit(model: keras.Model, labels: Any) -> dict[str, Any]:
    """`{exit: labels}` for `fit`: every exit learns the same labels.

    Args:
        model: a multi-exit model.
        labels: class indices [n], an array or a tensor; so it serves in
            `tf.data.Dataset.map` too.

    Example:

    ```python
    train = train.map(lambda images, labels: (images, training.by_exit(model, labels)))
    ```
    """
    return dict.fromkeys(exits.exit_names(model), labels)


def _own(metric: str | keras.Metric) -> str | keras.Metric:
    """A metric for one exit alone, with state of its own."""
    if isinstance(metric, str):
        return metric
    return type(metric).from_config(metric.get_config())
