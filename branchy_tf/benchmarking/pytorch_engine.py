"""The same network with the same exits in eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from branchy_tf.benchmarking.pytorch_layers import Network
from branchy_tf.benchmarking.rows import Arrays, count
from branchy_tf.policy import ExitPolicy, exits_early


def load(programs: dict[str, dict[str, Any]], threads: int) -> PyTorchEngine:
    """See `PyTorchEngine`; this process has Keras on PyTorch, without TensorFlow."""
    import keras

    from branchy_tf import stages

    torch.set_num_threads(threads)
    networks = {}
    for contender, program in programs.items():
        model = keras.models.load_model(program["path"], compile=False)
        parts = [Network(stage.model) for stage in stages.split(model)]
        networks[contender] = EarlyExit(parts, ExitPolicy(**program["policy"]))
    return PyTorchEngine(networks)


class PyTorchEngine:
    """Contenders are early-exit networks, one `EarlyExit` each."""

    def __init__(self, networks: dict[str, EarlyExit]) -> None:
        self._networks = networks

    def prepare(self, contender: str, batches: list[Arrays]) -> Callable[[int], Any]:
        """See `worker.Engine`."""
        network = self._networks[contender]
        return lambda i: network(batches[i])

    def answer(self, contender: str, inputs: Arrays) -> tuple[Any, Any]:
        """See `worker.Engine`."""
        probabilities, exits, _ = self._networks[contender](inputs)
        return probabilities.argmax(axis=-1), exits


class EarlyExit:
    """Routes rows through stages as our exports do, in plain PyTorch.

    Args:
        stages: N of them; each from tensors to [logits, *carried].
        policy: who leaves where.
    """

    def __init__(self, stages: list[torch.nn.Module], policy: ExitPolicy) -> None:
        self._stages = stages
        self._policy = policy
        self._score = _SCORES[policy.criterion]

    @torch.inference_mode()
    def __call__(self, inputs: Arrays) -> tuple:
        """Inputs [B, ...] to probabilities [B, C], exits [B] and scores [B]."""
        live = [_channels_first(array) for array in inputs.values()]
        rows = torch.arange(count(inputs))
        answers: tuple | None = None
        for k, stage in enumerate(self._stages):
            logits, *live = stage(live)
            shifted = logits - logits.amax(-1, keepdim=True)
            log = torch.log_softmax(shifted / self._policy.temperature(k), -1)
            scores = self._score(log)
            found = (log.exp(), torch.full_like(rows, k), scores)
            if answers is None:
                answers = found
            else:
                for whole, part in zip(answers, found, strict=True):
                    whole[rows] = part
            if k < len(self._policy.thresholds):
                stays = ~exits_early(scores, self._policy.thresholds[k])
                if not stays.any():
                    break
                if not stays.all():
                    live, rows = [tensor[stays] for tensor in live], rows[stays]
        assert answers is not None
        return tuple(tensor.numpy() for tensor in answers)


def _channels_first(array: np.ndarray) -> torch.Tensor:
    """Images with their channels first, in memory still last, which is fastest."""
    tensor = torch.from_numpy(array).float()
    return tensor.movedim(-1, 1) if tensor.ndim == 4 else tensor


def _entropy(log: torch.Tensor) -> torch.Tensor:
    return -(log.exp() * log.clamp(min=-1e30)).sum(-1)


def _max_prob(log: torch.Tensor) -> torch.Tensor:
    return 1 - log.amax(-1).exp()


def _margin(log: torch.Tensor) -> torch.Tensor:
    if log.shape[-1] == 1:
        return _max_prob(log)
    best, second = log.topk(2).values.exp().unbind(-1)
    return 1 - (best - second)


# Those of `confidence.CRITERIA`, whose keras.ops would cost more than the sums.
_SCORES = {"entropy": _entropy, "max_prob": _max_prob, "margin": _margin}
