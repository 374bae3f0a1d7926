"""A bar for what is counted: how many of how many, something said of it, and the time left."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def counting_bar(field: str, *, hidden: bool = False, redirect_stdout: bool = True) -> Progress:
    """A bar on standard error, if that is a terminal; it is gone when it ends.

    Args:
        field: the field of a task that is said of it.
        hidden: whether it is not shown.
        redirect_stdout: whether what is printed meanwhile goes above it.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn(f"{{task.fields[{field}]}}"), TimeRemainingColumn(),
        console=console, transient=True, disable=hidden or not console.is_terminal,
        redirect_stdout=redirect_stdout, redirect_stderr=redirect_stdout,
    )  # fmt: skip
