"""Neural representations for the weights of trained convolutional networks, in Keras."""

import importlib
import types

from keras_nern import callbacks as callbacks
from keras_nern import losses as losses
from keras_nern import models as models
from keras_nern.analysis import plots as plots
from keras_nern.analysis.importance import kernel_importance as kernel_importance
from keras_nern.analysis.importance import prune as prune
from keras_nern.analysis.smoothness import smoothness_report as smoothness_report
from keras_nern.artifact.reader import load as load
from keras_nern.callbacks import KernelSummaries as KernelSummaries
from keras_nern.compression import compress as compress
from keras_nern.data.noise import NoiseDataset as NoiseDataset
from keras_nern.model import NeRNModel as NeRNModel
from keras_nern.permutations.permutation import Permutation as Permutation
from keras_nern.predictor.local import LocalPredictor as LocalPredictor
from keras_nern.predictor.positional_encoding import PositionalEncoding as PositionalEncoding
from keras_nern.predictor.predictor import KernelPredictor as KernelPredictor
from keras_nern.regularizers import SmoothnessRegularizer as SmoothnessRegularizer
from keras_nern.regularizers import add_regularizer as add_regularizer
from keras_nern.training.sampling import AllKernels as AllKernels
from keras_nern.training.sampling import MagnitudeSampling as MagnitudeSampling
from keras_nern.training.sampling import UniformSampling as UniformSampling
from keras_nern.utils.version import __version__ as __version__


def __getattr__(name: str) -> types.ModuleType:
    """Imports `keras_nern.tuner` on first use, because it requires keras-tuner."""
    if name == "tuner":
        return importlib.import_module("keras_nern.tuner")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
