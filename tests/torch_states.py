"""A network's weights as PyTorch would name and lay them out."""


def torch_state(model):
    """`model`'s weights under PyTorch's names and layouts."""
    names = {"gamma": "weight", "beta": "bias", "bias": "bias", "kernel": "weight"}
    names |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
    state = {}
    for layer in model.layers:
        for weight in layer.weights:
            value = weight.numpy()
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            name = layer.name.replace("_", ".").replace("downsample.", "downsample.")
            state[f"{name}.{names[weight.name]}"] = value
    return state
