"""Fitted representations that several benchmarks use, kept by how they were made."""

import dataclasses
import pathlib

import cifar10

BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a representation is made, as in `accuracy.py`'s first rows: on mixed-up images.

    Args:
        network: the ResNet's depth.
        width: the predictor's hidden size.
        steps: of reconstruction, and of distillation after it.
        seed: of predictor, batches and images.
        permutation: the kind of it.
        num_layers: the predictor's Dense layers.
        frequencies: of the encoding, for each index.
        method: by which the order is found.
    """

    network: int
    width: int
    steps: tuple[int, int]
    seed: int
    permutation: str = "cross_filter"
    num_layers: int = 5
    frequencies: int = 40
    method: str = "two_opt"

    @property
    def name(self) -> str:
        """The name of its file."""
        first, second = self.steps
        shape = f"{self.num_layers}x{self.width}-{self.frequencies}"
        order = (
            self.permutation if self.method == "two_opt" else f"{self.permutation}-{self.method}"
        )
        return f"resnet{self.network}-{order}-{shape}-{first}-{second}-{self.seed}.keras"

    def made(self, base, images, folder: pathlib.Path | None = None):
        """The `NeRNModel`: from `folder` where it is there, else fitted and kept there.

        Args:
            base: the network.
            images: uint8 `(n, 32, 32, 3)`, not used without steps of distillation.
            folder: `None` to keep it nowhere.
        """
        import keras

        import keras_nern

        if folder and (folder / self.name).exists():
            return keras.models.load_model(folder / self.name)
        keras.utils.set_random_seed(self.seed)
        nern = keras_nern.NeRNModel(
            base,
            self.width,
            self.num_layers,
            permutation=self.permutation,
            permutation_method=self.method,
            encoding=keras_nern.PositionalEncoding(self.frequencies),
        )
        first, second = self.steps
        nern.compile(reconstruction_steps=first)
        if second:
            dataset = cifar10.augmented(images, BATCH_SIZE, self.seed, mixup=True)
            nern.fit(dataset, steps_per_epoch=second, verbose=0)
        else:
            nern.fit(steps_per_epoch=first, verbose=0)
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            nern.save(folder / self.name)
        return nern
