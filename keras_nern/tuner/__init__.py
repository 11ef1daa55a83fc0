"""The search for the best representation within a budget of bytes; needs keras-tuner."""

from keras_nern.tuner.hypermodel import NeRNHyperModel as NeRNHyperModel
from keras_nern.tuner.hypermodel import pareto_front as pareto_front
