"""Neural representations for the weights of trained convolutional networks, in Keras."""

from keras_nern import artifact as artifact
from keras_nern import blocks as blocks
from keras_nern import callbacks as callbacks
from keras_nern import evaluation as evaluation
from keras_nern import files as files
from keras_nern import front as front
from keras_nern import importance as importance
from keras_nern import inputs as inputs
from keras_nern import kernels as kernels
from keras_nern import losses as losses
from keras_nern import models as models
from keras_nern import orders as orders
from keras_nern import permutations as permutations
from keras_nern import plots as plots
from keras_nern import quantization as quantization
from keras_nern import sampling as sampling
from keras_nern import tours as tours
from keras_nern.artifact import load as load
from keras_nern.compression import compress as compress
from keras_nern.coordinates import kernel_coordinates as kernel_coordinates
from keras_nern.importance import kernel_importance as kernel_importance
from keras_nern.importance import prune as prune
from keras_nern.model import NeRNModel as NeRNModel
from keras_nern.noise import NoiseDataset as NoiseDataset
from keras_nern.permutations import Permutation as Permutation
from keras_nern.positional_encoding import PositionalEncoding as PositionalEncoding
from keras_nern.predictor import KernelPredictor as KernelPredictor
from keras_nern.regularizers import SmoothnessRegularizer as SmoothnessRegularizer
from keras_nern.regularizers import SumOfRegularizers as SumOfRegularizers
from keras_nern.regularizers import add_regularizer as add_regularizer
from keras_nern.report import SummaryTable as SummaryTable
from keras_nern.sampling import AllKernels as AllKernels
from keras_nern.sampling import MagnitudeSampling as MagnitudeSampling
from keras_nern.sampling import UniformSampling as UniformSampling
from keras_nern.schedules import PlannedCosineDecay as PlannedCosineDecay
from keras_nern.smoothness import SmoothnessReport as SmoothnessReport
from keras_nern.smoothness import neighbour_cosines as neighbour_cosines
from keras_nern.smoothness import smoothness_report as smoothness_report
from keras_nern.summaries import KernelSummaries as KernelSummaries

__version__ = "0.1.0"
