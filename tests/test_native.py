"""Compiled where that can be; elsewhere nothing fails."""

from __future__ import annotations

import shutil

import pytest
import torch

from regard.models import native


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A home with nothing in it, and nothing loaded yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    native._library.cache_clear()
    native._function.cache_clear()


def kept(home) -> list:
    return sorted((home / ".cache" / "regard" / "kernels").glob("*"))


def test_it_is_compiled_once_and_found_again(fresh, monkeypatch):
    if not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("There is no C++ compiler.")
    assert native.native("look", torch.zeros(1)) is not None
    (file,) = kept(fresh)
    made = file.stat().st_mtime_ns
    forget()
    monkeypatch.setattr(native.subprocess, "run", None)  # a compilation would fail
    assert native.native("look", torch.zeros(1)) is not None
    assert [f.stat().st_mtime_ns for f in kept(fresh)] == [made]


@pytest.mark.parametrize("compiler", ["", "no-such-compiler", "false", "true"])
def test_without_a_compiler_that_works_there_is_none(fresh, monkeypatch, compiler):
    monkeypatch.setenv("REGARD_COMPILER", compiler)
    assert native.native("look", torch.zeros(1)) is None
    assert kept(fresh) == []


def test_a_home_that_cannot_be_written_to_is_no_reason_to_fail(fresh):
    (fresh / ".cache").write_text("a file")
    found = native.native("look", torch.zeros(1))
    assert (found is None) == (not (shutil.which("c++") or shutil.which("g++")))


def test_other_precisions_and_devices_have_none():
    assert native.native("look", torch.zeros(1, dtype=torch.float64)) is None
    assert native.native("look", torch.zeros(1, device="meta")) is None
