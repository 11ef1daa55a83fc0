import pytest

from keras_nern import demo


def test_runs_through_and_prints_its_table(tmp_path, capsys):
    pytest.importorskip("sklearn", reason="install keras-nern[demo]")
    quick = ["--epochs=1", "--reconstruction-steps=2", "--distillation-epochs=1"]
    demo.main([*quick, "--hidden-size=8", f"--output={tmp_path / 'out'}"])
    printed = capsys.readouterr().out
    rows = {line[:34].strip(): line[34:].split() for line in printed.splitlines()}
    original, rebuilt = rows["parameters"]
    assert original == "273,754"  # ResNet20, option B, on one input channel
    # Dense(240, 8), 3 x Dense(8, 8), Dense(8, 9) and the kept BN and Dense weights
    assert rebuilt == f"{1928 + 3 * 72 + 81 + 3786:,}"
    accuracies = rows["accuracy on 500 test images, %"]
    assert all(0 <= float(value) <= 100 for value in accuracies)
    assert 0 <= float(rows["agreement with the original, %"][0]) <= 100
    assert int(rows["bytes, permutations included"][0].replace(",", "")) == 4 * 273754
    assert len(rows["seconds to train, to represent"]) == 2
    picture = tmp_path / "out" / "kernels.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "layer2_1_conv1" in printed
