"""The model zoo: builders of early-exit networks.

```python
from branchy_tf.zoo import branchy_lenet, list_models, list_weights
```
"""

from branchy_tf.zoo.lenet import branchy_lenet
from branchy_tf.zoo.registry import build, list_models, list_weights
from branchy_tf.zoo.resnet import branchy_resnet

__all__ = ["branchy_lenet", "branchy_resnet", "build", "list_models", "list_weights"]
