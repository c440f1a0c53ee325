"""Progress: what is being waited for, shown on a terminal."""

import contextlib
from collections.abc import Callable, Iterator

from emu86.cli.terminal import can_move


@contextlib.contextmanager
def progress(text: str) -> Iterator[Callable[[str | None], None]]:
    """Show what is waited for, on a terminal; yield what changes or (None) ends it."""
    if not can_move(2):
        yield lambda _text: None
        return
    from rich.console import Console as Terminal  # noqa: PLC0415 - rich is slow to import
    from rich.progress import (  # noqa: PLC0415
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    with Progress(
        # Its default has characters that not every terminal shows.
        SpinnerColumn("line"),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=Terminal(stderr=True),
        transient=True,
        refresh_per_second=5,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bar:
        task = bar.add_task(text)

        def change(text: str | None) -> None:
            if text is None:
                if bar.live.is_started:
                    bar.stop()
            else:
                bar.update(task, description=text)

        yield change
