"""Serving: the client, which needs no TensorFlow, and the embedded server.

```python
from branchy_tf.serving import EarlyExitClient
```
"""

from branchy_tf.serving.client import EarlyExitClient

__all__ = ["EarlyExitClient"]
