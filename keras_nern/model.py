"""NeRNModel: the classifier, represented by a predictor and rebuilt from it.

    W^[l, f, c] = scale_l * predictor(encoding(l, f', c'))

where (l, f', c') is the coordinate that the permutation gives to kernel (l, f, c).
The rebuilt classifier is the base run with the kernels W^ and with all else (batch
normalisation, biases, Dense layers) as it was. How the predictor learns is in
`trainer`, how the base is read and run in `original`.
"""

import keras
import numpy as np

from keras_nern.centring import centre
from keras_nern.files import whole_file
from keras_nern.kernels import find_convolutions
from keras_nern.original import Original
from keras_nern.permutations import Permutation
from keras_nern.positional_encoding import PACKAGE
from keras_nern.predictor import KernelPredictor
from keras_nern.report import summary_table
from keras_nern.trainer import RepresentationTrainer

# Coordinates predicted at once when all kernels are wanted and no gradient is.
CHUNK = 65_536


@keras.saving.register_keras_serializable(package=PACKAGE)
class NeRNModel(RepresentationTrainer):
    """A convolutional classifier, represented by a small network and rebuilt from it.

    Called, evaluated or asked to predict, it acts as the rebuilt classifier: the base
    with predicted convolution kernels. The base itself is never changed.

    Args:
        base: a built functional or Sequential Keras classifier, `(batch, height,
            width, channels)` to `(batch, classes)`, with 2-D convolutions.
        hidden_size: h, width of the predictor. Defaults to `160`.
        num_blocks: Dense layers of the predictor, at least 2. Defaults to `5`.
        permutation: order of the coordinates within a layer: `None`, `"in_filter"`
            or `"cross_filter"`, or a `Permutation` computed before. Defaults to `None`.
        encoding: a Keras layer from coordinates `(n, 3)` to features; `None` for
            `PositionalEncoding()`. Defaults to `None`.
        metric: what a permutation calls near: `"euclidean"`, or the paper's
            `"cosine"`. Defaults to `"euclidean"`, which is easier to fit across
            filters (benchmarks/README.md).
        permutation_method: how a named permutation is found: `"greedy"`, `"two_opt"` or
            `"fast_tsp"` (see `tours`). Defaults to `"greedy"`.
        normalize: `None`, or `"layer"` to predict each layer's weights divided by
            their standard deviation, which is kept. Defaults to `None`.
        feature_maps: where distillation compares the two networks: `"convolutions"`,
            `"additions"` (of residual branches) or `"both"` (see
            `graph.find_feature_maps`). Defaults to `"convolutions"`.
        **kwargs: `keras.Model` arguments (`name`, ...).

    Raises:
        ValueError: where the base has no convolution, is not built, is subclassed,
            has several inputs or outputs or weights that are not finite; for widths
            below 1, fewer than 2 blocks, an unknown permutation, metric, method,
            normalisation or kind of feature maps, or the `Permutation` of a network
            with other kernels.

    Example:

    >>> nern = keras_nern.NeRNModel(base, hidden_size=160, permutation="cross_filter")
    >>> history = nern.fit(images, epochs=5)
    >>> rebuilt = nern.reconstruct()

    Source: Ashkenazi et al., "NeRN: Learning Neural Representations for Neural
    Networks", ICLR 2023, arXiv 2212.13554.
    """

    def __init__(
        self,
        base,
        hidden_size=160,
        num_blocks=5,
        permutation=None,
        encoding=None,
        normalize=None,
        metric="euclidean",
        feature_maps="convolutions",
        permutation_method="greedy",
        **kwargs,
    ):
        kwargs.setdefault("dtype", "float32")
        kwargs.setdefault("name", "nern")
        super().__init__(**kwargs)
        if not isinstance(permutation, Permutation):
            Permutation.validate(permutation, permutation_method, metric)
        if normalize not in (None, "layer"):
            raise ValueError(
                f'normalize must be None or "layer". Received: normalize={normalize!r}'
            )
        self._original = Original(base, feature_maps)
        self.feature_maps = feature_maps
        if not isinstance(permutation, Permutation):
            permutation = Permutation.of(base, permutation, permutation_method, metric)
        permutation.check(self._original.shapes)
        self.permutation = permutation.kind
        self.permutation_method = permutation_method
        self.metric = metric
        self.encoding = encoding
        self.normalize = normalize
        self.predictor = KernelPredictor(
            hidden_size, num_blocks, self._original.kernel_size, encoding, name="predictor"
        )
        self.predictor.build((None, 3))
        self.hidden_size = self.predictor.hidden_size
        self.num_blocks = self.predictor.num_blocks
        self.coordinates = self.add_weight(
            name="coordinates",
            shape=(self._original.num_kernels, 3),
            dtype="int32",
            initializer="zeros",
            trainable=False,
        )
        self.scales = self.add_weight(
            name="scales",
            shape=(len(self._original.shapes),),
            initializer="ones",
            trainable=False,
        )
        coordinates = permutation.coordinates()
        self.coordinates.assign(coordinates)
        centre(self.predictor, coordinates)
        if normalize == "layer":
            self.scales.assign(self._original.layer_scales())
        self._base_is_own = False  # True where from_config made it, until it has weights
        self._start_training()

    @property
    def base(self):
        """The original classifier: the object that was given."""
        return self._original.base

    def _predicted_blocks(self):
        """All kernels as the predictor gives them, rows `(kernels, k * k)`."""
        coordinates = keras.ops.convert_to_tensor(self.coordinates)
        chunks = [
            self.predictor(coordinates[start : start + CHUNK])
            for start in range(0, self._original.num_kernels, CHUNK)
        ]
        return keras.ops.concatenate(chunks)

    def _rebuilt_kernels(self, blocks):
        """Predicted rows as one kernel `(kh, kw, cin, cout)` per layer, in true units."""
        scales = keras.ops.take(self.scales, self.coordinates[:, 0], axis=0)
        return self._original.split(blocks * scales[:, None])

    def call(self, inputs, training=None):
        return self._original.classify(inputs, self._rebuilt_kernels(self._predicted_blocks()))

    def predict_kernels(self):
        """Predicts the kernels of all layers.

        Returns:
            A dict from layer name (with its path, in nested models) to a float32
            array `(kh, kw, cin, cout)`.
        """
        kernels = self._rebuilt_kernels(self._predicted_blocks())
        return {
            conv.name: keras.ops.convert_to_numpy(kernel)
            for conv, kernel in zip(self._original.convolutions, kernels, strict=True)
        }

    def reconstruct(self):
        """Rebuilds the classifier as a model that needs no predictor.

        Returns:
            A Keras model of the base's class and config with variables of its own:
            predicted kernels, everything else copied from the base. Not compiled.
        """
        rebuilt = self._original.copy()
        convolutions = find_convolutions(rebuilt)
        for conv, kernel in zip(convolutions, self.predict_kernels().values(), strict=True):
            conv.layer.kernel.assign(kernel)
        return rebuilt

    def summary_table(self):
        """Counts kernels, weights and bits, by layer and in total.

        Returns:
            A `report.SummaryTable`; printed, it is a table.
        """
        scales = len(self._original.shapes) if self.normalize else 0
        bits = self.kernel_permutation().layer_bits
        return summary_table(self._original, self.predictor, bits, scales)

    def kernel_permutation(self):
        """The order of the kernels as a `Permutation`, read from the coordinates."""
        coordinates = keras.ops.convert_to_numpy(self.coordinates)
        return Permutation.from_coordinates(coordinates, self._original.shapes, self.permutation)

    # Saving.

    def get_config(self):
        return {
            **super().get_config(),
            "base": self._original.architecture(),
            "hidden_size": self.hidden_size,
            "num_blocks": self.num_blocks,
            "permutation": self.permutation,
            "metric": self.metric,
            "permutation_method": self.permutation_method,
            "encoding": keras.saving.serialize_keras_object(self.encoding),
            "normalize": self.normalize,
            "feature_maps": self.feature_maps,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("base", "encoding"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        # The order of the original's kernels is loaded, not searched for again among
        # the fresh weights of its copy.
        permutation = config.pop("permutation")
        Permutation.validate(permutation)
        model = cls(**config)
        model.permutation = permutation
        model._base_is_own = True
        return model

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        """Saves as `keras.Model.save` does; a file that is there stays until all is written."""
        with whole_file(filepath, overwrite and zipped in (None, True)) as path:
            super().save(path, overwrite=overwrite, zipped=zipped, **kwargs)

    def save_weights(self, filepath, overwrite=True, max_shard_size=None):
        """Saves as `keras.Model.save_weights` does; see `save`."""
        with whole_file(filepath, overwrite and max_shard_size is None) as path:
            super().save_weights(path, overwrite=overwrite, max_shard_size=max_shard_size)

    def load_weights(self, filepath, **kwargs):
        """Loads weights as `keras.Model.load_weights` does, or leaves all as it was.

        Args:
            filepath: a file that `save_weights` or `save` wrote.
            **kwargs: as for `keras.Model.load_weights`.

        Raises:
            ValueError: where they belong to a representation of another base.
        """
        variables = [*self.variables, *self.base.variables, *self.optimizer.variables]
        variables.append(self._seed.state)
        before = [keras.ops.convert_to_numpy(variable) for variable in variables]
        progress = self.phase, self.reconstruction_finished, self._base_is_own
        schedule = self._runtime.schedule
        plan = schedule and schedule.get_config()
        try:
            super().load_weights(filepath, **kwargs)
        except Exception:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)
            self.phase, self.reconstruction_finished, self._base_is_own = progress
            if schedule:
                schedule.plan(**plan)
            raise

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["sampling_seed"] = self._seed.state.numpy()
        store["phase"] = np.array([self.phase == "distillation", self.reconstruction_finished])
        if self._runtime.schedule:
            plan = self._runtime.schedule.get_config()
            store["plan"] = np.array([plan["initial_learning_rate"], plan["decay_steps"]])
        store["base_digest"] = self._original.digest()

    def load_own_variables(self, store):
        digest = np.asarray(store["base_digest"])
        if not self._base_is_own and not np.array_equal(digest, self._original.digest()):
            raise ValueError(
                "Expected weights of a representation of this base. Received: those of one with "
                f"other weights than {self.base.name!r} has (their SHA-256 differ)."
            )
        self._seed.state.assign(np.asarray(store["sampling_seed"]))
        keys = set(store.keys())
        distils, finished = np.asarray(store["phase"])
        self.phase = "distillation" if distils else "reconstruction"
        self.reconstruction_finished = bool(finished)
        if self._runtime.schedule and "plan" in keys:
            rate, steps = np.asarray(store["plan"]).tolist()
            self._runtime.schedule.plan(rate, int(steps))
        weights = keys - {"sampling_seed", "base_digest", "phase", "plan"}
        super().load_own_variables({key: store[key] for key in weights})
        self._base_is_own = False  # its weights come next, and are then the ones to keep
