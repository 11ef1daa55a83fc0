"""NeRNModel: the classifier, represented by a predictor and rebuilt from it.

    W^[l, f, c] = scale_l * predictor(encoding(l, f', c'))

where (l, f', c') is the coordinate that the permutation gives to block (l, f, c), in the
paper's view the kernel of filter f and channel c of layer l. The rebuilt classifier is the
base run with the kernels W^ and with all else (batch normalisation, biases, Dense layers) as
it was. How the predictor learns is in `trainer`, how the base is read and run in `original`.
"""

import itertools
import os
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from keras_nern.artifact import writer
from keras_nern.network.blocks import Blocks
from keras_nern.network.original import OriginalNetwork
from keras_nern.network.selection import Choice
from keras_nern.permutations.orders import validate_names
from keras_nern.permutations.permutation import Permutation
from keras_nern.predictor.centering import SAMPLE, centre
from keras_nern.predictor.positional_encoding import PACKAGE
from keras_nern.predictor.predictor import KernelPredictor
from keras_nern.report import SummaryTable, summary_table
from keras_nern.training.state import RepresentationSaver
from keras_nern.utils.types import Tensor

# Coordinates predicted at once when all kernels are wanted and no gradient is.
CHUNK = 65_536


@keras.saving.register_keras_serializable(package=PACKAGE)
class NeRNModel(RepresentationSaver):
    """A convolutional classifier, represented by a small network and rebuilt from it.

    Called, evaluated or asked to predict, it acts as the rebuilt classifier: the base
    with predicted convolution kernels. The base itself is never changed.

    Args:
        base: a built Keras classifier: functional, Sequential or subclassed, with any
            inputs, and one or several outputs whose last axis is that of classes.
        hidden_size: h, width of the predictor. Defaults to `160`.
        num_layers: Dense layers of the predictor, at least 2. Defaults to `5`.
        permutation: order of the coordinates within a layer: `None`, `"in_filter"`
            or `"cross_filter"`, or a `Permutation` computed before. Defaults to `None`.
        encoding: a Keras layer from coordinates `(n, 3)` to features; `None` for
            `PositionalEncoding()`. Defaults to `None`.
        metric: what a named permutation calls near: `"euclidean"`, or the paper's
            `"cosine"`. Defaults to `"euclidean"`, which is easier to fit across
            filters (benchmarks/README.md).
        permutation_method: how a named permutation is found: `"greedy"`, `"two_opt"` or
            `"fast_tsp"` (see `tours`). Defaults to `"greedy"`.
        normalize: `None`, or `"layer"` to predict each layer's weights divided by
            their standard deviation, which is kept. Defaults to `None`.
        feature_maps: where distillation compares the two networks: `"convolutions"`,
            `"additions"` (of residual branches) or `"both"` (see
            `original`). Defaults to `"convolutions"`.
        output_activation: what the base's outputs are: `"softmax"` or `"sigmoid"`
            probabilities, or `"linear"` for logits; `"auto"` sees by the layers, but not
            into a `call` of your own. Defaults to `"auto"`.
        view: how kernels are cut into the blocks that are predicted: `"crop"`, as in the
            paper, or `"block"`, with next to none left over (see `blocks`). Defaults to
            `"crop"`.
        block_size: k of the block view; `None` for 3. Defaults to `None`.
        include, exclude: the layers to represent, or to keep: a name or path, a compiled
            regular expression, a function from a layer to a bool, or a list of these.
            Default to `None`: all convolutions are represented.
        include_dense: whether Dense layers are represented, too; best with the block
            view. Defaults to `False`.
        bits, pruned: of the predictor's kernels (see `predictor`); `compress` sets them.
            Default to `None` and `False`: floats, all of them.
        **kwargs: `keras.Model` arguments (`name`, ...).

    Raises:
        ValueError: where the base has no kernel to represent, is not built or has
            weights that are not finite; for widths below 1, fewer than 2 blocks, an
            unknown permutation, metric, method, normalisation, view, kind of feature
            maps or activation, a selection that names what is not there, or the `Permutation` of a
            network whose layers have other grids of blocks.

    Example:

    >>> nern = keras_nern.NeRNModel(base, hidden_size=160, permutation="cross_filter")
    >>> history = nern.fit(images, epochs=5)
    >>> rebuilt = nern.reconstruct()

    Source: Ashkenazi et al., "NeRN: Learning Neural Representations for Neural
    Networks", ICLR 2023, arXiv 2212.13554.
    """

    def __init__(
        self,
        base: keras.Model,
        hidden_size: int = 160,
        num_layers: int = 5,
        permutation: str | Permutation | None = None,
        encoding: keras.layers.Layer | None = None,
        normalize: str | None = None,
        metric: str = "euclidean",
        feature_maps: str = "convolutions",
        permutation_method: str = "greedy",
        view: str = "crop",
        block_size: int | None = None,
        include: Choice = None,
        exclude: Choice = None,
        include_dense: bool = False,
        bits: int | None = None,
        pruned: bool = False,
        output_activation: str = "auto",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        kwargs.setdefault("name", "nern")
        super().__init__(**kwargs)
        if permutation is None or isinstance(permutation, str):
            validate_names(permutation, permutation_method, metric)
        elif not isinstance(permutation, Permutation):
            raise ValueError(
                "permutation must be None, a name or a Permutation (see Permutation.load). "
                f"Received: permutation={permutation!r}"
            )
        if normalize not in (None, "layer"):
            raise ValueError(
                f'normalize must be None or "layer". Received: normalize={normalize!r}'
            )
        selection = {"include": include, "exclude": exclude, "include_dense": include_dense}
        self._original = OriginalNetwork(
            base, feature_maps, view, block_size, output_activation, **selection
        )
        blocks = self._original.blocks
        self.view = view
        self.block_size = block_size
        self.include = include
        self.exclude = exclude
        self.include_dense = include_dense
        self.feature_maps = feature_maps
        self.output_activation = output_activation
        if not isinstance(permutation, Permutation):
            permutation = Permutation.from_model(blocks, permutation, permutation_method, metric)
        permutation.check(blocks.grids)
        self.permutation = permutation.kind
        self.permutation_method = permutation.method
        self.metric = permutation.metric
        self.encoding = encoding
        self.normalize = normalize
        self.predictor = KernelPredictor(
            hidden_size,
            num_layers,
            blocks.block_length,
            encoding,
            bits=bits,
            pruned=pruned,
            name="predictor",
        )
        self.predictor.build((None, 3))
        self.predictor.compress()
        self.hidden_size = self.predictor.hidden_size
        self.num_layers = self.predictor.num_layers
        self.bits = bits
        self.pruned = pruned
        self.positions: keras.Variable | None = None  # where blocks stand, if not where they are
        if permutation.kind is not None:
            self.positions = self.add_weight(
                name="positions",
                shape=(blocks.num_blocks,),
                dtype="int32",
                initializer="zeros",
                trainable=False,
            )
            self.positions.assign(permutation.positions())
        self.scales = self.add_weight(
            name="scales",
            shape=(len(blocks.kernels),),
            initializer="ones",
            trainable=False,
        )
        centre(self.predictor, self._some_coordinates())
        if normalize == "layer":
            self.scales.assign(self._original.layer_scales())
        self._base_is_own = False  # True where from_config made it, until it has weights
        self._start_training()

    @property
    def base(self) -> keras.Model:
        """The original classifier: the object that was given."""
        return self._original.base

    def coordinates(self) -> np.ndarray:
        """The coordinate of each block, (layer, filter, column): int32 `(blocks, 3)`."""
        return self.kernel_permutation().coordinates()

    def _coordinates(self, indices: Tensor) -> Tensor:
        positions = self.positions
        if positions is not None:
            positions = keras.ops.convert_to_tensor(positions)
        return self._original.blocks.coordinates(indices, positions)

    def _some_coordinates(self) -> Tensor:
        """Of all blocks, or at random of so many that their means and covariances are those."""
        count = self._original.blocks.num_blocks
        indices = np.arange(count, dtype="int32")
        if count > SAMPLE:  # at random, as every second might be every even channel
            indices = np.random.default_rng(0).choice(indices, SAMPLE, replace=False)
        return self._coordinates(keras.ops.convert_to_tensor(indices))

    def _predicted_blocks(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Blocks from one number to another as the predictor gives them, `(blocks, B)`."""
        stop = self._original.blocks.num_blocks if stop is None else stop

        def chunk(first: Any, size: int = CHUNK) -> Tensor:
            indices = keras.ops.minimum(first + keras.ops.arange(size, dtype="int32"), stop - 1)
            return self.predictor(self._coordinates(indices))

        starts = range(start, stop, CHUNK)
        if tf.executing_eagerly() or len(starts) == 1:
            return keras.ops.concatenate([chunk(i, min(CHUNK, stop - i)) for i in starts])
        # a loop in the graph, as chunks beside one another would all be in memory at once
        rows = tf.map_fn(
            chunk,
            tf.range(start, stop, CHUNK),
            parallel_iterations=1,
            fn_output_signature=tf.float32,
        )
        return keras.ops.reshape(rows, (-1, rows.shape[-1]))[: stop - start]

    def _predicted_kernels(self) -> list[Tensor]:
        """All kernels, in true units and in the shapes of their variables."""
        blocks = self._original.blocks
        scales = keras.ops.convert_to_tensor(self.scales)
        if blocks.num_blocks <= CHUNK:
            return self._rebuilt_kernels(self._predicted_blocks())
        return [
            blocks.kernel(index, self._predicted_blocks(start, stop)) * scales[index]
            for index, (start, stop) in enumerate(itertools.pairwise(blocks.offsets.tolist()))
        ]

    def _rebuilt_kernels(self, predicted: Tensor) -> list[Tensor]:
        """The same, from all predicted blocks."""
        scales = keras.ops.convert_to_tensor(self.scales)
        kernels = self._original.blocks.split(predicted)
        return [kernel * scales[index] for index, kernel in enumerate(kernels)]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self._original.functional_call(inputs, self._predicted_kernels())

    def predict_kernels(self) -> dict[str, np.ndarray]:
        """Predicts all kernels.

        Returns:
            A dict from the kernel's name, which is its layer's path (with the variable's
            name, where the layer has two), to a float32 array of the variable's shape.
        """
        return {
            kernel.name: keras.ops.convert_to_numpy(value)
            for kernel, value in zip(
                self._original.blocks.kernels, self._predicted_kernels(), strict=True
            )
        }

    def reconstruct(self) -> keras.Model:
        """Rebuilds the classifier as a model that needs no predictor.

        Returns:
            A Keras model of the base's class and config with variables of its own:
            predicted kernels, everything else copied from the base. Not compiled.
        """
        return self._original.rebuilt(self._predicted_kernels())

    def summary_table(self) -> SummaryTable:
        """Counts kernels, weights and bits, by layer and in total.

        Returns:
            A `report.SummaryTable`; printed, it is a table.
        """
        scales = len(self._original.blocks.kernels) if self.normalize else 0
        bits = self.kernel_permutation().layer_bits
        return summary_table(self._original, self.predictor, bits, scales)

    def kernel_permutation(self) -> Permutation:
        """The order of the blocks as a `Permutation`."""
        grids = self._original.blocks.grids
        found_by = self.permutation_method, self.metric
        if self.positions is None:
            return Permutation(grids, None, None, *found_by)
        positions = keras.ops.convert_to_numpy(self.positions)
        return Permutation.from_positions(positions, grids, self.permutation, *found_by)

    def _with_predictor(self, bits: int | None, pruned: bool) -> "NeRNModel":
        """This representation with another kind of kernels, which hold nothing yet."""
        names = ["hidden_size", "num_layers", "normalize", "feature_maps", "view", "block_size"]
        names += ["include", "exclude", "include_dense", "output_activation", "name"]
        encoding = keras.saving.serialize_keras_object(self.encoding)
        other = NeRNModel(
            self.base,
            permutation=self.kernel_permutation(),
            encoding=keras.saving.deserialize_keras_object(encoding),
            bits=bits,
            pruned=pruned,
            **{name: getattr(self, name) for name in names},
        )
        other.predictor.encoding.set_weights(self.predictor.encoding.get_weights())
        other.scales.assign(self.scales)
        other.compile_from_config(self.get_compile_config())
        other.reconstruction_iterations.assign(self.reconstruction_iterations)
        other.reconstruction_finished = self.reconstruction_finished
        return other

    # Saving.

    def _selection_config(self) -> dict[str, Any]:
        """What was chosen, by paths: functions and expressions cannot be written down."""
        include = None
        if self.include is not None or self.exclude is not None:
            include = list(dict.fromkeys(k.path for k in self._original.blocks.kernels))
        return {"include": include, "exclude": None, "include_dense": self.include_dense}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "base": self._original.architecture(),
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "permutation": self.permutation,
            "metric": self.metric,
            "permutation_method": self.permutation_method,
            "encoding": keras.saving.serialize_keras_object(self.encoding),
            "normalize": self.normalize,
            "feature_maps": self.feature_maps,
            "output_activation": self.output_activation,
            "view": self.view,
            "block_size": self.block_size,
            "bits": self.bits,
            "pruned": self.pruned,
            **self._selection_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        for name in ("base", "encoding"):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        # The order of the original's blocks is loaded, not searched for again among
        # the fresh weights of its copy.
        found = [config[name] for name in ("permutation", "permutation_method", "metric")]
        selection = {
            name: config[name]
            for name in ("view", "block_size", "include", "exclude", "include_dense")
        }
        grids = Blocks(config["base"], **selection).grids
        model = cls(**{**config, "permutation": Permutation(grids, None, *found)})
        model._base_is_own = True
        return model

    def export(
        self,
        filepath: str | os.PathLike,
        format: str = "nern",
        precision: str = "auto",
        kept_precision: str = "float32",
        **kwargs: Any,
    ) -> None:
        """Writes one file that rebuilds the classifier, or exports the rebuilt classifier.

        Args:
            filepath: where to; of a compact file, the one that is there stays until all is
                written.
            format: `"nern"` for the compact file, which `keras_nern.load` reads; or a format
                of `keras.Model.export` (`"tf_saved_model"`, `"onnx"`, ...), which the
                rebuilt classifier is exported in. Defaults to `"nern"`.
            precision: of the predictor's kernels in a compact file: `"float32"`,
                `"float16"`, or `"int2"` to `"int8"`; `"auto"` for as many bits as they have
                (see `compress`), else `"float32"`. Defaults to `"auto"`.
            kept_precision: in a compact file, of weights that are not represented:
                `"float32"`, as they are, or `"float16"`. Defaults to `"float32"`.
            **kwargs: of `keras.Model.export`, with its formats.

        Raises:
            ValueError: for other precisions, also where another format has none; for weights of
                the predictor that are not finite; for a base that has code in it (a Lambda
                layer) or that Keras cannot build from its config.
            OSError: where no file can be at that path.
            ImportError: where the extra `compact` is not installed.

        Example:

        >>> nern.export("classifier.nern", precision="int7")
        >>> rebuilt = keras_nern.load("classifier.nern")
        """
        if format == "nern":
            if kwargs:
                raise ValueError(
                    "Expected no more than precision and kept_precision for format='nern'. "
                    f"Received: {kwargs}"
                )
            writer.write(self, filepath, precision, kept_precision)
            return
        if (precision, kept_precision) != ("auto", "float32"):
            raise ValueError(
                "precision and kept_precision go with format='nern'. Received: "
                f"format={format!r}, precision={precision!r}, kept_precision={kept_precision!r}"
            )
        self.reconstruct().export(filepath, format=format, **kwargs)
