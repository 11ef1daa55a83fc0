import hashlib
import io
import random
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from processes import ROOT

from keras_nern.artifact import container

HEAD = '{"__metadata__":{"keras_nern":"1"},'
SHA = '"sha256":{"dtype":"U8","shape":[32],"data_offsets":'

# Two parts of 3 and 1 bytes; the header has 200 bytes.
HEADER = (
    HEAD + '"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},'
    '"b.c":{"dtype":"U8","shape":[1],"data_offsets":[3,4]},' + SHA + "[4,36]}}"
)
BODY = b"\x01\x02\x03\xff"


def assembled(header, body=b""):
    """A file assembled by hand, with the right hash."""
    data = len(header).to_bytes(8, "little") + header.encode() + body
    return data + hashlib.sha256(data).digest()


def error_of(data):
    """The message of the ValueError that reading `data` raises, or `None`."""
    try:
        container.read_from(io.BytesIO(data), len(data), "file.nern")
    except ValueError as error:
        return str(error)
    return None


def test_reads_a_file_assembled_by_hand(path):
    path.write_bytes(assembled(HEADER, BODY))
    assert container.read(path) == {
        "a": b"\x01\x02\x03",
        "b.c": b"\xff",
        "sha256": path.read_bytes()[-32:],
    }
    assert container.lengths(path) == {"a": 3, "b.c": 1, "sha256": 32}


def test_writes_a_file_byte_by_byte_as_specified(path):
    container.write(path, {"b.c": b"\xff", "a": b"\x01\x02\x03"})
    padded = HEADER + " " * (-len(HEADER) % 8)
    assert path.read_bytes() == assembled(padded, BODY)
    assert list(path.parent.iterdir()) == [path]


def test_raises_for_a_part_that_sorts_after_the_hash():
    with pytest.raises(ValueError, match=r"must sort before 'sha256'. Received: \['shape'\]"):
        container.dump({"a": b"", "shape": b""})


def test_raises_for_too_many_parts():
    with pytest.raises(ValueError, match=r"Expected fewer parts\. Received: 2000"):
        container.dump({f"part{i}": b"" for i in range(2000)})


def test_only_writing_needs_safetensors(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r'pip install "keras-nern\[compact\]"'):
        container.write(path, {})
    assert not path.exists()
    path.write_bytes(assembled(HEADER, BODY))
    assert container.read(path)["b.c"] == b"\xff"


def test_takes_memory_for_the_requested_parts_only(path):
    container.write(path, {"a": bytes(2**24), "b": b"x"})
    tracemalloc.start()
    parts = container.read(path, names=["b", "missing"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert parts == {"b": b"x", "sha256": path.read_bytes()[-32:]}
    assert peak < 2**22


def test_detects_damage_in_parts_that_are_not_requested(path):
    damaged = bytearray(assembled(HEADER, BODY))
    damaged[-33] ^= 1  # the last byte of b.c
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="it is damaged"):
        container.read(path, names=["a"])


def test_lengths_reads_only_the_header(path):
    path.write_bytes(assembled(HEADER, BODY)[:-10])
    assert container.lengths(path) == {"a": 3, "b.c": 1, "sha256": 32}
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"Expected a file that NeRNModel\.export wrote"):
        container.lengths(path)


def a_zip():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("config.json", "{}" * 100)
    return file.getvalue()


def an_npz():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(100))
    return file.getvalue()


KERAS = r"a zip archive or an HDF5 file: keras\.models\.load_model loads those of Keras"
NO_LENGTH = "which is not the length of a header"
HOSTILE = {
    "empty": (b"", f"it begins with b'', {NO_LENGTH}"),
    "a .keras file": (a_zip(), KERAS),
    "an .npz file": (an_npz(), KERAS),
    "an HDF5 file": (b"\x89HDF\r\n\x1a\n" + bytes(100), KERAS),
    "text": (b"import os; os.remove('x')", NO_LENGTH),
    "a header of 64 TiB": ((2**46).to_bytes(8, "little") + b"{}", NO_LENGTH),
    "a truncated header": (
        (65_536).to_bytes(8, "little") + b"{}",
        "it ends within its header of 65,536 bytes",
    ),
    "another safetensors file": (
        assembled('{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
        "its header does not mention 'keras_nern'",
    ),
    "a list for a header": (assembled("[1,2]"), "its header does not mention 'keras_nern'"),
    "a header that is not JSON": (assembled("{not JSON}"), "its header is not JSON"),
    "a header that is not UTF-8": (
        assembled("{}").replace(b"{}", b"{\xff"),
        "its header is not JSON",
    ),
    "a header of opening brackets": (assembled("[" * 60_000), "its header is not JSON"),
    "a later format": (
        assembled('{"__metadata__":{"keras_nern":"2"}}'),
        "it has format '2', and this version of keras_nern reads '1'",
    ),
    "two parts of one name": (
        assembled(
            HEAD + '"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},' * 2 + SHA + "[0,32]}}"
        ),
        "its header names 'a' twice",
    ),
    "no parts": (assembled('{"__metadata__":{"keras_nern":"1"}}'), "its last part is not 'sha256'"),
    "a hash of 31 bytes": (
        assembled(HEAD + '"sha256":{"dtype":"U8","shape":[31],"data_offsets":[0,31]}}'),
        "its last part is not 'sha256' of 32 bytes",
    ),
    "a part after the hash": (
        assembled(HEAD + SHA + '[0,32]},"z":{"dtype":"U8","shape":[0],"data_offsets":[32,32]}}'),
        "its last part is not 'sha256' of 32 bytes",
    ),
    "another dtype": (
        assembled(
            HEAD + '"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]},' + SHA + "[8,40]}}"
        ),
        r"its part 'a' must be \{'dtype': 'U8'.*but is \{'dtype': 'F64'",
    ),
    "an unknown field of a part": (
        assembled(
            HEAD
            + '"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"code":"x"},'
            + SHA
            + "[0,32]}}"
        ),
        "its part 'a' must be",
    ),
    "a negative length": (
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
    "overlapping parts": (
        assembled(
            HEAD
            + '"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
            + '"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
            + SHA
            + "[4,36]}}",
            bytes(4),
        ),
        r"its part 'b' must be .*\[4, 8\]\}, but is",
    ),
    "a part of 2^60 bytes": (
        assembled(
            HEAD
            + f'"a":{{"dtype":"U8","shape":[{2**60}],"data_offsets":[0,{2**60}]}},'
            + SHA
            + f"[{2**60},{2**60 + 32}]}}}}"
        ),
        "bytes, but its header describes 1,152,921,504,606,",
    ),
    "a byte at the end": (
        assembled(HEADER, BODY) + b"x",
        "it has 245 bytes, but its header describes 244",
    ),
    "another hash": (
        assembled(HEADER, BODY)[:-1] + b"x",
        "it is damaged: its content does not match its SHA-256",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_raises_for_another_file(name, path):
    data, message = HOSTILE[name]
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        container.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value).startswith("Expected a file that NeRNModel.export wrote. Received: ")
    assert "classifier.nern" in str(caught.value)
    assert peak < 10 * len(data) + 2**22


def test_does_not_read_a_file_of_another_size_than_its_header_describes(path):
    with open(path, "wb") as file:
        file.write(len(HEADER).to_bytes(8, "little") + HEADER.encode())
        file.truncate(2**40)  # a tebibyte, of which the disk stores next to nothing
    with pytest.raises(
        ValueError, match="it has 1,099,511,627,776 bytes, but its header describes 244"
    ):
        container.read(path)


def test_raises_for_a_folder_and_for_no_file(tmp_path):
    with pytest.raises(OSError, match="Is a directory"):
        container.read(tmp_path)
    with pytest.raises(FileNotFoundError):
        container.read(tmp_path / "nothing.nern")


def test_raises_for_every_truncation_and_mutation():
    rng = random.Random(0)
    data = container.dump({"config": rng.randbytes(50), "predictor.biases": rng.randbytes(20)})
    mutants = [data[:length] for length in range(len(data))]
    for place in range(len(data)):  # a flip of every bit
        mutants += [
            data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :] for bit in range(8)
        ]
    for _ in range(2000):  # bytes deleted, inserted, moved
        a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
        mutants += [
            data[:a] + data[b:],
            data[:a] + rng.randbytes(b - a + 1) + data[b:],
            data[:a] + data[b:c] + data[a:b] + data[c:],
        ]
    assert error_of(data) is None
    for mutant in mutants:
        if mutant != data:
            assert "Expected a file that NeRNModel.export wrote" in error_of(mutant)


def test_raises_for_mutations_of_the_header_with_the_right_hash():
    rng = random.Random(1)
    data = container.dump({"config": rng.randbytes(50), "predictor.biases": rng.randbytes(20)})
    end_of_header = 8 + int.from_bytes(data[:8], "little")
    refused = 0
    for _ in range(3000):
        mutant = bytearray(data[:-32])
        for _ in range(rng.randint(1, 4)):
            mutant[rng.randrange(len(mutant))] = rng.choice(b'0129{}[],:"aU\x00\xff')
        message = error_of(bytes(mutant) + hashlib.sha256(mutant).digest())
        if mutant[:end_of_header] == data[:end_of_header]:
            assert message is None
        refused += message is not None
    assert 1000 < refused < 2900


def test_names_of_parts_are_not_paths(path):
    parts = {"../../etc/passwd": b"x", "/tmp/x": b"y", "a\\b": b"z"}
    path.write_bytes(container.dump(parts))
    before = sorted(path.parent.parent.rglob("*"))
    read = container.read(path)
    assert {name: read[name] for name in parts} == parts
    assert sorted(path.parent.parent.rglob("*")) == before


# Imports modules without the package's __init__, whose import of Keras takes seconds.
KILLED = """
import os, pathlib, random, signal, sys, time, types
package = sys.modules["keras_nern"] = types.ModuleType("keras_nern")
package.__path__ = [sys.argv[2]]
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


def test_a_killed_writer_leaves_a_whole_file(path):
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(path), str(ROOT / "keras_nern")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert child.stdout == "whole\n", child.stderr


# The start of a file whose last parts refine the others.


def refined():
    """A file assembled by hand with parts before and after the prefix's hash."""
    header = (
        HEAD + '"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},'
        '"prefix":{"dtype":"U8","shape":[32],"data_offsets":[3,35]},'
        '"residual":{"dtype":"U8","shape":[1],"data_offsets":[35,36]},' + SHA + "[36,68]}}"
    )
    header += " " * (-len(header) % 8)
    start = len(header).to_bytes(8, "little") + header.encode() + b"\x01\x02\x03"
    data = start + hashlib.sha256(start).digest() + b"\xff"
    return data + hashlib.sha256(data).digest()


def test_writes_the_hash_of_the_start_before_the_parts_that_refine_it(path):
    container.write(path, {"a": b"\x01\x02\x03", "residual": b"\xff"})
    assert path.read_bytes() == refined()
    assert container.read(path)["residual"] == b"\xff"


@pytest.mark.parametrize("cut", [None, -1, -33])
def test_reads_the_start_of_a_file_that_is_cut_off(path, cut):
    path.write_bytes(refined()[:cut])
    assert container.read_prefix(path) == {"a": b"\x01\x02\x03"}


@pytest.mark.parametrize(
    ("data", "max_bytes", "message"),
    [
        (refined()[:-34], None, "it ends before its residual begins"),
        (refined()[:-68] + bytes(3) + refined()[-65:], None, "content does not match its SHA-256"),
        (refined(), 100, r"it has \d+ bytes before its residual, over 100"),
        (assembled(HEADER, BODY), None, "it has no residual"),
    ],
)
def test_raises_for_the_start_of_a_file(path, data, max_bytes, message):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        container.read_prefix(path, max_bytes)


def test_raises_for_a_hash_of_the_start_of_another_length(path):
    header = HEAD + '"prefix":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},' + SHA + "[3,35]}}"
    path.write_bytes(assembled(header, b"\x01\x02\x03"))
    with pytest.raises(ValueError, match="its part 'prefix' does not have 32 bytes"):
        container.read(path)
