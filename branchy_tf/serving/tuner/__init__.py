"""Thresholds that tune themselves while serving; needs no TensorFlow.

```python
from branchy_tf.serving.tuner import ThresholdTuner
```
"""

from branchy_tf.serving.tuner.policy import Policy
from branchy_tf.serving.tuner.tuner import ThresholdTuner

__all__ = ["Policy", "ThresholdTuner"]
