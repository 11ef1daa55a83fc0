"""Classifiers with every kind of layer that holds state, and with every structure of models.

Each entry of `BASES` is a function that returns `(base, inputs)`: a built classifier with at least
one convolution, and six inputs for it, numbers of which are random.
"""

import warnings

import keras
import numpy as np
import tensorflow as tf

L = keras.layers
register = keras.saving.register_keras_serializable("bases")
NUMBER = 6
BATCH = 2
SHAPE = (6, 6, 2)
WORDS = [["red fox"], ["blue"], ["fox blue"], ["green"], ["hat"], ["red"]]


def _values(shape, dtype="float32"):
    rng = np.random.default_rng(7)
    if dtype == "string":
        return tf.constant(WORDS)
    if dtype.startswith("int"):
        return rng.integers(0, 4, (NUMBER, *shape)).astype(dtype)
    return rng.normal(size=(NUMBER, *shape)).astype(dtype)


def _vary(model):
    """Moves every float weight, so that none keeps what its initializer gives in a copy."""
    rng = np.random.default_rng(3)
    for weight in model.weights:
        if keras.backend.is_float_dtype(weight.dtype):
            values = np.asarray(keras.ops.convert_to_numpy(weight), "float32")
            weight.assign(values + rng.uniform(0.05, 0.15, values.shape))


def _finish(model, inputs=None, vary=True):
    if inputs is None:
        structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
        inputs = keras.tree.map_structure(
            lambda x: _values([side or 5 for side in x.shape[1:]], x.dtype), structure
        )
    if vary:
        _vary(model)
    return model, inputs


def _around(*inner, shape=SHAPE, conv=None, **finish):
    """A convolution, some layers, and a head."""
    conv = conv or L.Conv2D(4, 3, padding="same")
    return _finish(
        keras.Sequential([keras.Input(shape), conv, *inner, L.Flatten(), L.Dense(3)]), **finish
    )


def _series(*inner, length=6, **finish):
    return _around(*inner, shape=(length, 2), conv=L.Conv1D(4, 3, padding="same"), **finish)


def _volume(*inner, **finish):
    return _around(*inner, shape=(4, 4, 4, 2), conv=L.Conv3D(2, 2, padding="same"), **finish)


def _with_side_input(side, shape, dtype="float32", inputs=None, vary=True):
    """An image through a convolution, beside another input through `side`."""
    image, other = keras.Input(SHAPE), keras.Input(shape, dtype=dtype)
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(image))
    y = L.Flatten()(keras.ops.cast(side(other), "float32"))
    model = keras.Model([image, other], L.Dense(3)(L.Concatenate()([x, y])))
    if inputs is None:
        inputs = _values(shape, dtype)
    return _finish(model, [_values(SHAPE), inputs], vary)


# Layers of Keras.


def _stateful_lstm():
    inputs = keras.Input(batch_shape=(BATCH, 6, 2))
    x = L.LSTM(3, stateful=True)(L.Conv1D(4, 3)(inputs))
    model, x = _finish(keras.Model(inputs, L.Dense(3)(x)))
    model(x[:BATCH])  # so that its state is not zero
    return model, x


def _stateful_convlstm():
    inputs = keras.Input(batch_shape=(BATCH, 3, *SHAPE))
    x = L.TimeDistributed(L.Conv2D(2, 3))(inputs)
    x = L.Flatten()(L.ConvLSTM2D(2, 3, stateful=True)(x))
    model, x = _finish(keras.Model(inputs, L.Dense(3)(x)))
    model(x[:BATCH])
    return model, x


def _reversed_embedding():
    layer = L.ReversibleEmbedding(4, 3)
    return _with_side_input(lambda x: layer(layer(x), reverse=True), (2,), "int32")


def _attention(make):
    inputs = keras.Input((6, 2))
    x = L.Conv1D(4, 3)(inputs)
    return _finish(keras.Model(inputs, L.Dense(3)(L.Flatten()(make(x)))))


def _adapted(layer, data):
    layer.adapt(data)
    return layer


def _text():
    layer = _adapted(
        L.TextVectorization(8, output_sequence_length=3), ["red fox", "blue fox", "green hat"]
    )
    return _with_side_input(
        lambda x: L.Embedding(8, 2)(layer(keras.ops.squeeze(x, -1))), (1,), "string"
    )


def _tf_idf():
    layer = _adapted(
        L.TextVectorization(8, output_mode="tf_idf"), ["red fox", "blue fox", "green hat"]
    )
    return _with_side_input(lambda x: layer(keras.ops.squeeze(x, -1)), (1,), "string")


def _string_lookup(**kwargs):
    def side(x):
        layer = L.StringLookup(output_mode="multi_hot", **kwargs)
        if "vocabulary" not in kwargs:
            layer.adapt(WORDS)
        return layer(x)

    return _with_side_input(side, (1,), "string")


def _integer_lookup():
    layer = _adapted(L.IntegerLookup(output_mode="multi_hot"), np.array([3, 1, 2, 2]))
    return _with_side_input(layer, (2,), "int64")


def _discretization():
    layer = _adapted(L.Discretization(num_bins=4), np.random.default_rng(0).normal(size=(50, 1)))
    return _with_side_input(layer, (2,))


def _hashed_crossing():
    a, b, image = (
        keras.Input((), dtype="string"),
        keras.Input((), dtype="int32"),
        keras.Input(SHAPE),
    )
    crossed = L.HashedCrossing(5, output_mode="one_hot")((a, b))
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(image))
    x = L.Concatenate()([x, keras.ops.cast(crossed, "float32")])
    model = keras.Model([image, a, b], L.Dense(3)(x))
    return _finish(model, [_values(SHAPE), tf.constant(WORDS)[:, 0], np.arange(6, dtype="int32")])


def _normalization(axis=-1, **kwargs):
    layer = L.Normalization(axis=axis, **kwargs)
    if not kwargs:
        layer.adapt(3 * _values(SHAPE) + 2)
    layers = [keras.Input(SHAPE), layer, L.Conv2D(4, 3), L.Flatten(), L.Dense(3)]
    return _finish(keras.Sequential(layers), vary=False)


def _with_dropout():
    return _around(L.RandomContrast(0.2, seed=3), L.GaussianNoise(0.1), L.Dropout(0.3, seed=1))


def _augmented():
    return _finish(
        keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                L.RandomFlip(),
                L.RandomRotation(0.1),
                L.RandomZoom(0.1),
                L.RandomTranslation(0.1, 0.1),
                L.RandomBrightness(0.1, value_range=(0, 1)),
                L.RandomColorJitter((0, 1), 0.1, 0.1, 0.1, 0.1),
                L.RandAugment((0, 1)),
                L.AugMix((0, 1)),
                L.RandomErasing(),
                L.Conv2D(4, 3),
                L.AlphaDropout(0.1),
                L.GaussianDropout(0.1),
                L.SpatialDropout2D(0.2),
                L.Flatten(),
                L.Dense(3),
            ]
        )
    )


def _pipeline():
    steps = L.Pipeline([L.RandomFlip(), L.Rescaling(0.5)])
    inputs = keras.Input(SHAPE)
    x = L.Flatten()(L.Conv2D(4, 3)(steps(inputs)))
    return _finish(keras.Model(inputs, L.Dense(3)(x)))


def _spectrogram(layer, shape=(64,)):
    inputs = keras.Input(shape)
    x = L.GlobalAveragePooling1D()(L.Conv1D(4, 3)(layer(inputs)))
    return _finish(keras.Model(inputs, L.Dense(3)(x)), vary=False)


# Quantized layers, LoRA, precision.


def _quantized(mode, *inner, **kwargs):
    model, inputs = _around(*inner, L.GlobalAveragePooling2D(), L.Dense(4, activation="relu"))
    model.quantize(mode, filters="dense", **kwargs)
    return model, inputs


def _quantized_einsum(mode):
    inputs = keras.Input((6, 2))
    x = L.Conv1D(4, 3)(inputs)
    x = L.EinsumDense("abc,cd->abd", output_shape=(4, 6), bias_axes="d")(x)
    model, x = _finish(keras.Model(inputs, L.Dense(3)(L.Flatten()(x))))
    for layer in model.layers:
        if isinstance(layer, L.EinsumDense):
            layer.quantize(mode)
    return model, x


def _quantized_embedding(mode):
    model, inputs = _with_side_input(L.Embedding(4, 4), (2,), "int32")
    for layer in model.layers:
        if isinstance(layer, L.Embedding):
            layer.quantize(mode)
    return model, inputs


def _quantized_attention():
    model, inputs = _attention(lambda x: L.MultiHeadAttention(2, 2)(x, x))
    model.quantize("int8", filters="multi_head_attention")
    return model, inputs


def _lora(quantize=None):
    model, inputs = _around(L.Conv2D(4, 3), L.GlobalAveragePooling2D(), L.Dense(5))
    if quantize:
        model.layers[-1].quantize(quantize)
        model.layers[-3].quantize(quantize)
    model.layers[1].enable_lora(2)
    model.layers[-1].enable_lora(2)
    for layer in (model.layers[1], model.layers[-1]):
        for name in ("lora_kernel_a", "lora_kernel_b"):
            weight = getattr(layer, name)
            weight.assign(np.random.default_rng(1).normal(size=weight.shape))
    return model, inputs


def _lora_embedding():
    model, inputs = _with_side_input(L.Embedding(4, 4), (2,), "int32")
    (layer,) = [layer for layer in model.layers if isinstance(layer, L.Embedding)]
    layer.enable_lora(2)
    layer.lora_embeddings_b.assign(np.ones(layer.lora_embeddings_b.shape))
    return model, inputs


def _lora_einsum():
    inputs = keras.Input((6, 2))
    dense = L.EinsumDense("abc,cd->abd", output_shape=(4, 6), bias_axes="d")
    model, x = _finish(keras.Model(inputs, L.Dense(3)(L.Flatten()(dense(L.Conv1D(4, 3)(inputs))))))
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(np.ones(dense.lora_kernel_b.shape))
    return model, x


def _of_dtype(dtype):
    return _finish(
        keras.Sequential(
            [
                keras.Input(SHAPE),
                L.Conv2D(4, 3, dtype=dtype),
                L.BatchNormalization(dtype=dtype),
                L.Flatten(),
                L.Dense(3, dtype=dtype),
            ]
        )
    )


# Structures.


def _nested():
    cell = keras.Sequential([keras.Input(SHAPE), L.Conv2D(2, 3, padding="same"), L.Dropout(0.5)])
    middle_input = keras.Input(SHAPE)
    middle = keras.Model(middle_input, L.ReLU()(cell(middle_input) + middle_input))
    inputs = keras.Input(SHAPE)
    x = middle(L.BatchNormalization()(middle(inputs)))  # called twice
    return _finish(keras.Model(inputs, L.Dense(3)(L.Flatten()(x))))


def _nested_and_compiled():
    inner = keras.Sequential([keras.Input(SHAPE), L.Conv2D(2, 3)])
    inner.compile("adam", "mse", metrics=["mae"])
    model, inputs = _around(inner, L.BatchNormalization(), conv=L.Conv2D(2, 3, padding="same"))
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(inputs, np.zeros((NUMBER, 3)), verbose=0)
    return model, inputs


def _shared():
    conv, dense = L.Conv2D(2, 3, padding="same"), L.Dense(3)
    a, b = keras.Input(SHAPE), keras.Input(SHAPE)
    pool = L.GlobalAveragePooling2D()
    x = dense(pool(conv(conv(a)))) + dense(pool(conv(b)))
    return _finish(keras.Model([a, b], x))


@register
class Tied(L.Layer):
    """Two convolutions with one kernel."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.there = L.Conv2D(4, 3, padding="same")
        self.back = L.Conv2DTranspose(4, 3, padding="same")

    def build(self, shape):
        self.there.build(shape)
        self.back.build((*shape[:-1], 4))
        self.back._tracker.unlock()
        self.back._trainable_variables.remove(self.back.kernel)
        self.back.kernel = self.there.kernel
        self.back._tracker.lock()

    def call(self, x):
        return self.back(self.there(x))


def _tied_outside():
    """Two convolutions that come to share a kernel after they are built: no config says so."""
    first, second = L.Conv2D(2, 3, padding="same"), L.Conv2D(2, 3, padding="same")
    model, inputs = _around(first, second, conv=L.Conv2D(2, 3, padding="same"))
    second._tracker.unlock()
    second._trainable_variables.remove(second._kernel)
    second._kernel = first._kernel
    second._tracker.lock()
    return model, inputs


@register
class TiedConv(L.Conv2D):
    """A convolution with the kernel of another, which it holds."""

    def __init__(self, filters, kernel_size, other=None, **kwargs):
        super().__init__(filters, kernel_size, **kwargs)
        self.other = other

    def build(self, shape):
        super().build(shape)
        self._tracker.unlock()
        self._trainable_variables.remove(self._kernel)
        self._kernel = self.other._kernel
        self._tracker.lock()

    def get_config(self):
        return {**super().get_config(), "other": keras.saving.serialize_keras_object(self.other)}

    @classmethod
    def from_config(cls, config):
        config["other"] = keras.saving.deserialize_keras_object(config["other"])
        return cls(**config)


def _tied_in_config():
    other = L.Conv2D(2, 3, padding="same")
    inputs = keras.Input(SHAPE)
    x = TiedConv(2, 3, other, padding="same")(other(inputs))
    return _finish(keras.Model(inputs, L.Dense(3)(L.Flatten()(x))))


def _several_inputs_and_outputs():
    image, series = keras.Input(SHAPE, name="image"), keras.Input((6, 2), name="series")
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(image))
    x = L.Concatenate()([x, L.GlobalAveragePooling1D()(L.Conv1D(4, 3)(series))])
    return _finish(
        keras.Model(
            {"series": series, "image": image},
            {"two": L.Dense(2)(x), "one": L.Dense(1, activation="sigmoid")(x)},
        )
    )


def _nested_structures():
    a, b, c = (keras.Input(SHAPE, name=name) for name in "abc")
    x = L.Flatten()(L.Conv2D(2, 3)(a + b + c))
    first, second = L.Dense(3)(x), L.Dense(2)(x)
    return _finish(keras.Model({"x": [a, (b, c)]}, [first, (second,)]))


def _one_input_by_name():
    image = keras.Input(SHAPE, name="image")
    x = L.Flatten()(L.Conv2D(2, 3)(image))
    return _finish(keras.Model({"image": image}, {"scores": L.Dense(3)(x)}))


def _list_of_one():
    image = keras.Input(SHAPE)
    x = L.Flatten()(L.Conv2D(2, 3)(image))
    return _finish(keras.Model([image], [L.Dense(3)(x)]))


def _training_inside():
    inputs = keras.Input(SHAPE)
    x = L.BatchNormalization()(L.Conv2D(4, 3)(inputs), training=True)
    return _finish(keras.Model(inputs, L.Dense(3)(L.Flatten()(x))))


def _advanced(made):
    """Runs a base, so that its seeds are not those of a new one."""
    model, inputs = made
    model(inputs)
    return model, inputs


def _dropout_inside():
    """Outputs that differ from call to call."""
    inputs = keras.Input(SHAPE)
    x = L.Dropout(0.3, seed=2)(L.Conv2D(4, 3)(inputs), training=True)
    return _finish(keras.Model(inputs, L.Dense(3)(L.Flatten()(x))))


def _operations():
    inputs = keras.Input(SHAPE)
    x = keras.ops.relu(L.Conv2D(4, 3)(inputs) * 2.0 - 1.0)
    x = keras.ops.mean(keras.ops.concatenate([x, x[:, :, :, :2]], axis=-1), axis=(1, 2))
    return _finish(keras.Model(inputs, keras.ops.softmax(L.Dense(3)(x))))


def _regularized():
    conv = L.Conv2D(
        4,
        3,
        padding="same",
        kernel_regularizer="l2",
        kernel_constraint=keras.constraints.MaxNorm(1.0),
        activity_regularizer="l1",
    )
    return _around(L.ActivityRegularization(0.1), conv=conv)


def _frozen():
    model, inputs = _around(L.BatchNormalization(), L.Conv2D(3, 3))
    model.layers[1].trainable = model.layers[0].trainable = False
    return model, inputs


def _frozen_whole():
    model, inputs = _around(L.BatchNormalization(), L.Conv2D(3, 3))
    model.trainable = False
    return model, inputs


def _masked():
    inputs = keras.Input((6,), dtype="int32")
    x = L.Embedding(5, 4, mask_zero=True)(inputs)
    x = L.Bidirectional(L.GRU(3, dropout=0.1, return_sequences=True))(x)
    x = L.TimeDistributed(L.Dense(4))(x)
    y = L.Flatten()(L.Conv1D(4, 3)(keras.ops.one_hot(inputs, 5)))
    x = L.Concatenate()([y, L.LSTM(3)(x)])
    return _finish(keras.Model(inputs, L.Dense(3)(x)))


# Subclassed models and layers.


class _Own(keras.Model):
    """A subclassed model with a convolution and a head."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.pool, self.dense = L.Conv2D(4, 3), L.GlobalAveragePooling2D(), L.Dense(3)

    def head(self, x):
        return self.dense(self.pool(x))

    def call(self, x, training=None):
        return self.head(self.conv(x))


def _called(model, inputs=None, **kwargs):
    """A subclassed model, built by a call."""
    inputs = _values(SHAPE) if inputs is None else inputs
    with warnings.catch_warnings():  # said of layers that are never called
        warnings.filterwarnings("ignore", message="`build\\(\\)` was called on layer")
        if kwargs:
            model(inputs, **kwargs)
        model(inputs)
    return _finish(model, inputs)


@register
class Plain(_Own):
    pass


@register
class WithList(_Own):
    """Lists, dicts and nested lists of layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.branches = [L.Conv2D(4, 1), [L.BatchNormalization(), L.Conv2D(4, 1)]]
        self.named = {"b": L.Conv2D(4, 1), "a": L.PReLU()}

    def call(self, x, training=None):
        x = self.conv(x)
        norm, conv = self.branches[1]
        x = self.branches[0](x) + conv(norm(x, training=training))
        return self.head(self.named["a"](self.named["b"](x)))


@register
class BuiltInBuild(_Own):
    """Sublayers that exist once the model is built."""

    def build(self, shape):
        self.extra = [L.Conv2D(shape[-1], 1) for _ in range(2)]
        for layer in self.extra:
            layer.build(shape)
        self.conv.build(shape)
        self.dense.build((None, 4))
        self.built = True

    def call(self, x, training=None):
        for layer in self.extra:
            x = layer(x)
        return self.head(self.conv(x))


@register
class Auxiliary(_Own):
    """A convolution, a normalization and a nested model that only training reaches."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.extra = keras.Sequential([L.Conv2D(3, 1), L.BatchNormalization()])

    def call(self, x, training=None):
        hidden = self.conv(x)
        out = self.head(hidden)
        return (out, self.pool(self.extra(hidden, training=True))) if training else out


@register
class Spare(_Own):
    """Layers that are never called, of which some are built."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.unbuilt, self.built_alone = L.Conv2D(9, 3), L.Conv2D(2, 3)
        self.built_alone.build((None, 4, 4, 2))
        self.block = Residual(4)


@register
class Residual(L.Layer):
    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = L.Conv2D(filters, 3, padding="same", use_bias=False)
        self.bn = L.BatchNormalization()

    def build(self, shape):
        self.conv.build(shape)
        self.bn.build((*shape[:-1], self.filters))

    def call(self, x, training=None):
        return keras.ops.relu(x + self.bn(self.conv(x), training=training))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@register
class Unbuilt(L.Layer):
    """A layer without `build`: its sublayers are built by the call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.bn = L.Conv2D(3, 3, padding="same"), L.BatchNormalization()

    def call(self, x):
        return self.bn(self.conv(x))


@register
class InsideOut(keras.Model):
    """A functional model within a custom layer within a subclassed model."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = keras.Sequential([Residual(2), Unbuilt(), L.Conv2D(2, 1)])
        self.dense = L.Dense(3)

    def call(self, x, training=None):
        return self.dense(keras.ops.mean(self.body(x, training=training), axis=(1, 2)))


@register
class OwnFunctional(keras.Model):
    """A subclass of `keras.Model` that is functional."""

    def __init__(self, filters=3, **kwargs):
        self.filters = filters
        inputs = keras.Input(SHAPE)
        x = L.GlobalAveragePooling2D()(L.Conv2D(filters, 3)(inputs))
        super().__init__(inputs, L.Dense(3)(x), **kwargs)

    def get_config(self):
        return {"filters": self.filters, "name": self.name}


@register
class OwnSequential(keras.Sequential):
    """A subclass of `keras.Sequential` with layers of its own."""

    def __init__(self, **kwargs):
        layers = [L.Conv2D(3, 3), L.BatchNormalization(), L.Flatten(), L.Dense(3)]
        super().__init__([keras.Input(SHAPE), *layers], **kwargs)

    def get_config(self):
        return {"name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@register
class Inconsistent(keras.Sequential):
    """A subclass of `keras.Sequential` whose config repeats its layers."""

    def __init__(self, name=None):
        layers = [L.Conv2D(3, 3), L.Flatten(), L.Dense(3)]
        super().__init__([keras.Input(SHAPE), *layers], name=name)


@register
class Twice(_Own):
    """One layer under two attributes and in a list."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.again = self.conv
        self.all = [self.conv, self.dense]


@register
class OtherOrder(_Own):
    """Layers that are built in another order than they are made."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = L.Conv2D(2, 1), L.Conv2D(2, 1)

    def call(self, x, training=None):
        return self.head(self.conv(self.first(self.second(x))))


@register
class Lazy(_Own):
    """A layer that the first call makes."""

    def call(self, x, training=None):
        if not hasattr(self, "late"):
            self.late = L.Conv2D(2, 1)
        return self.head(self.conv(self.late(x)))


@register
class OfPair(_Own):
    """A subclassed model that takes a pair."""

    def call(self, pair, training=None):
        return self.head(self.conv(pair[0] + pair[1]))


@register
class OfDict(_Own):
    """A subclassed model from a dict to a dict."""

    def call(self, inputs, training=None):
        x = self.pool(self.conv(inputs["image"]))
        return {"scores": self.dense(x) + inputs["bonus"]}


@register
class Prior(L.Layer):
    """State that is no weight, saved by hooks of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = np.ones(4, "float32")

    def call(self, x):
        return x * self.table

    def save_own_variables(self, store):
        store["table"] = self.table

    def load_own_variables(self, store):
        self.table = np.array(store["table"])


def _prior():
    prior = Prior()
    model, inputs = _around(prior)
    prior.table = np.array([1, 2, 3, 4], "float32")
    return model, inputs


@register
class Asset(L.Layer):
    """State that is no weight, saved as a file."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.factor = 1.0

    def call(self, x):
        return x * self.factor

    def save_assets(self, folder):
        with open(f"{folder}/factor.txt", "w") as file:
            file.write(str(self.factor))

    def load_assets(self, folder):
        with open(f"{folder}/factor.txt") as file:
            self.factor = float(file.read())


def _asset():
    asset = Asset()
    model, inputs = _around(asset)
    asset.factor = 3.5
    return model, inputs


@register
class Forgetful(L.Layer):
    """State that neither a config nor a hook saves."""

    factor = 1.0

    def call(self, x):
        return x * self.factor


def _forgetful():
    layer = Forgetful()
    model, inputs = _around(layer)
    layer.factor = 3.5
    return model, inputs


@register
class Counter(L.Layer):
    """Variables of several types, all of which every call assigns."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)
        self.mean = self.add_weight(shape=shape[-1:], initializer="zeros", trainable=False)
        self.seen = self.add_weight(shape=(), dtype="bool", initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign_add(1)
        self.mean.assign(0.9 * self.mean + 0.1 * keras.ops.mean(x, axis=(0, 1, 2)))
        self.seen.assign(True)
        return x - self.mean


@register
class Raw(L.Layer):
    """A variable of TensorFlow, which every call assigns."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.count = tf.Variable(1.0, trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return x * self.count


@register
class RawConstant(Raw):
    def call(self, x):
        return x * self.count


def _raw_constant():
    layer = RawConstant()
    model, inputs = _around(layer)
    layer.count.assign(2.5)
    return model, inputs


@register
class MeanSoFar(L.Layer):
    """A metric that the output depends on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mean = keras.metrics.Mean()

    def call(self, x):
        return x - self.mean.result()


def _mean_so_far():
    layer = MeanSoFar()
    model, inputs = _around(layer)
    layer.mean.update_state([1.0, 2.0])
    return model, inputs


@register
class Noisy(L.Layer):
    """A seed generator of its own, drawn from in inference."""

    def __init__(self, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(seed)
        self.seed = seed

    def call(self, x):
        return x + 0.01 * keras.random.normal(keras.ops.shape(x), seed=self.generator)

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


@register
class Measured(L.Layer):
    """A metric and a loss inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.metric = keras.metrics.Mean()

    def call(self, x):
        self.metric.update_state(x)
        self.add_loss(keras.ops.mean(x))
        return x


@register
class Containers(L.Layer):
    """Weights in a list and a dict, of several dtypes, made in the constructor."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.factors = [self.add_weight(shape=(4,), name=f"f{i}") for i in range(2)]
        self.named = {"shift": self.add_weight(shape=(4,), dtype="float64", name="shift")}

    def call(self, x):
        x = x * self.factors[0] + self.factors[1]
        return x + keras.ops.cast(self.named["shift"], x.dtype)


@register
class Quarters(L.Dense):
    """A Dense layer whose saved weights are not its weights."""

    def save_own_variables(self, store):
        store["kernel"] = self.kernel * 4.0
        store["bias"] = self.bias

    def load_own_variables(self, store):
        self._kernel.assign(np.array(store["kernel"]) / 4.0)
        self.bias.assign(store["bias"])


@register
class OwnBuild(L.Layer):
    """A layer built by more than a shape."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.units = None

    def build(self, shape):
        self.input_shape_, self.units = shape, self.units or 7
        self.kernel = self.add_weight(shape=(shape[-1], self.units))

    def get_build_config(self):
        return {"input_shape": self.input_shape_, "units": self.units}

    def build_from_config(self, config):
        self.units = config["units"]
        self.build(config["input_shape"])
        self.built = True

    def call(self, x):
        return x @ self.kernel


def _own_build():
    layer = OwnBuild()
    layer.units = 5
    return _around(layer)


@register
class TwoArguments(L.Layer):
    """A layer called on two tensors, of which one is an optional keyword."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = L.Conv2D(2, 3, padding="same")

    def build(self, x_shape, other_shape=None):
        self.conv.build(x_shape)

    def call(self, x, other=None):
        x = self.conv(x)
        return x if other is None else x + other


def _two_arguments():
    a, b = keras.Input(SHAPE), keras.Input(SHAPE)
    layer = TwoArguments()
    x = layer(layer(a, other=b))
    return _finish(keras.Model([a, b], L.Dense(3)(L.Flatten()(x))))


def _lambda():
    return _around(L.Lambda(lambda x: x * 2.0))


def _time_distributed_of_unknown_length():
    frame = keras.Sequential(
        [keras.Input(SHAPE), L.Conv2D(4, 3), L.BatchNormalization(), L.GlobalAveragePooling2D()]
    )
    inputs = keras.Input((None, *SHAPE))
    x = L.GlobalAveragePooling1D()(L.TimeDistributed(frame)(inputs))
    return _finish(keras.Model(inputs, L.Dense(3)(x)))


def _any_size():
    inputs = keras.Input((None, None, 3))
    x = L.GlobalMaxPooling2D()(L.Conv2D(4, 3)(inputs))
    return _finish(keras.Model(inputs, L.Dense(3)(x)), _values((7, 5, 3)))


@register
class MappedOutside(_Own):
    """A subclassed model that runs a convolution on one image after the other."""

    def call(self, x, training=None):
        return self.head(keras.ops.map(lambda one: self.conv(one[None])[0], x))


@register
class DropoutWithin(_Own):
    """Layers that are told to train in inference."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.bn, self.drop = L.BatchNormalization(), L.Dropout(0.4)

    def call(self, x, training=None):
        x = self.drop(self.bn(self.conv(x), training=True), training=True)
        return self.head(x)


@register
class Mapped(L.Layer):
    """Runs a convolution on one image after the other."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = L.Conv2D(4, 3)

    def build(self, shape):
        self.conv.build(shape)

    def call(self, x):
        return keras.ops.map(lambda one: self.conv(one[None])[0], x)


def _subclassed_inside():
    inputs = keras.Input(SHAPE)
    x = Plain()(L.Conv2D(2, 3, padding="same")(inputs))
    return _finish(keras.Model(inputs, L.Dense(3)(x)))


BASES = {
    # convolutions
    "Conv1D": lambda: _series(L.Conv1D(2, 3, padding="causal", dilation_rate=2)),
    "Conv2D": lambda: _around(L.Conv2D(4, (1, 3), groups=2), L.Conv2D(2, 2, dilation_rate=2)),
    "Conv3D": lambda: _volume(),
    "Conv1DTranspose": lambda: _series(L.Conv1DTranspose(3, 2, strides=2)),
    "Conv2DTranspose": lambda: _around(L.Conv2DTranspose(3, 2, strides=2)),
    "Conv3DTranspose": lambda: _volume(L.Conv3DTranspose(2, 2)),
    "DepthwiseConv1D": lambda: _series(L.DepthwiseConv1D(3, depth_multiplier=2)),
    "DepthwiseConv2D": lambda: _around(L.DepthwiseConv2D(3, depth_multiplier=2)),
    "SeparableConv1D": lambda: _series(L.SeparableConv1D(3, 3)),
    "SeparableConv2D": lambda: _around(L.SeparableConv2D(3, 3)),
    # normalizations
    "BatchNormalization": lambda: _around(
        L.BatchNormalization(), L.BatchNormalization(scale=False)
    ),
    "synchronized BatchNormalization": lambda: _around(L.BatchNormalization(synchronized=True)),
    "LayerNormalization": lambda: _around(L.LayerNormalization()),
    "GroupNormalization": lambda: _around(L.GroupNormalization(2)),
    "RMSNormalization": lambda: _around(L.RMSNormalization()),
    "UnitNormalization": lambda: _around(L.UnitNormalization()),
    "SpectralNormalization": lambda: _around(L.SpectralNormalization(L.Conv2D(3, 3))),
    "Normalization": _normalization,
    "Normalization per pixel": lambda: _normalization(axis=(1, 2, 3)),
    "Normalization of given moments": lambda: _normalization(mean=[1.0, 2.0], variance=[3.0, 4.0]),
    "inverted Normalization": lambda: _normalization(
        mean=[1.0, 2.0], variance=[3.0, 4.0], invert=True
    ),
    # other layers with weights
    "PReLU": lambda: _around(L.PReLU(), L.PReLU(shared_axes=[1, 2])),
    "Embedding": lambda: _with_side_input(L.Embedding(4, 3), (2,), "int32"),
    "ReversibleEmbedding": _reversed_embedding,
    "EinsumDense": lambda: _attention(L.EinsumDense("abc,cd->abd", (4, 5), bias_axes="d")),
    "MultiHeadAttention": lambda: _attention(
        lambda x: L.MultiHeadAttention(2, 2, dropout=0.1)(x, x)
    ),
    "GroupQueryAttention": lambda: _attention(lambda x: L.GroupQueryAttention(2, 4, 2)(x, x)),
    "Attention": lambda: _attention(lambda x: L.Attention(use_scale=True)([x, x])),
    "AdditiveAttention": lambda: _attention(lambda x: L.AdditiveAttention()([x, x])),
    "STFTSpectrogram": lambda: _spectrogram(
        L.STFTSpectrogram(frame_length=16, frame_step=8, fft_length=16), (64, 1)
    ),
    "MelSpectrogram": lambda: _spectrogram(
        L.MelSpectrogram(16, 16, 8, num_mel_bins=6, sampling_rate=100, max_freq=50)
    ),
    # recurrent layers
    "SimpleRNN": lambda: _series(L.SimpleRNN(3)),
    "LSTM": lambda: _series(L.LSTM(3, dropout=0.2, seed=4)),
    "GRU": lambda: _series(L.GRU(3, recurrent_dropout=0.2)),
    "RNN of cells": lambda: _series(L.RNN([L.LSTMCell(3, dropout=0.1), L.GRUCell(2)])),
    "Bidirectional": lambda: _series(L.Bidirectional(L.LSTM(3, dropout=0.1))),
    "Bidirectional of two": lambda: _series(
        L.Bidirectional(L.LSTM(3), backward_layer=L.GRU(3, go_backwards=True))
    ),
    "ConvLSTM1D": lambda: _around(L.ConvLSTM1D(2, 3), shape=(3, 6, 2), conv=L.Conv2D(2, 1)),
    "ConvLSTM2D": lambda: _around(
        L.ConvLSTM2D(2, 3, recurrent_dropout=0.1),
        shape=(3, *SHAPE),
        conv=L.TimeDistributed(L.Conv2D(2, 1)),
    ),
    "ConvLSTM3D": lambda: _around(
        L.ConvLSTM3D(2, 2),
        shape=(2, 4, 4, 4, 2),
        conv=L.TimeDistributed(L.Conv3D(2, 1)),
    ),
    "stateful LSTM": _stateful_lstm,
    "stateful ConvLSTM2D": _stateful_convlstm,
    "TimeDistributed": lambda: _around(
        L.TimeDistributed(L.BatchNormalization()),
        shape=(3, *SHAPE),
        conv=L.TimeDistributed(L.Conv2D(2, 3)),
    ),
    "TimeDistributed of unknown length": _time_distributed_of_unknown_length,
    # lookups and text
    "StringLookup": lambda: _string_lookup(vocabulary=["blue", "green"]),
    "adapted StringLookup": _string_lookup,
    "adapted StringLookup with tf_idf": lambda: _with_side_input(
        _adapted(L.StringLookup(output_mode="tf_idf"), WORDS), (1,), "string"
    ),
    "IntegerLookup": _integer_lookup,
    "TextVectorization": _text,
    "TextVectorization with tf_idf": _tf_idf,
    "Hashing": lambda: _with_side_input(L.Hashing(5, salt=3), (1,), "string"),
    "HashedCrossing": _hashed_crossing,
    "Discretization": _discretization,
    "Discretization of given boundaries": lambda: _with_side_input(
        L.Discretization([-1.0, 0.0, 1.0], output_mode="count"), (2,)
    ),
    "CategoryEncoding": lambda: _with_side_input(L.CategoryEncoding(5), (2,), "int32"),
    # seeds
    "Dropout": _with_dropout,
    "augmentation": _augmented,
    "Pipeline": _pipeline,
    "Dropout in inference": lambda: _advanced(_dropout_inside()),
    # quantized layers, LoRA, precision
    "int8": lambda: _quantized("int8"),
    "int4": lambda: _quantized("int4"),
    "float8": lambda: _quantized("float8"),
    "int8 EinsumDense": lambda: _quantized_einsum("int8"),
    "int4 EinsumDense": lambda: _quantized_einsum("int4"),
    "int8 Embedding": lambda: _quantized_embedding("int8"),
    "int4 Embedding": lambda: _quantized_embedding("int4"),
    "int8 MultiHeadAttention": _quantized_attention,
    "LoRA": _lora,
    "LoRA on int8": lambda: _lora("int8"),
    "LoRA on Embedding": _lora_embedding,
    "LoRA on EinsumDense": _lora_einsum,
    "mixed_float16": lambda: _of_dtype("mixed_float16"),
    "bfloat16": lambda: _of_dtype("bfloat16"),
    "mixed_bfloat16": lambda: _of_dtype("mixed_bfloat16"),
    "float64": lambda: _of_dtype("float64"),
    # structures
    "nested": _nested,
    "nested and compiled": _nested_and_compiled,
    "shared": _shared,
    "tied inside": lambda: _around(Tied()),
    "tied in the config": _tied_in_config,
    "tied outside": _tied_outside,
    "several inputs and outputs": _several_inputs_and_outputs,
    "nested structures": _nested_structures,
    "one input by name": _one_input_by_name,
    "list of one": _list_of_one,
    "training inside": _training_inside,
    "operations": _operations,
    "regularized": _regularized,
    "frozen": _frozen,
    "frozen whole": _frozen_whole,
    "masked": _masked,
    "any size": _any_size,
    "Lambda": _lambda,
    # subclassed
    "subclassed": lambda: _called(Plain()),
    "subclassed and named": lambda: _called(Plain(name="mine")),
    "lists of layers": lambda: _called(WithList()),
    "built in build": lambda: _called(BuiltInBuild()),
    "only training reaches": lambda: _called(Auxiliary(), training=True),
    "only training would reach": lambda: _called(Auxiliary()),
    "never called": lambda: _called(Spare()),
    "inside out": lambda: _called(InsideOut()),
    "functional by inheritance": lambda: _finish(OwnFunctional(4)),
    "Sequential by inheritance": lambda: _finish(OwnSequential()),
    "layers repeated by the config": lambda: _finish(Inconsistent()),
    "one layer twice": lambda: _called(Twice()),
    "other order": lambda: _called(OtherOrder()),
    "made by the first call": lambda: _called(Lazy()),
    "subclassed of a pair": lambda: _called(OfPair(), (_values(SHAPE), _values(SHAPE))),
    "subclassed of a dict": lambda: _called(
        OfDict(), {"image": _values(SHAPE), "bonus": _values((3,))}
    ),
    "custom layer": lambda: _around(Residual(4)),
    "custom layer without build": lambda: _around(Unbuilt()),
    "custom layer with another build": _own_build,
    "custom layer of two arguments": _two_arguments,
    "subclassed inside": _subclassed_inside,
    # state
    "own variables": _prior,
    "own variables of another form": lambda: _around(Quarters(3)),
    "assets": _asset,
    "unsaved state": _forgetful,
    "assigned in every call": lambda: _around(Counter()),
    "raw variable": lambda: _around(Raw()),
    "raw constant": _raw_constant,
    "metric in the output": _mean_so_far,
    "noise in inference": lambda: _advanced(_around(Noisy())),
    "metric inside": lambda: _around(Measured()),
    "containers of weights": lambda: _around(Containers()),
    "mapped outside of layers": lambda: _called(MappedOutside()),
    "training within": lambda: _advanced(_called(DropoutWithin())),
    "mapped": lambda: _around(conv=Mapped()),
}

# Bases whose outputs are drawn at random, so that copies in other processes give others.
RANDOM = ("noise in inference", "training within")

# Bases that are refused: the argument is what the error names.
REFUSED_WHEN_WRAPPED = {
    "raw variable": "Keras variables only.*'raw', which assigns to",
}
REFUSED_BY_FIT = {
    "LoRA on int8": r"gives the same outputs. .*from 'dense_1' \(Dense\) on",
    "tied in the config": "builds the same layers. .*differs from 'flatten' on",
    "tied outside": "which layers share weights. Received: 'conv2d_1'",
    "layers repeated by the config": "can be built from its config. Received: 'inconsistent'",
    "unsaved state": r"gives the same outputs. .*from 'forgetful' \(Forgetful\) on",
    "metric in the output": r"gives the same outputs. .*from 'mean_so_far' \(MeanSoFar\) on",
    "raw constant": r"gives the same outputs. .*from 'raw_constant' \(RawConstant\) on",
}
REFUSED_BY_EXPORT = {
    "adapted StringLookup": r"further state in the layers \['string_lookup'\]",
    "adapted StringLookup with tf_idf": r"further state in the layers \['string_lookup'\]",
    "IntegerLookup": r"further state in the layers \['integer_lookup'\]",
    "TextVectorization": r"further state in the layers \['text_vectorization', ",
    "TextVectorization with tf_idf": r"further state in the layers \['text_vectorization', ",
    "float8": "other weights than it has, from 'sequential/dense/kernel' on",
    "Lambda": "'Lambda' is Python code",
    "only training reaches": "other weights than it has, from 'auxiliary/sequential/",
    "own variables": r"further state in the layers \['prior'\]",
    "assets": r"further state in the layers \['asset'\]",
}
