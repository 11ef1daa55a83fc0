import hashlib
import json

import peaks
import pytest
from artifact_files import CONFIG, LAYER, LOCAL_PARTS, PARTS, assembled, changed, with_config

from keras_nern.artifact.info import inspect


def test_describes_a_file_assembled_by_hand(path):
    path.write_bytes(assembled(PARTS))
    info = inspect(path)
    sizes = {name: len(part) for name, part in PARTS.items()}
    assert info.file_bytes == path.stat().st_size
    assert info.format_version == "1"
    assert info.versions == {"by": "hand"}
    assert info.name == "by_hand"
    assert (info.precision, info.kept_precision) == ("float32", "float32")
    assert info.permutation == "cross_filter"
    assert info.blocks == CONFIG["blocks"]
    assert info.predictor == {"hidden_size": 2, "num_layers": 2, "block_length": 4}
    assert info.layers == [("c", (2, 1, 1, 2))]
    assert info.represented_weights == 4
    assert info.part_bytes == {
        "predictor": sum(sizes[f"predictor.{one}"] for one in ("biases", "kernels", "scales")),
        "permutation": 4,
        "residual": 0,
        "kept": sizes["kept.float32"],
        "config": sizes["config"],
        "container": path.stat().st_size - sum(sizes.values()),
    }
    assert info.sha256 == hashlib.sha256(path.read_bytes()[:-32]).hexdigest()
    assert info.base_sha256 == "c0ffee"
    as_json = json.loads(json.dumps(info.to_dict()))
    assert as_json["layers"] == [{"name": "c", "shape": [2, 1, 1, 2]}]
    assert as_json["represented_weights"] == 4


def test_prints_as_tables(path):
    path.write_bytes(assembled(PARTS))
    values, kernels = str(inspect(path)).split("\n\n")
    rows = [line.split(maxsplit=1) for line in values.splitlines()]
    assert ["classifier", "by_hand"] in rows
    assert ["format", "1 (by hand)"] in rows
    assert ["predictor", "hidden_size=2, num_layers=2, block_length=4, precision=float32"] in rows
    assert ["represented", "1 kernels, 4 weights"] in rows
    assert values.endswith(f" {path.stat().st_size:,}")
    assert kernels.splitlines()[-1].split() == ["c", "2x1x1x2"]


def test_describes_local_predictors(path):
    path.write_bytes(assembled(LOCAL_PARTS))
    info = inspect(path)
    assert info.to_dict()["predictor"]["run_lengths"] == [1, 1]
    shape = "experts=2, hidden_size=2, num_layers=2, block_length=4"
    assert f"{shape}, precision=float32" in str(info)


def test_control_characters_are_escaped(path):
    path.write_bytes(with_config(changed(("architecture", "config", "name", "x\x1b[31mred"))))
    info = inspect(path)
    assert info.name == "x\x1b[31mred"
    assert str(info).splitlines()[0].split() == ["classifier", r"'x\x1b[31mred'"]


def test_describes_a_file_without_building_a_model(path):
    unknown = {**LAYER, "module": "mine", "class_name": "Unknown", "config": {}}
    path.write_bytes(with_config(changed(("architecture", "config", "layers", 1, unknown))))
    assert inspect(path).name == "by_hand"


def test_takes_memory_for_the_config_only(path):
    path.write_bytes(assembled({**PARTS, "kept.float64": bytes(2**26)}))
    with peaks.grows_by_at_most(16):
        info = inspect(path)
    assert info.part_bytes["kept"] == 2**26 + len(PARTS["kept.float32"])


def test_raises_for_a_large_config_before_reading_it(path):
    path.write_bytes(assembled({**PARTS, "config": bytes(2**26)}))
    with (
        peaks.grows_by_at_most(16),
        pytest.raises(ValueError, match=r"classifier\.nern' \(its config has 67,108,864 bytes\)"),
    ):
        inspect(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (assembled({**PARTS, "config": b""}), "zstandard cannot read it"),
        (with_config({}), "its config has the invalid field versions=None"),
        (assembled(PARTS)[:-1], "bytes, but its header describes"),
        (assembled(PARTS)[:-1] + b"x", "it is damaged"),
    ],
    ids=["no config", "no fields", "truncated", "damaged"],
)
def test_raises_for_an_invalid_file(data, message, path):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"Received: '.*classifier\.nern' \(.*{message}"):
        inspect(path)
