import io

import numpy as np
import pytest

from keras_nern import NeRNModel, Permutation
from keras_nern.network.blocks import Blocks
from keras_nern.permutations.orders import block_order, permutation_bits


@pytest.fixture(params=["in_filter", "cross_filter"])
def permutation(request, base):
    return Permutation.from_model(base, request.param)


def test_is_that_of_each_layer(base, permutation):
    blocks = Blocks(base)
    assert permutation.grids == tuple(blocks.grids)
    for index, order in enumerate(permutation.orders):
        expected = block_order(blocks.kernel_blocks(index), permutation.kind)
        np.testing.assert_array_equal(order, expected)
    assert permutation.bits == pytest.approx(
        sum(permutation_bits(grid, permutation.kind) for grid in permutation.grids)
    )


def test_goes_to_coordinates_and_back(permutation):
    coordinates = permutation.coordinates()
    positions = permutation.positions()
    assert Permutation.from_positions(positions, permutation.grids, permutation.kind) == permutation
    position = 0
    for layer, ((_, columns), order) in enumerate(
        zip(permutation.grids, permutation.orders, strict=True)
    ):
        for p, kernel in enumerate(order):
            row = coordinates[position + kernel]
            assert row.tolist() == [layer, p // columns, p % columns]
            assert positions[position + kernel] == p
        position += len(order)


def test_the_inverse_undoes_it(permutation):
    for order, back in zip(permutation.orders, permutation.inverse().orders, strict=True):
        np.testing.assert_array_equal(order[back], np.arange(len(order)))
    assert permutation.inverse() != permutation
    assert permutation.inverse().inverse() == permutation


def test_is_saved_whole_and_loaded(permutation, tmp_path):
    path = tmp_path / "order"
    path.write_text("an older file")
    permutation.save(path)
    assert Permutation.load(path) == permutation
    assert list(tmp_path.iterdir()) == [path]


def test_knows_how_it_was_found(base, tmp_path):
    found = Permutation.from_model(base, "in_filter", "two_opt", "cosine")
    found.save(tmp_path / "order.npz")
    loaded = Permutation.load(tmp_path / "order.npz")
    of_model = NeRNModel(base, 4, permutation=loaded).kernel_permutation()
    for one in (found, loaded, of_model):
        assert (one.method, one.metric) == ("two_opt", "cosine")
    unknown = Permutation(found.grids, found.orders, "in_filter")
    unknown.save(tmp_path / "order.npz")
    assert Permutation.load(tmp_path / "order.npz").method is None
    assert unknown == found  # the order is what counts


def test_no_permutation_is_saved_and_loaded_too(base, tmp_path):
    nothing = Permutation.from_model(base, None)
    assert nothing.bits == 0
    nothing.save(tmp_path / "order.npz")
    assert Permutation.load(tmp_path / "order.npz") == nothing


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_files_that_hold_none_are_refused(permutation, tmp_path):
    path = tmp_path / "order.npz"
    permutation.save(path)
    whole = path.read_bytes()
    orders = np.concatenate(permutation.orders)
    doubled = orders.copy()
    doubled[0] = doubled[1]
    with np.load(path) as held:
        fields = dict(held)
    for change, message in (
        (lambda: path.write_bytes(whole[: len(whole) // 2]), "not a zip file"),
        (lambda: path.write_bytes(b""), "not a zip file"),
        (lambda: path.write_text("orders"), "not a zip file"),
        (lambda: path.write_bytes(_npy(orders)), "not a zip file"),
        ({"orders": None}, "orders"),
        ({"orders": orders[1:]}, "entries for"),
        ({"orders": doubled}, "must be a permutation"),
        ({"grids": fields["grids"][0]}, "axis 1"),
        ({"kind": np.array("by name")}, "permutation must be one of"),
        ({"method": np.array("magic")}, "permutation_method must be one of"),
        ({"orders": np.array([{}], dtype=object)}, "Object arrays"),
    ):
        if callable(change):
            change()
        else:
            changed = {**fields, **change}
            np.savez(path, **{name: one for name, one in changed.items() if one is not None})
        with pytest.raises(
            ValueError,
            match=rf"a file that Permutation.save wrote. Received: .*npz' \(.*{message}",
        ):
            Permutation.load(path)


def test_damaged_files_are_refused_or_read_right(permutation, tmp_path):
    path = tmp_path / "order.npz"
    permutation.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            assert Permutation.load(path) == permutation
        except ValueError as error:
            refused += "a file that Permutation.save wrote" in str(error)
    assert refused > 100
    with pytest.raises(FileNotFoundError):
        Permutation.load(tmp_path / "nowhere.npz")


def test_a_file_may_not_unpack_to_very_much(permutation, tmp_path):
    path = tmp_path / "order.npz"
    np.savez_compressed(path, orders=np.zeros(10**8, "int8"))
    with pytest.raises(ValueError, match=r"it would take 100,000,\d+ bytes"):
        Permutation.load(path)


def test_errors_name_the_layer():
    grids = [(2, 2), (1, 2)]
    with pytest.raises(ValueError, match=r"layer 1 must be a permutation of range\(2\)"):
        Permutation(grids, [[0, 1, 2, 3], [0, 0]])
    with pytest.raises(ValueError, match=r"layer 0 must keep the blocks of each filter together"):
        Permutation(grids, [[0, 2, 1, 3], [0, 1]], "in_filter")
    with pytest.raises(ValueError, match=r"layer 1 must be range\(2\) where kind is None"):
        Permutation(grids, [[0, 1, 2, 3], [1, 0]], None)
    with pytest.raises(ValueError, match=r"layer 1 must be integers. Received: \[0.5, 1.5\]"):
        Permutation(grids, [[0, 1, 2, 3], [0.5, 1.5]])
    for bad in ([(2, 0)], [(2.5, 1)], [(1, 2, 3)], []):
        with pytest.raises(ValueError, match=r"grids of \(filters, columns\), integers"):
            Permutation(bad)
    with pytest.raises(ValueError, match=r"layer 0 must be a permutation of range\(4\)"):
        Permutation.from_positions([0, 0, 0, 0, 1, 0], grids)
    with pytest.raises(ValueError, match=r"one order for each of 2 layers. Received: 1"):
        Permutation(grids, [[0, 1, 2, 3]])


def test_unknown_names(base):
    message = "permutation must be one of .*Received: permutation='smooth'"
    with pytest.raises(ValueError, match=message):
        Permutation.from_model(base, "smooth")
    with pytest.raises(ValueError, match=r"permutation_method must be one of .*'exact'"):
        Permutation.from_model(base, method="exact")
    with pytest.raises(ValueError, match=r"metric must be one of .*Received: metric='angle'"):
        Permutation.from_model(base, metric="angle")


@pytest.mark.parametrize(("verbose", "shown"), [(1, True), (0, False), ("auto", False)])
@pytest.mark.parametrize("kind", ["cross_filter", "in_filter"])
def test_progress_bar(base, kind, verbose, shown, capsys):
    Permutation.from_model(base, kind, "two_opt", verbose=verbose)
    blocks = Blocks(base)
    paths = blocks.num_blocks
    if kind == "in_filter":
        paths += sum(filters for filters, _ in blocks.grids)
    total = 2 * paths
    output = capsys.readouterr().out
    assert (f"{total}/{total}" in output) == shown
    assert bool(output) == shown
