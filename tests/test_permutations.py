import io
import math

import numpy as np
import pytest
from slow_paths import slow_greedy

from keras_nern import NeRNModel, Permutation, permutations, tours
from keras_nern.blocks import Blocks
from keras_nern.nearest_neighbours import METRICS

SHAPES = [(3, 3, 5, 7), (1, 1, 4, 3), (3, 1, 1, 6), (3, 3, 6, 1)]


def _slow_kernels(kernel):
    _, _, cin, cout = kernel.shape
    return [[kernel[:, :, c, f].ravel() for c in range(cin)] for f in range(cout)]


def _grid(kernel):
    return np.array([[k for k in filter_] for filter_ in _slow_kernels(kernel)])


def _slow_cross_filter(kernel, metric):
    return slow_greedy([k for filter_ in _slow_kernels(kernel) for k in filter_], metric)


def _slow_in_filter(kernel, metric):
    filters = _slow_kernels(kernel)
    channels = [slow_greedy(filter_, metric) for filter_ in filters]
    ordered = [
        np.concatenate([filter_[c] for c in order])
        for filter_, order in zip(filters, channels, strict=True)
    ]
    return [f * len(filters[0]) + c for f in slow_greedy(ordered, metric) for c in channels[f]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("kind", "oracle"), [("cross_filter", _slow_cross_filter), ("in_filter", _slow_in_filter)]
)
@pytest.mark.parametrize("metric", METRICS)
def test_orders_match_the_definition(kind, oracle, shape, metric):
    kernel = np.random.default_rng(0).normal(size=shape)
    if shape[:2] == (1, 1):  # scalars have cosine 1 or -1: ties go to the lowest index
        kernel = np.sign(kernel)
    order = permutations.block_order(_grid(kernel), kind, metric=metric)
    np.testing.assert_array_equal(order, oracle(kernel, metric))


@pytest.mark.parametrize("method", ["greedy", "two_opt", "fast_tsp"])
def test_in_filter_keeps_filters_together(method):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 5, 7))
    order = permutations.block_order(_grid(kernel), "in_filter", method)
    filters = order.reshape(7, 5) // 5
    assert (filters == filters[:, :1]).all()
    assert sorted(filters[:, 0]) == list(range(7))


def test_inverse_of_an_order():
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(order[permutations.invert(order)], np.arange(20))
    np.testing.assert_array_equal(permutations.invert(order)[order], np.arange(20))


def test_bits_count_the_permutations():
    shape = (2, 3)
    assert permutations.permutation_bits(shape) == 0
    assert permutations.permutation_bits(shape, "cross_filter") == pytest.approx(math.log2(720))
    # 3! orders in each of 2 filters, and 2! of the filters
    assert permutations.permutation_bits(shape, "in_filter") == pytest.approx(math.log2(72))


@pytest.fixture(params=["in_filter", "cross_filter"])
def permutation(request, base):
    return Permutation.of(base, request.param)


def test_is_that_of_each_layer(base, permutation):
    blocks = Blocks(base)
    assert permutation.grids == tuple(blocks.grids)
    for index, order in enumerate(permutation.orders):
        expected = permutations.block_order(blocks.kernel_blocks(index), permutation.kind)
        np.testing.assert_array_equal(order, expected)
    assert permutation.bits == pytest.approx(
        sum(permutations.permutation_bits(grid, permutation.kind) for grid in permutation.grids)
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
    found = Permutation.of(base, "in_filter", "two_opt", "cosine")
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
    nothing = Permutation.of(base, None)
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
        permutations.block_order(np.zeros((1, 1, 9)), "smooth")
    with pytest.raises(ValueError, match=message):
        permutations.permutation_bits((1, 1), "smooth")
    with pytest.raises(ValueError, match=message):
        Permutation.of(base, "smooth")
    with pytest.raises(ValueError, match=r"permutation_method must be one of .*'exact'"):
        Permutation.of(base, method="exact")
    with pytest.raises(ValueError, match=r"metric must be one of .*Received: metric='angle'"):
        permutations.block_order(np.zeros((1, 1, 9)), None, metric="angle")


@pytest.mark.parametrize("method", tours.METHODS[1:])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_no_path_is_longer_than_the_greedy_one(method, metric):
    if method == "fast_tsp":
        pytest.importorskip("fast_tsp", reason="install keras-nern[tsp]")
    for seed in range(4 if method == "two_opt" else 1):
        blocks = np.random.default_rng(seed).normal(size=(8, 8, 9))
        flat = blocks.reshape(64, 9)
        orders = [
            permutations.block_order(blocks, "cross_filter", one, metric)
            for one in ("greedy", method)
        ]
        lengths = [tours.path_length(flat, order, metric) for order in orders]
        assert lengths[1] < lengths[0]
        orders = [
            permutations.block_order(blocks, "in_filter", one, metric) for one in ("greedy", method)
        ]
        for number in range(8):
            found = []
            for order in orders:
                rows = order.reshape(8, 8)
                row = rows[rows[:, 0] // 8 == number][0]
                found.append(tours.path_length(flat, row, metric))
            assert found[1] <= found[0] + 1e-6


@pytest.mark.parametrize(("verbose", "shown"), [(1, True), (0, False), ("auto", False)])
@pytest.mark.parametrize("kind", ["cross_filter", "in_filter"])
def test_progress_bar(base, kind, verbose, shown, capsys):
    Permutation.of(base, kind, "two_opt", verbose=verbose)
    blocks = Blocks(base)
    paths = blocks.num_blocks
    if kind == "in_filter":
        paths += sum(filters for filters, _ in blocks.grids)
    total = 2 * paths
    output = capsys.readouterr().out
    assert (f"{total}/{total}" in output) == shown
    assert bool(output) == shown
