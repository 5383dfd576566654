"""Thresholds that tune themselves while serving; needs no TensorFlow.

```python
from branchy_tf.tuning import ThresholdTuner
```
"""

from branchy_tf.tuning.strategy import Strategy
from branchy_tf.tuning.tuner import ThresholdTuner

__all__ = ["Strategy", "ThresholdTuner"]
