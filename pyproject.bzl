"""What pyproject.toml says of the wheel; tests/test_build.py compares them."""

VERSION = "0.2.0"

SUMMARY = "Early-exit networks (BranchyNet and after) for Keras and TensorFlow Serving"

PYTHON = ">=3.10"

REQUIREMENTS = [
    "absl-py>=1.4",
    "grpcio>=1.60",
    "grpcio-health-checking>=1.60",
    "h5py>=3.11",
    "jinja2>=3.1",
    "keras>=3.10",
    "matplotlib>=3.8",
    "numpy>=1.26",
    "pillow>=10.1",
    "prometheus-client>=0.20",
    "protobuf>=5",
    "scipy>=1.15",
    "tabulate>=0.9",
    "tensorboard>=2.19",
    "tensorflow>=2.19",
    "tensorflow-serving-api>=2.19",
    "tqdm>=4.66",
]

EXTRAS = {
    "browser": ["playwright>=1.48"],
    "cascade": ["PyYAML>=6", "simpy>=4.1", "zstandard>=0.22"],
    "compression": [
        "ai-edge-litert>=2",
        "tensorflow-model-optimization>=0.8",
        "tf_keras>=2.19",
    ],
    "demo": ["mlxtend>=0.23"],
    "docs": ["mkdocs>=1.6", "mkdocs-material>=9.5", "mkdocstrings-python>=1.10"],
    "jax": ["jax>=0.5"],
    "litert": ["ai-edge-litert>=2", "flatbuffers>=24"],
    "peers": ["onnxruntime>=1.20", "tf2onnx>=1.17", "torch>=2.5"],
    "tfds": ["tensorflow-datasets>=4.9"],
}
