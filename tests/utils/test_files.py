import os

import pytest

from keras_nern.utils.files import atomic_write, check_creatable, check_writable


def test_replaces_the_file_when_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_keeps_the_file_if_writing_fails(tmp_path):
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


def test_writes_to_the_target_of_a_link(tmp_path):
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_text("old")
    link.symlink_to(path)
    with atomic_write(link) as partial:
        partial.write_text("new")
    assert link.is_symlink()
    assert path.read_text() == "new"


@pytest.mark.parametrize(("path", "applies"), [("gs://bucket/file", True), ("file", False)])
def test_writes_directly_to_addresses_and_on_request(path, applies):
    with atomic_write(path, applies) as given:
        assert given == path


def test_two_writers_use_different_temporary_files(tmp_path):
    path = tmp_path / "file.npz"
    other = tmp_path / "partial.file.npz"
    other.write_text("of someone else")
    with atomic_write(path) as slow, open(slow, "w") as file:
        assert slow.suffix == ".npz"
        file.write("slow, ")
        with atomic_write(path) as fast:
            fast.write_text("fast")
        assert path.read_text() == "fast"
        file.write("but whole")
    assert path.read_text() == "slow, but whole"
    assert sorted(tmp_path.iterdir()) == [path, other]
    assert other.read_text() == "of someone else"


def test_raises_for_a_path_that_is_not_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match=r"not of a device or pipe: '.*pipe'"):
        check_writable(pipe)
    with pytest.raises(FileExistsError), atomic_write(pipe):
        pass
    assert pipe.is_fifo()
    with pytest.raises(IsADirectoryError, match=r"Expected the path of a file: "):
        check_writable(tmp_path)
    with pytest.raises(IsADirectoryError):
        check_writable("")  # the current folder
    with pytest.raises(FileNotFoundError, match=r"in a folder that exists: '.*there/file'"):
        check_writable(tmp_path / "there" / "file")
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_path_in_a_folder_that_can_be_made_is_creatable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "new" / "deep" / "file", tmp_path / "file", "gs://bucket/file"):
        check_creatable(path, is_folder=False)
    for path in (tmp_path, tmp_path / "new" / "deep", "gs://bucket"):
        check_creatable(path, is_folder=True)
    for path, is_folder in (
        (tmp_path / "file" / "a", False),
        (tmp_path / "file" / "a", True),
        (tmp_path / "file", True),
    ):
        with pytest.raises(NotADirectoryError, match="file' is no folder"):
            check_creatable(path, is_folder)
    with pytest.raises(IsADirectoryError, match="Expected the path of a file"):
        check_creatable(tmp_path, is_folder=False)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="Expected a folder that is writable"):
        check_creatable(tmp_path / "new", is_folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
