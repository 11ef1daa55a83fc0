"""Where fitted representations are kept that several benchmarks use, by how they were made."""


def path(
    folder, network, width, steps, seed, permutation="cross_filter", num_blocks=5, frequencies=40
):
    """The file of a fit as in `accuracy.py`'s first rows: 2-opt, mixed-up images.

    Args:
        folder: a `pathlib.Path`.
        network: the ResNet's depth.
        width: the predictor's hidden size.
        steps: of the two phases.
        seed: the fit's.
        permutation: the kind of it.
        num_blocks: the predictor's Dense layers.
        frequencies: of the encoding, for each index.
    """
    first, second = steps
    shape = f"{num_blocks}x{width}-{frequencies}"
    return folder / f"resnet{network}-{permutation}-{shape}-{first}-{second}-{seed}.keras"
