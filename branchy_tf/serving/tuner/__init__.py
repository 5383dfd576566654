"""Thresholds that tune themselves while serving; needs no TensorFlow.

```python
from branchy_tf.serving.tuner import ThresholdTuner
```
"""

from branchy_tf.serving.tuner.strategy import Strategy
from branchy_tf.serving.tuner.tuner import ThresholdTuner

__all__ = ["Strategy", "ThresholdTuner"]
