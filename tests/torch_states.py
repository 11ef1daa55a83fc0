"""Weights of a Keras network with the names and layouts of PyTorch."""

NAMES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def torch_state(model):
    """The weights of `model` like a PyTorch `state_dict`: a dict from names to NumPy arrays."""
    state = {}
    for layer in model.layers:
        for weight in layer.weights:
            value = weight.numpy()
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            state[f"{layer.name.replace('_', '.')}.{NAMES[weight.name]}"] = value
    return state
