import os

import pytest

from keras_nern.utils.files import atomic_write, writable


def test_takes_the_place_of_the_file_when_all_is_written(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_leaves_the_file_where_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with atomic_write(path) as partial:
            partial.write_text("ne")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_text("old")
    link.symlink_to(path)
    with atomic_write(link) as partial:
        partial.write_text("new")
    assert link.is_symlink()
    assert path.read_text() == "new"


@pytest.mark.parametrize(("path", "applies"), [("gs://bucket/file", True), ("file", False)])
def test_other_places_are_written_to_as_they_stand(path, applies):
    with atomic_write(path, applies) as given:
        assert given == path


def test_writers_are_not_in_each_others_way(tmp_path):
    path = tmp_path / "file"
    stranger = tmp_path / "partial.file"
    stranger.write_text("not ours")
    with atomic_write(path) as slow, open(slow, "w") as file:
        file.write("slow, ")
        with atomic_write(path) as fast:
            fast.write_text("fast")
        assert path.read_text() == "fast"
        file.write("but whole")
    assert path.read_text() == "slow, but whole"
    assert sorted(tmp_path.iterdir()) == [path, stranger]
    assert stranger.read_text() == "not ours"


def test_nothing_but_files_is_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match=r"not of a device or pipe: '.*pipe'"):
        writable(pipe)
    with pytest.raises(FileExistsError), atomic_write(pipe):
        pass
    assert pipe.is_fifo()
    with pytest.raises(IsADirectoryError, match=r"Expected the path of a file: "):
        writable(tmp_path)
    with pytest.raises(IsADirectoryError):
        writable("")  # the current folder
    with pytest.raises(FileNotFoundError, match=r"in a folder that exists: '.*there/file'"):
        writable(tmp_path / "there" / "file")
    assert list(tmp_path.iterdir()) == [pipe]
