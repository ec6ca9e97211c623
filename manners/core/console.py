"""What a person at the terminal sees while work goes on. All of it goes to stderr; stdout is for results."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True, highlight=False, markup=False, emoji=False)
"""Where progress, plans and warnings go. What is printed is printed as it stands: paths and chat templates hold `[/INST]` and `:x:`."""


class _Note(ProgressColumn):
    """What a loop has to say of its last step, if anything."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("note", "")))


def progress() -> Progress:
    """A progress bar with what remains; vanishes when done. On something that is no terminal it prints nothing."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        _Note(),
        console=console,
        transient=True,
    )
