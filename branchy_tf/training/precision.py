"""Converts a model trained in mixed precision to float32."""

from __future__ import annotations

from typing import Any

import keras

from branchy_tf import graphs

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def in_float32(model: keras.Model) -> keras.Model:
    """The same graph and weights with every layer in float32.

    Mixed precision keeps its variables in float32, so no precision is lost. A model
    that is already in float32 is returned itself.
    """
    config = model.get_config()
    plain = _without_mixed(config)
    if plain == config:
        return model
    fresh = type(model).from_config(plain)
    graphs.copy_weights(model, fresh)
    return fresh


def _without_mixed(config: Any) -> Any:
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            name = config["config"]["name"].replace("mixed_bfloat16", "float32")
            name = name.replace("mixed_float16", "float32")
            return config | {"config": config["config"] | {"name": name}}
        return {key: _without_mixed(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_without_mixed(value) for value in config)
    return config
