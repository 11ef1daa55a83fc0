import re
import sys

import pytest

from keras_nern import demo


def test_prints_a_table_and_saves_a_picture(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="install keras-nern[demo]")
    results = demo.run(
        hidden_size=8,
        epochs=1,
        reconstruction_steps=2,
        distillation_epochs=1,
        output=tmp_path / "new" / "folder",
    )
    original, rebuilt = results["original"], results["rebuilt"]
    assert original["parameters"] == 273_754  # ResNet20, option B, with one input channel
    # Dense(240, 8), 3 x Dense(8, 8), Dense(8, 9), and the base's BN and Dense weights
    assert rebuilt["parameters"] == 1928 + 3 * 72 + 81 + 3786
    assert original["bytes"] == 4 * 273_754
    # weights have 4 bytes each, and the permutation adds its own
    assert 4 * rebuilt["parameters"] < rebuilt["bytes"] < original["bytes"]
    shares = [original["accuracy"], rebuilt["accuracy"], rebuilt["agreement"]]
    assert all(0 <= share <= 1 for share in shares)

    printed = capsys.readouterr().out
    rows = [re.split("  +", line) for line in printed.splitlines()]
    assert ["parameters", "273,754", f"{rebuilt['parameters']:,}"] in rows
    assert ["agreement with the original, %", f"{100 * rebuilt['agreement']:.1f}"] in rows
    picture = tmp_path / "new" / "folder" / "kernels.png"
    assert results["picture"] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"The largest kernels of layer2_1_conv1, original and predicted: {picture}" in printed


def test_raises_before_any_work_without_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"sklearn is not installed: run .*keras-nern\[demo\]"):
        demo.run(output=tmp_path / "none")
    assert not (tmp_path / "none").exists()
