"""The original network as a graph: where its feature maps are.

A convolution's feature map is taken after the batch normalisation that follows it
and before the activation; without one, it is the convolution's own output. Feature maps
can also be taken where a residual network adds its branches.
"""

import keras

# Where the two networks can be compared, see `find_feature_maps`.
FEATURE_MAPS = ("convolutions", "additions", "both")


def find_feature_maps(base, convolutions, kind="convolutions"):
    """The symbolic tensors at which original and rebuilt network are compared.

    Args:
        base: a built functional or Sequential model.
        convolutions: its `kernels.Convolution` list.
        kind: `"convolutions"`: the output of each, after its batch normalisation;
            `"additions"`: the sums at which a residual network's branches meet;
            `"both"`. Defaults to `"convolutions"`.

    Returns:
        A list of `KerasTensor`. A convolution inside a nested model has no output
        in this graph and is left out; of one used at several places it is the first.

    Raises:
        ValueError: for another kind, or additions in a network without.
    """
    if kind not in FEATURE_MAPS:
        raise ValueError(
            f"feature_maps must be one of {FEATURE_MAPS}. Received: feature_maps={kind!r}"
        )
    # keras.layers.Add, and what is behind keras.ops.add and x + y
    sums = [
        call.output_tensors[0]
        for call in calls_of(base.outputs[0])
        if type(call.operation).__name__ == "Add" and _joins_maps(call)
    ]
    found = [
        (normalisation or call).output_tensors[0]
        for call, normalisation in convolution_calls(base, convolutions)
        if call
    ]
    if kind != "convolutions" and not sums:
        raise ValueError(
            "Expected a base that adds feature maps, as residual networks do. Received: "
            f"feature_maps={kind!r} for {base.name!r}, which adds none"
        )
    return {"convolutions": found, "additions": sums, "both": found + sums}[kind]


def convolution_calls(base, convolutions):
    """Where each convolution is called, and the batch normalisation of what it gives.

    Args:
        base: a built functional or Sequential model.
        convolutions: its `kernels.Convolution` list.

    Returns:
        For each convolution a pair of calls, each `None` where there is none: that of
        a convolution inside a nested model is not in this graph. Of one used at
        several places it is the first.
    """
    first, normalisations = {}, {}
    for call in calls_of(base.outputs[0]):
        first.setdefault(id(call.operation), call)
        if isinstance(call.operation, keras.layers.BatchNormalization):
            normalisations.setdefault(id(call.input_tensors[0]), call)
    found = [first.get(id(conv.layer)) for conv in convolutions]
    return [(call, call and normalisations.get(id(call.output_tensors[0]))) for call in found]


def first_normalisation(base):
    """The batch normalisation that comes first in a network.

    Args:
        base: a built functional or Sequential model.

    Returns:
        `(layer, tensor)`: the layer and its symbolic input.

    Raises:
        ValueError: where the network has none, outside the models nested in it.
    """
    for call in calls_of(base.outputs[0]):
        if isinstance(call.operation, keras.layers.BatchNormalization):
            return call.operation, call.input_tensors[0]
    raise ValueError(
        "Expected a base with a BatchNormalization layer of its own. Received: "
        f"{base.name!r} with layers {[type(layer).__name__ for layer in base.layers]}"
    )


def _joins_maps(call):
    shapes = [tuple(tensor.shape) for tensor in call.input_tensors]
    return len(shapes) > 1 and len(shapes[0]) == 4 and len(set(shapes)) == 1


def calls_of(tensor):
    """The calls of layers that a symbolic tensor comes from, each after its inputs'.

    A layer's own `input` and `output` will not do: they are those of its first call,
    which may have been in another model.
    """
    calls, seen, stack = [], set(), [(_call(tensor), False)]
    while stack:
        call, inputs_done = stack.pop()
        if inputs_done:
            calls.append(call)
        elif id(call) not in seen:
            seen.add(id(call))
            stack.append((call, True))
            stack.extend((_call(source), False) for source in call.input_tensors)
    return calls


def _call(tensor):
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def output_activation(model):
    """What turns logits into outputs: softmax, sigmoid, another activation, or None."""
    operation = _call(model.outputs[0]).operation
    if isinstance(operation, keras.Model):
        return output_activation(operation)
    # keras.layers.Softmax, and the operations behind keras.ops.softmax and sigmoid
    by_class = {"Softmax": keras.activations.softmax, "Sigmoid": keras.activations.sigmoid}
    known = by_class.get(type(operation).__name__)
    return known or getattr(operation, "activation", None)
