"""Runs: the pieces of the sequence of blocks that local predictors represent.

The *rank* of a block is its number in the sequence of all blocks: layer after layer, and within a
layer in the order of the positions. N blocks are cut into E runs of L = ceil(N / E) places. Run e
starts at rank floor(e N / E). If E does not divide N, some runs share a block with the run after
them, which then represents it. Every place of a run is a *slot*; the slots are numbered run by run.
A place is encoded by sines and cosines.
"""

import numpy as np

NUM_FREQUENCIES = 8  # F, of the features of a place


class Runs:
    """The runs of a network's blocks.

    Args:
        num_blocks: N, at least `experts`.
        experts: E.

    Attributes:
        length: L, places per run.
        starts: int64 array `(E,)`, the first rank of each run.

    Raises:
        ValueError: if there are more experts than blocks.
    """

    def __init__(self, num_blocks: int, experts: int) -> None:
        if experts > num_blocks:
            raise ValueError(
                f"experts must be at most {num_blocks:,}, the number of blocks. "
                f"Received: experts={experts!r}"
            )
        self.num_blocks = num_blocks
        self.experts = experts
        self.length = -(-num_blocks // experts)
        self.starts = np.arange(experts) * num_blocks // experts

    @property
    def num_slots(self) -> int:
        """Number of places of all runs."""
        return self.experts * self.length

    def ranks(self) -> np.ndarray:
        """The rank of the block in each slot: int32 `(slots,)`."""
        return (self.starts[:, None] + np.arange(self.length)).ravel().astype("int32")

    def slots(self) -> np.ndarray:
        """The slot that represents the block of each rank: int32 `(blocks,)`."""
        ranks = np.arange(self.num_blocks)
        experts = np.searchsorted(self.starts, ranks, side="right") - 1
        return (experts * self.length + ranks - self.starts[experts]).astype("int32")


def place_features(run_length: int) -> np.ndarray:
    """The features of every place of a run.

    Frequency i, in cycles per place, is L^(-(i + 1) / F) / 2 for a run of L places, i = 0 .. F - 1.

    Args:
        run_length: L.

    Returns:
        float32 array `(L, 2 F)`: F sines, then F cosines.
    """
    frequencies = 0.5 * run_length ** (-np.arange(1, NUM_FREQUENCIES + 1) / NUM_FREQUENCIES)
    angles = 2 * np.pi * np.arange(run_length)[:, None] * frequencies
    features = np.empty((run_length, 2 * NUM_FREQUENCIES), "float32")
    np.sin(angles, out=features[:, :NUM_FREQUENCIES])
    np.cos(angles, out=features[:, NUM_FREQUENCIES:])
    return features
