"""Compiled kernels on disk: the user's own, whole, of exactly the sources they were compiled from."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qgru.ops.cuda import cache, compile
from qgru.ops.cuda.macros import Source

MACROS = (("WARPS", 4),)
CODE = b"machine code" * 1000


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "kernel.cu").write_text('#include "first.cuh"\n')
    (tmp_path / "first.cuh").write_text('#pragma once\n#include "second.cuh"\n')
    (tmp_path / "second.cuh").write_text("#pragma once\n")
    return Source(tmp_path / "kernel.cu", ("WARPS",))


@pytest.fixture
def compile_once(source: Source, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[bytes, int]]:
    """What a new process does: the code it gets, and how often it compiled."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="a key holds NVRTC's version: cuda-core is not installed")
    calls: list[tuple] = []
    monkeypatch.setattr(compile, "compiled", lambda *arguments: calls.append(arguments) or CODE)

    def run() -> tuple[bytes, int]:
        calls.clear()
        compile.cubin.cache_clear()
        return compile.cubin(source, MACROS, "sm_90"), len(calls)

    return run


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


def test_a_second_process_reads_what_the_first_compiled(home: Path, compile_once: Callable) -> None:
    assert [compile_once(), compile_once()] == [(CODE, 1), (CODE, 0)]
    assert len(files(home)) == 1


def test_the_folder_is_the_users_alone(home: Path, compile_once: Callable) -> None:
    before = os.umask(0)
    try:
        compile_once()
    finally:
        os.umask(before)
    assert [(home / part).stat().st_mode & 0o777 for part in ("qgru", "qgru/cuda")] == [0o700, 0o700]


@pytest.mark.parametrize("content", [b"", b"\x7fELF", bytes(32) + CODE], ids=["empty", "short", "foreign"])
def test_what_is_not_whole_is_compiled_again_and_replaced(content: bytes, home: Path, compile_once: Callable) -> None:
    compile_once()
    (file,) = files(home)
    file.write_bytes(content)
    assert [compile_once(), compile_once()] == [(CODE, 1), (CODE, 0)]
    assert files(home) == [file]


def test_a_changed_bit_is_seen(home: Path, compile_once: Callable) -> None:
    compile_once()
    (file,) = files(home)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert compile_once() == (CODE, 1)


def test_a_file_under_another_kernels_name_is_not_taken(home: Path) -> None:
    cache.write("one", "key of one", CODE)
    folder = home / "qgru" / "cuda"
    shutil.copy(folder / "one", folder / "two")
    assert cache.read("one", "key of one") == CODE and cache.read("two", "key of two") is None


@pytest.mark.parametrize("header", ["first.cuh", "second.cuh"])
def test_every_header_is_part_of_the_key(header: str, home: Path, source: Source, compile_once: Callable) -> None:
    compile_once()
    source.path.with_name(header).write_text('#pragma once\n#include "second.cuh"\n// changed\n')
    assert compile_once() == (CODE, 1) and len(files(home)) == 2


@pytest.mark.parametrize("part", ["qgru", "qgru/cuda"])
def test_a_link_in_the_folders_place_is_not_followed(part: str, home: Path, compile_once: Callable) -> None:
    elsewhere = home.parent / "elsewhere"
    (elsewhere / "cuda").mkdir(parents=True)
    (home / part).parent.mkdir(parents=True, mode=0o700)
    (home / part).symlink_to(elsewhere)
    assert [compile_once(), compile_once()] == [(CODE, 1), (CODE, 1)]
    assert files(elsewhere) == []


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
@pytest.mark.parametrize("part", ["qgru", "qgru/cuda"])
def test_a_folder_that_others_write_to_is_not_used(mode: int, part: str, home: Path, compile_once: Callable) -> None:
    compile_once()
    (home / part).chmod(mode)
    assert compile_once() == (CODE, 1)


def test_a_folder_of_another_user_is_not_used(
    home: Path, compile_once: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_once()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert compile_once() == (CODE, 1)


def test_a_link_in_the_files_place_is_not_followed(home: Path, compile_once: Callable) -> None:
    compile_once()
    (file,) = files(home)
    target = home / "elsewhere"
    file.rename(target)
    file.symlink_to(target)
    assert [compile_once(), compile_once()] == [(CODE, 1), (CODE, 0)]
    assert not file.is_symlink()


def test_a_full_disk_leaves_nothing_behind(home: Path, compile_once: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    assert compile_once() == (CODE, 1) and files(home) == []


def test_a_folder_that_cannot_be_made_costs_a_compilation(home: Path, compile_once: Callable) -> None:
    home.write_text("a file")
    assert compile_once() == (CODE, 1)
