"""Thresholds that tune themselves while serving; needs no TensorFlow.

```python
from branchy_tf.tuning import ThresholdTuner
```
"""

from branchy_tf.tuning.policy import Policy
from branchy_tf.tuning.tuner import ThresholdTuner

__all__ = ["Policy", "ThresholdTuner"]
