"""Search for the best representation within a budget of bytes, with keras-tuner.

The module is imported on first use of `keras_nern.tuner`, because only searches need keras-tuner
(`pip install "keras-nern[tuner]"`).
"""

from keras_nern.tuner.hypermodel import NeRNHyperModel as NeRNHyperModel
from keras_nern.tuner.hypermodel import pareto_front as pareto_front
