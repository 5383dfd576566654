"""The model zoo: builders of early-exit networks.

```python
from branchy_tf.zoo import branchy_lenet, list_models, list_weights
```
"""

from branchy_tf.zoo.alexnet import branchy_alexnet
from branchy_tf.zoo.lenet import branchy_lenet
from branchy_tf.zoo.msdnet import branchy_msdnet
from branchy_tf.zoo.packaged import every as list_packaged
from branchy_tf.zoo.registry import build, calibration, list_models, list_weights
from branchy_tf.zoo.resnet import branchy_resnet
from branchy_tf.zoo.vgg import branchy_vgg

__all__ = [
    "branchy_alexnet",
    "branchy_lenet",
    "branchy_msdnet",
    "branchy_resnet",
    "branchy_vgg",
    "build",
    "calibration",
    "list_models",
    "list_packaged",
    "list_weights",
]
