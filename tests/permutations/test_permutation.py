import io

import numpy as np
import pytest

from keras_nern import NeRNModel, Permutation
from keras_nern.network.blocks import Blocks
from keras_nern.permutations.orders import block_order, permutation_bits

GRIDS = ((4, 1), (6, 4), (3, 5))


@pytest.fixture(scope="module", params=["in_filter", "cross_filter"])
def permutation(request):
    rng = np.random.default_rng(0)
    orders = [block_order(rng.normal(size=(*grid, 9)), request.param) for grid in GRIDS]
    return Permutation(GRIDS, orders, request.param)


@pytest.mark.parametrize("kind", ["in_filter", "cross_filter"])
def test_from_model_orders_each_layer(base, kind):
    permutation = Permutation.from_model(base, kind)
    blocks = Blocks(base)
    assert permutation.grids == tuple(blocks.grids)
    for index, order in enumerate(permutation.orders):
        np.testing.assert_array_equal(order, block_order(blocks.kernel_blocks(index), kind))
    bits = sum(permutation_bits(grid, kind) for grid in blocks.grids)
    assert permutation.bits == pytest.approx(bits)


def test_coordinates_and_positions_follow_the_orders(permutation):
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


def test_saves_and_loads(permutation, tmp_path):
    path = tmp_path / "order"
    path.write_text("an older file")
    permutation.save(path)
    assert Permutation.load(path) == permutation
    assert list(tmp_path.iterdir()) == [path]


def test_keeps_the_method_and_metric(base, tmp_path):
    found = Permutation.from_model(base, "in_filter", "two_opt", "cosine")
    found.save(tmp_path / "order.npz")
    loaded = Permutation.load(tmp_path / "order.npz")
    of_model = NeRNModel(base, 4, permutation=loaded).kernel_permutation()
    for one in (found, loaded, of_model):
        assert (one.method, one.metric) == ("two_opt", "cosine")
    unknown = Permutation(found.grids, found.orders, "in_filter")
    unknown.save(tmp_path / "order.npz")
    assert Permutation.load(tmp_path / "order.npz").method is None
    assert unknown == found  # equality compares the orders


def test_original_orders_take_no_bits_and_can_be_saved(tmp_path):
    original = Permutation(GRIDS, None, None)
    assert original.bits == 0
    original.save(tmp_path / "order.npz")
    assert Permutation.load(tmp_path / "order.npz") == original


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_load_raises_for_other_files(permutation, tmp_path):
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
        ({"kind": np.array("by name")}, "kind must be one of"),
        ({"method": np.array("magic")}, "method must be one of"),
        ({"orders": np.array([{}], dtype=object)}, "Object arrays"),
    ):
        if callable(change):
            change()
        else:
            changed = {**fields, **change}
            np.savez(path, **{name: one for name, one in changed.items() if one is not None})
        with pytest.raises(
            ValueError,
            match=rf"a file that was written by Permutation.save. Received: .*npz' \(.*{message}",
        ):
            Permutation.load(path)


def test_load_raises_for_damaged_files_or_reads_them_correctly(permutation, tmp_path):
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
            refused += "a file that was written by Permutation.save" in str(error)
    assert refused > 100
    with pytest.raises(FileNotFoundError):
        Permutation.load(tmp_path / "nowhere.npz")


def test_load_raises_for_files_that_unpack_to_many_times_their_size(permutation, tmp_path):
    path = tmp_path / "order.npz"
    np.savez_compressed(path, orders=np.zeros(10**8, "int8"))
    with pytest.raises(ValueError, match=r"it would unpack to 100,000,\d+ bytes"):
        Permutation.load(path)


def test_errors_name_the_layer():
    grids = [(2, 2), (1, 2)]
    with pytest.raises(ValueError, match=r"layer 1 must be a permutation of range\(2\)"):
        Permutation(grids, [[0, 1, 2, 3], [0, 0]])
    with pytest.raises(ValueError, match=r"layer 0 must keep the blocks of each filter together"):
        Permutation(grids, [[0, 2, 1, 3], [0, 1]], "in_filter")
    with pytest.raises(ValueError, match=r"layer 1 must be range\(2\) if kind is None"):
        Permutation(grids, [[0, 1, 2, 3], [1, 0]], None)
    with pytest.raises(ValueError, match=r"layer 1 must be integers. Received: array\(\[0.5"):
        Permutation(grids, [[0, 1, 2, 3], [0.5, 1.5]])
    for bad in ([(2, 0)], [(2.5, 1)], [(1, 2, 3)], []):
        with pytest.raises(ValueError, match=r"at least one pair \(filters, columns\)"):
            Permutation(bad)
    with pytest.raises(ValueError, match=r"layer 0 must be a permutation of range\(4\)"):
        Permutation.from_positions([0, 0, 0, 0, 1, 0], grids)
    with pytest.raises(ValueError, match=r"orders must be one .* each of 2 layers. Received: \[\["):
        Permutation(grids, [[0, 1, 2, 3]])


def test_raises_for_an_unknown_kind_method_or_metric(base):
    message = "kind must be one of .*Received: kind='smooth'"
    with pytest.raises(ValueError, match=message):
        Permutation.from_model(base, "smooth")
    with pytest.raises(ValueError, match=r"method must be one of .*'exact'"):
        Permutation.from_model(base, method="exact")
    with pytest.raises(ValueError, match=r"metric must be one of .*Received: metric='angle'"):
        Permutation.from_model(base, metric="angle")


@pytest.mark.parametrize("kind", ["cross_filter", "in_filter"])
def test_verbose_shows_a_progress_bar(base, kind, capsys):
    blocks = Blocks(base)
    vectors = blocks.num_blocks
    if kind == "in_filter":
        vectors += sum(filters for filters, _ in blocks.grids)
    total = 2 * vectors  # greedy and two_opt
    for verbose, shown in ((1, True), (0, False), ("auto", False)):
        Permutation.from_model(blocks, kind, "two_opt", verbose=verbose)
        output = capsys.readouterr().out
        assert (f"{total}/{total}" in output) == shown
        assert bool(output) == shown
