"""The clients, which do not import TensorFlow, and the embedded server.

```python
from branchy_tf.serving import EarlyExitClient
```
"""

from branchy_tf.serving.async_client import AsyncEarlyExitClient
from branchy_tf.serving.client import EarlyExitClient
from branchy_tf.serving.metrics import ClientMetrics
from branchy_tf.serving.tls import Tls

__all__ = ["AsyncEarlyExitClient", "ClientMetrics", "EarlyExitClient", "Tls"]
