"""Files are written whole or not at all, JSON is read with care, and names stay in their folder."""

import json
import os
import resource
import signal
import stat
from pathlib import Path

import pytest

from qgru.files import read_json, safe_name, shown, write_text, written_whole

FORMER = "what stood there before"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    path.write_text(FORMER)
    return path


def only(path: Path) -> str:
    """The content of the one file in its folder."""
    assert list(path.parent.iterdir()) == [path]
    return path.read_text()


def test_what_was_written_takes_the_place(path: Path) -> None:
    write_text(path, "1")
    assert only(path) == "1"
    with written_whole(path) as temporary:
        temporary.write_text("2")
        assert path.read_text() == "1"
    assert only(path) == "2"


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_what_was_there(path: Path, kind: type[BaseException]) -> None:
    with pytest.raises(kind), written_whole(path) as temporary:
        temporary.write_text("half")
        raise kind
    assert only(path) == FORMER


def test_a_block_that_writes_nothing_leaves_what_was_there(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="file.txt'$"), written_whole(path):
        pass
    assert only(path) == FORMER


def test_a_full_disk_leaves_what_was_there(path: Path) -> None:
    """A file may not grow past 4096 bytes here; the write fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(OSError, match="too large: '.*file.txt'$"):
            write_text(path, "x" * 10000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert only(path) == FORMER


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no" / "folder" / "file.txt"
    with pytest.raises(FileNotFoundError) as error:
        write_text(path, "")
    assert error.value.filename == str(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_follow_the_umask(path: Path, mask: int) -> None:
    former = os.umask(mask)
    try:
        write_text(path, "")
    finally:
        os.umask(former)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_link_stays_one(path: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "link"
    link.symlink_to(path)
    write_text(link, "1")
    assert link.is_symlink() and path.read_text() == only(link) == "1"


def test_a_pipe_is_written_to_and_a_folder_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "1")
    assert os.read(reader, 9) == b"1" and stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "")
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize(
    "value", [{}, [], 3, -1.5, None, True, "x", {"a": {"b": [1, 2.5, {"a": 1}]}}, -(2**63), 2**64 - 1]
)
def test_json_is_read(value: object, path: Path) -> None:
    write_text(path, json.dumps(value))
    assert read_json(path) == value


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ('{"a": 1} {}', "Extra data"),
        ('{"b": {"a": 1, "a": 1}}', "the key 'a' stands twice"),
        ("9" * 5000, "the integer '999.* out of range"),
        ('{"n": ' + "9" * 21 + "}", "out of range"),
        ("1e999", "the number '1e999' is out of range"),
        ("[-1e400]", "the number '-1e400' is out of range"),
        ("NaN", "the number 'NaN' is out of range"),
        ("-Infinity", "the number '-Infinity' is out of range"),
        ('{"' + "k" * 10000 + '": 1, "' + "k" * 10000 + '": 1}', "stands twice"),
    ],
)
def test_what_is_not_json_is_named_briefly(content: str, named: str, path: Path) -> None:
    path.write_text(content)
    with pytest.raises(ValueError, match=f"file.txt: .*{named}") as error:
        read_json(path)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deeply_nested_json_is_named(opening: str, path: Path) -> None:
    path.write_text(opening * 200_000)
    with pytest.raises(ValueError, match="file.txt: is nested too deeply"):
        read_json(path)


def test_bytes_that_are_no_text_are_named(path: Path) -> None:
    path.write_bytes(b"\x80\xff{}")
    with pytest.raises(ValueError, match="file.txt: .*utf-8"):
        read_json(path)


def test_no_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_json(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"{tmp_path}: is a folder"):
        read_json(tmp_path)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        ("a\nb", r"'a\nb'"),
        ("x" * 78, f"'{'x' * 78}'"),
        ("x" * 79, f"'{'x' * 79}... (81 characters)"),
        (10**5000, "<int too large to show>"),
        (nested(100_000), "<list too large to show>"),
    ],
    ids=("int", "str", "longest", "cut", "digits", "depth"),
)
def test_a_value_is_shown_in_a_line(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("encoder.gru_1", "encoder.gru_1"),
        ("/tmp/evil", "_tmp_evil"),
        ("../../evil", "_.._evil"),
        ("..", "_"),
        ("", "_"),
        (".hidden", "hidden"),
        ("a\\b\0c\nd e", "a_b_c_d_e"),
        ("größe", "größe"),
    ],
)
def test_a_name_stays_in_its_folder(name: str, safe: str, tmp_path: Path) -> None:
    assert safe_name(name) == safe
    assert (tmp_path / f"{safe}.onnx").resolve().parent == tmp_path
