"""Codes kernels with the reference codec of the NNC standard; run by `peers.nncodec`.

    python nncodec_worker.py FOLDER QP

Needs an environment with the package `nncodec` (tested with 2.1.3). Reads FOLDER/kernels.npz,
writes the size of the bit stream in bytes to FOLDER/size.json and the decoded kernels to
FOLDER/decoded.npz.
"""

import json
import pathlib
import sys

import numpy as np
from nncodec.nn import decode, encode


def main(folder, qp):
    """Encodes and decodes the kernels."""
    with np.load(folder / "kernels.npz") as kernels:
        model = {name: kernels[name].astype("float32") for name in kernels.files}
    arguments = {"qp": qp, "use_dq": True, "results": str(folder), "verbose": False}
    stream = encode(model, arguments)
    np.savez(folder / "decoded.npz", **decode(stream))
    (folder / "size.json").write_text(json.dumps(len(stream)))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
