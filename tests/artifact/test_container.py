import hashlib
import io
import os
import random
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from processes import ROOT

from keras_nern.artifact import container

SHA = '"sha256":{"dtype":"U8","shape":[32],"data_offsets":'


@pytest.fixture(autouse=True)
def _seeded():
    """In place of that of conftest.py: nothing here draws from Keras."""


def assembled(header, parts=b""):
    """A file put together by hand, with the hash it should have."""
    data = len(header).to_bytes(8, "little") + header.encode() + parts
    return data + hashlib.sha256(data).digest()


# Two parts of 3 and 1 bytes; the header is 200 bytes long.
LITERAL_HEADER = (
    '{"__metadata__":{"keras_nern":"1"},'
    '"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},'
    '"b.c":{"dtype":"U8","shape":[1],"data_offsets":[3,4]},' + SHA + "[4,36]}}"
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.nern"


def test_a_file_assembled_by_hand_is_read(path):
    path.write_bytes(assembled(LITERAL_HEADER, b"\x01\x02\x03\xff"))
    parts = container.read(path)
    assert parts.pop("sha256") == path.read_bytes()[-32:]
    assert parts == {"a": b"\x01\x02\x03", "b.c": b"\xff"}


def test_a_file_is_written_byte_for_byte_as_specified(path):
    container.write(path, {"b.c": b"\xff", "a": b"\x01\x02\x03"})
    padded = LITERAL_HEADER + " " * (-len(LITERAL_HEADER) % 8)
    assert path.read_bytes() == assembled(padded, b"\x01\x02\x03\xff")
    assert list(path.parent.iterdir()) == [path]


def test_no_part_comes_after_the_hash():
    with pytest.raises(ValueError, match=r"must come before 'sha256'. Received: \['shape'\]"):
        container.dump({"a": b"", "shape": b""})


def a_zip():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("config.json", "{}" * 100)
    return file.getvalue()


def an_npz():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(100))
    return file.getvalue()


HEAD = '{"__metadata__":{"keras_nern":"1"},'
HOSTILE = {
    "nothing": (b"", "begins with b'', which is no length of a header"),
    "a .keras file": (a_zip(), r"begins with b'PK.*which is no length of a header"),
    "an .npz file": (an_npz(), r"begins with b'PK.*which is no length of a header"),
    "an HDF5 file": (b"\x89HDF\r\n\x1a\n" + bytes(100), "no length of a header"),
    "text": (b"import os; os.remove('x')", "no length of a header"),
    "a header of 64 TiB": ((2**46).to_bytes(8, "little") + b"{}", "no length of a header"),
    "a header that ends early": (
        (65_536).to_bytes(8, "little") + b"{}",
        "it ends within its header of 65,536 bytes",
    ),
    "another safetensors file": (
        assembled('{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
        "its header says nothing of 'keras_nern'",
    ),
    "a header of no object": (assembled("[1,2]"), "its header says nothing of 'keras_nern'"),
    "no JSON": (assembled("{not JSON}"), "its header is no JSON"),
    "no UTF-8": (assembled("{}").replace(b"{}", b"{\xff"), "its header is no JSON"),
    "brackets without end": (assembled("[" * 60_000), "its header is no JSON"),
    "a later format": (
        assembled('{"__metadata__":{"keras_nern":"2"}}'),
        "it is of format '2', and this version of keras_nern reads '1'",
    ),
    "a name twice": (
        assembled(
            HEAD + '"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},' * 2 + SHA + "[0,32]}}"
        ),
        r"its header names \['a'\] twice",
    ),
    "no parts": (assembled('{"__metadata__":{"keras_nern":"1"}}'), "its last part is not 'sha256'"),
    "a hash of another length": (
        assembled(HEAD + '"sha256":{"dtype":"U8","shape":[31],"data_offsets":[0,31]}}'),
        "its last part is not 'sha256' of 32 bytes",
    ),
    "a part behind the hash": (
        assembled(HEAD + SHA + '[0,32]},"z":{"dtype":"U8","shape":[0],"data_offsets":[32,32]}}'),
        "its last part is not 'sha256' of 32 bytes",
    ),
    "another type": (
        assembled(
            HEAD + '"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},' + SHA + "[8,40]}}"
        ),
        r"its part 'a' must be \{'dtype': 'U8'.*and is \{'dtype': 'F64'",
    ),
    "a part with a field more": (
        assembled(
            HEAD
            + '"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"code":"x"},'
            + SHA
            + "[0,32]}}"
        ),
        "its part 'a' must be",
    ),
    "a length below 0": (
        assembled(
            HEAD + '"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,-1]},' + SHA + "[0,32]}}"
        ),
        "its part 'a' has no length",
    ),
    "two axes": (
        assembled(
            HEAD + '"a":{"dtype":"U8","shape":[1,1],"data_offsets":[0,1]},' + SHA + "[1,33]}}"
        ),
        "its part 'a' has no length",
    ),
    "parts that overlap": (
        assembled(
            HEAD
            + '"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
            + '"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
            + SHA
            + "[4,36]}}",
            bytes(4),
        ),
        r"its part 'b' must be .*\[4, 8\]\}, and is",
    ),
    "a part of 2^60 bytes": (
        assembled(
            HEAD
            + f'"a":{{"dtype":"U8","shape":[{2**60}],"data_offsets":[0,{2**60}]}},'
            + SHA
            + f"[{2**60},{2**60 + 32}]}}}}"
        ),
        "bytes where its header says 1,152,921,504,606,",
    ),
    "bytes left over": (
        assembled(LITERAL_HEADER, b"\x01\x02\x03\xff") + b"x",
        "it has 245 bytes where its header says 244",
    ),
    "another hash": (
        assembled(LITERAL_HEADER, b"\x01\x02\x03\xff")[:-1] + b"x",
        "it is damaged: its SHA-256 is not the one that it ends with",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses(name, path):
    data, message = HOSTILE[name]
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        container.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith("Expected a file that NeRNModel.export wrote. Received: ")
    assert "file.nern" in str(caught.value)
    assert peak < 10 * len(data) + 2**22


def test_a_huge_foreign_file_is_not_read(path):
    header = LITERAL_HEADER.encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(2**40)  # a hole of a tebibyte
    with pytest.raises(
        ValueError, match="it has 1,099,511,627,776 bytes where its header says 244"
    ):
        container.read(path)


def test_a_folder_and_nothing_are_no_files(tmp_path):
    with pytest.raises(OSError, match="Is a directory"):
        container.read(tmp_path)
    with pytest.raises(FileNotFoundError):
        container.read(tmp_path / "nothing.nern")


def test_every_truncation_and_thousands_of_mutations_are_refused():
    rng = random.Random(0)
    data = container.dump({"config": rng.randbytes(50), "predictor.biases": rng.randbytes(20)})
    mutants = [data[:length] for length in range(len(data))]
    for place in range(len(data)):  # a flip of every bit
        mutants += [
            data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :] for bit in range(8)
        ]
    for _ in range(2000):  # bytes taken out, put in, moved
        a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
        mutants += [
            data[:a] + data[b:],
            data[:a] + rng.randbytes(b - a + 1) + data[b:],
            data[:a] + data[b:c] + data[a:b] + data[c:],
        ]
    for mutant in mutants:
        if mutant != data:
            with pytest.raises(ValueError, match=r"Expected a file that NeRNModel\.export wrote"):
                container.read_from(io.BytesIO(mutant), len(mutant), "mutant")
    assert len(mutants) > 8000


def test_mutations_with_the_right_hash_are_read_or_refused():
    rng = random.Random(1)
    data = container.dump({"config": rng.randbytes(50), "predictor.biases": rng.randbytes(20)})
    read = 0
    for _ in range(3000):
        mutant = bytearray(data[:-32])
        for _ in range(rng.randint(1, 4)):
            mutant[rng.randrange(len(mutant))] = rng.choice(b'0129{}[],:"aU\x00\xff')
        mutant += hashlib.sha256(mutant).digest()
        try:
            parts = container.read_from(io.BytesIO(mutant), len(mutant), "mutant")
        except ValueError:
            continue
        read += 1
        assert sum(map(len, parts.values())) < len(data)
    assert 100 < read < 2000  # those with other bytes in the parts


def test_names_that_are_paths_are_only_names(path):
    parts = {"../../etc/passwd": b"x", "/tmp/x": b"y", "a\\b": b"z"}
    path.write_bytes(container.dump(parts))
    before = sorted(path.parent.parent.rglob("*"))
    read = container.read(path)
    assert {name: read[name] for name in parts} == parts
    assert sorted(path.parent.parent.rglob("*")) == before


def test_says_which_extra_is_missing(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(
        ImportError, match=r"needs safetensors: `pip install keras-nern\[compact\]`"
    ):
        container.write(path, {})
    assert not path.exists()


KILLED = """
import os, pathlib, random, signal, sys, time
from keras_nern.artifact import container
path, rng = pathlib.Path(sys.argv[1]), random.Random(0)
contents = [{"a": bytes([i]) * 3_000_000} for i in range(2)]
container.write(path, contents[0])
whole = [container.dump(one) for one in contents]
for trial in range(25):
    child = os.fork()
    if child == 0:
        try:
            while True:
                for one in contents:
                    container.write(path, one)
        finally:
            os._exit(1)
    time.sleep(rng.uniform(0.01, 0.1))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert path.read_bytes() in whole, trial
    for left in path.parent.iterdir():
        assert left == path or (left.name.startswith("partial.") and left.suffix == path.suffix)
print("whole")
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(path):
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.stdout == "whole\n", child.stderr
