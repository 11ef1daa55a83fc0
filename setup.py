"""Packaging; the version is read from the package, which need not be importable."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "keras_nern/__init__.py").read_text(), re.MULTILINE
).group(1)

EXTRAS = {
    # tensorflow-datasets 4.9.10 imports importlib_resources without requiring it.
    "data": ["tensorflow-datasets>=4.9.9", "importlib_resources"],
    "compact": ["safetensors>=0.5", "constriction>=0.4", "zstandard>=0.22"],
    "cli": ["click>=8.1"],
    "tsp": ["fast-tsp>=0.2"],
    "plots": ["matplotlib>=3.8"],
    # keras.callbacks.TensorBoard and KernelSummaries; tensorflow 2.21 does not bring it
    "tensorboard": ["tensorboard"],
    # keras-tuner 1.4.8 imports tensorboard in every trial without requiring it; 1.4.7 does not
    # require grpcio, by which its chief and workers talk. bayesian: scikit-learn and scipy.
    "tuner": ["keras-tuner[bayesian]>=1.4.7", "tensorboard", "grpcio"],
}
EXTRAS["demo"] = ["scikit-learn>=1.4", *EXTRAS["plots"]]
EXTRAS["notebooks"] = [
    *EXTRAS["plots"],
    *EXTRAS["data"],
    "ipykernel>=6.29",
    "nbclient>=0.10",
    "nbformat>=5.10",
]
EXTRAS["dev"] = [
    *EXTRAS["cli"],
    *EXTRAS["compact"],
    *EXTRAS["demo"],
    *EXTRAS["notebooks"],
    *EXTRAS["tensorboard"],
    *EXTRAS["tsp"],
    *EXTRAS["tuner"],
    "jax",  # tests/test_backends.py
    "pytest>=8",
    "pytest-xdist>=3",
    "ruff==0.17.6",
    "pre-commit>=3",
]

setuptools.setup(
    name="keras-nern",
    version=VERSION,
    description="Neural representations for the weights of trained convolutional networks",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["keras_nern", "keras_nern.*", "keras_nern_cli"]),
    package_data={"keras_nern": ["zoo/*.weights.h5"]},
    entry_points={"console_scripts": ["keras-nern = keras_nern_cli:main"]},
    python_requires=">=3.11",
    # Keras 3.13 gave Muon rms_rate, the scale that the default learning rates are chosen for.
    install_requires=["tensorflow>=2.18", "keras>=3.13", "numpy>=1.26"],
    extras_require=EXTRAS,
)
