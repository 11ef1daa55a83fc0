"""Representations that several benchmarks share, cached in a folder."""

import dataclasses

import cifar
import keras

import keras_nern
from keras_nern.network.blocks import Blocks

BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Fit:
    """How to fit a representation: reconstruction, curvature, distillation on mixed-up images.

    Args:
        depth: depth of the ResNet, 20 or 56.
        hidden_size: width of the predictor; `None` for local predictors of `parameters`.
        steps: number of reconstruction and of distillation steps.
        seed: seed of the predictor, the batches and the images.
        permutation: kind of permutation. Defaults to `"cross_filter"`.
        num_layers: number of Dense layers of the predictor. Defaults to `5`.
        num_frequencies: number of frequencies that encode each index. Defaults to `40`.
        permutation_method: how the permutation is found. Defaults to `"two_opt"`.
        parameters: number of parameters of local predictors. Defaults to `None`.
        curvature_steps: number of steps of the curvature phase. Defaults to `0`.
    """

    depth: int
    hidden_size: int | None
    steps: tuple[int, int]
    seed: int
    permutation: str | None = "cross_filter"
    num_layers: int = 5
    num_frequencies: int = 40
    permutation_method: str = "two_opt"
    parameters: int | None = None
    curvature_steps: int = 0

    @property
    def name(self):
        """The file name in the cache."""
        order = str(self.permutation)
        if self.permutation_method != "two_opt":
            order += f"-{self.permutation_method}"
        shape = f"{self.num_layers}x{self.hidden_size}-{self.num_frequencies}"
        first, second = self.steps
        steps = f"{first}-{second}"
        if self.parameters:
            shape, steps = f"local-{self.parameters}", f"{first}-{self.curvature_steps}-{second}"
        return f"resnet{self.depth}-{order}-{shape}-{steps}-{self.seed}.keras"

    def build(self, base, metric="euclidean"):
        """Builds the `NeRNModel` of `base`, compiled but not yet fitted."""
        order = {
            "permutation": self.permutation,
            "permutation_method": self.permutation_method,
            "metric": metric,
            "view": "block",
        }
        if self.parameters:
            weights = Blocks(base, "block").num_weights
            nern = keras_nern.NeRNModel(base, size=self.parameters / weights, **order)
        else:
            nern = keras_nern.NeRNModel(
                base,
                self.hidden_size,
                self.num_layers,
                encoding=keras_nern.PositionalEncoding(self.num_frequencies),
                **{**order, "view": "crop"},
            )
        first, _ = self.steps
        nern.compile(reconstruction_steps=first, curvature_steps=self.curvature_steps)
        return nern

    def load_or_fit(self, base, images, folder=None):
        """Loads the `NeRNModel` from the cache, or fits and caches it.

        Args:
            base: the ResNet to represent.
            images: uint8 `(n, 32, 32, 3)`; unused without distillation steps.
            folder: the cache; `None` for none. Defaults to `None`.

        Returns:
            A fitted `NeRNModel`.
        """
        if folder and (folder / self.name).exists():
            return keras.models.load_model(folder / self.name)
        keras.utils.set_random_seed(self.seed)
        nern = self.build(base)
        first, second = self.steps
        if second:
            dataset = cifar.augmented(images, BATCH_SIZE, self.seed, mixup=True)
            nern.fit(dataset, steps_per_epoch=second, verbose=0)
        elif first:
            nern.fit(steps_per_epoch=first, verbose=0)
        if folder:
            self.save(nern, folder)
        return nern

    def save(self, nern, folder):
        """Writes a fitted `NeRNModel` to the cache."""
        folder.mkdir(parents=True, exist_ok=True)
        nern.save(folder / self.name)
