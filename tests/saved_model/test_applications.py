"""Networks of keras.applications with one added exit each, exported unchanged."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import applications

from branchy_tf import EarlyExitPredictor, exits, saved_model
from branchy_tf.saved_model.session import SessionModel

# The smallest of each family, and its smallest images.
FAMILIES = {
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ConvNeXtTiny": 32,
    "DenseNet121": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "VGG16": 32,
    "NASNetMobile": 32,
    "Xception": 71,
    "InceptionV3": 75,
    "InceptionResNetV2": 75,
}
# Hard swish, and swish with a custom gradient.
QUICK = {"MobileNetV3Small", "EfficientNetB0"}


@pytest.mark.parametrize("family", FAMILIES)
def test_exports_and_routes(family, request, tmp_path):
    if family not in QUICK and not request.config.getoption("--all_applications"):
        pytest.skip("takes minutes in all; run with --all_applications")
    keras.utils.set_random_seed(0)
    size = FAMILIES[family]
    trunk = getattr(applications, family)(
        weights=None, input_shape=(size, size, 3), classes=5
    )
    (place,) = exits.propose_exits(trunk, 1)
    model = exits.add_exits(trunk, {place: exits.linear_head})
    # export compares the version with the Keras model in a Session.
    version = saved_model.export(model, tmp_path, "net", [0.5])
    session = SessionModel(version)
    images = np.random.default_rng(1).random((2, size, size, 3), dtype=np.float32)
    limits = np.float32([[0], [np.inf]])
    served = session.run("early_exit", {"images": images, "thresholds": limits})
    session.close()
    assert served["exit"].tolist() == [1, 0]
    local = EarlyExitPredictor(model, [0.5]).predict(images, thresholds=limits)
    assert local.exits.tolist() == [1, 0]
    np.testing.assert_allclose(local.probabilities, served["probabilities"], atol=1e-4)
