"""Codes kernels by the reference codec of the NNC standard, for `peers.py`.

    python nncodec_worker.py FOLDER QP

Run in an environment that has the package `nncodec` (tried: 2.1.3), which `peers.nncodec`
does. Reads FOLDER/kernels.npz; writes size.json, the bytes of the bit stream, and
decoded.npz, the kernels decoded from it.
"""

import json
import pathlib
import sys

import numpy as np
from nncodec.nn import decode, encode


def main(folder, parameter):
    """Codes and decodes."""
    with np.load(folder / "kernels.npz") as kernels:
        model = {name: kernels[name].astype("float32") for name in kernels.files}
    arguments = {"qp": parameter, "use_dq": True, "results": str(folder), "verbose": False}
    stream = encode(model, arguments)
    decoded = decode(stream)
    np.savez(folder / "decoded.npz", **decoded)
    (folder / "size.json").write_text(json.dumps(len(stream)))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
