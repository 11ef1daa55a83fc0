"""Packaging. The version is read from the package's source, without importing it."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "keras_nern/utils/version.py").read_text(), re.MULTILINE
).group(1)

EXTRAS = {
    # tensorflow-datasets 4.9.10 imports importlib_resources without requiring it.
    "data": ["tensorflow-datasets>=4.9.9", "importlib_resources"],
    "compact": ["safetensors>=0.5", "constriction>=0.4", "zstandard>=0.22"],
    "cli": ["click>=8.1"],
    "tsp": ["fast-tsp>=0.2"],
    "plots": ["matplotlib>=3.8"],
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"],
    # For keras.callbacks.TensorBoard and KernelSummaries. tensorflow 2.21 does not install it.
    "tensorboard": ["tensorboard"],
    # keras-tuner 1.4.8 imports tensorboard in every trial without requiring it; 1.4.7 does not
    # require grpcio, which its chief and workers use. bayesian: scikit-learn and scipy.
    "tuner": ["keras-tuner[bayesian]>=1.4.7", "tensorboard", "grpcio"],
}
EXTRAS["demo"] = ["scikit-learn>=1.4", *EXTRAS["plots"]]
EXTRAS["notebooks"] = [
    *EXTRAS["compact"],
    *EXTRAS["data"],
    *EXTRAS["plots"],
    *EXTRAS["tuner"],
    "ipykernel>=6.29",
    "nbclient>=0.10",
    "nbformat>=5.10",
]
EXTRAS["dev"] = [
    *EXTRAS["cli"],
    *EXTRAS["demo"],
    *EXTRAS["docs"],
    *EXTRAS["notebooks"],
    *EXTRAS["tensorboard"],
    *EXTRAS["tsp"],
    "jax",  # tests/test_backends.py
    "pytest>=8",
    "pytest-xdist>=3",
    "ruff==0.17.6",
    "mypy==2.4.1",
    "pre-commit>=3",
]

setuptools.setup(
    name="keras-nern",
    version=VERSION,
    description="Neural representations for the weights of trained convolutional networks",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=[
        "keras",
        "tensorflow",
        "neural representations",
        "implicit representations",
        "convolutional networks",
        "model compression",
        "knowledge distillation",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    project_urls={"Paper": "https://arxiv.org/abs/2212.13554"},
    packages=setuptools.find_packages(include=["keras_nern", "keras_nern.*"]),
    py_modules=["keras_nern_command"],
    package_data={"keras_nern": ["py.typed", "zoo/*.weights.h5"]},
    entry_points={"console_scripts": ["keras-nern = keras_nern_command:main"]},
    python_requires=">=3.11",
    # Keras 3.13 added rms_rate to Muon; the default learning rates are chosen for it.
    install_requires=["tensorflow>=2.18", "keras>=3.13", "numpy>=1.26"],
    extras_require=EXTRAS,
)
