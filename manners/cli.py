"""The command line, made from the table in `commands`.

Each key of a command's settings is an option (`--learning-rate 1e-5`), may stand in the file given with `--config`, and may be
written as `learning_rate=1e-5`. Only the module of the command that was asked for is imported, so `manners --help` answers at once.
"""

import contextlib
import inspect
import json
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

import manners
from manners.commands import COMMANDS, GROUPS, Command
from manners.core.config import load_settings, with_bare_words
from manners.core.console import console
from manners.core.errors import MannersError, Paused
from manners.core.memory import restart_without_small_cache


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `manners` command. Leaves with 0, 1 (Manners failed), 2 (bad input), 3 (waits for people) or 130 (interrupted)."""
    if arguments is None:
        restart_without_small_cache()
    arguments = [_dashed(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        _app(arguments)(arguments, standalone_mode=True)
    except Paused as pause:
        console.print(str(pause), soft_wrap=True)
        sys.exit(pause.exit_code)
    except MannersError as error:
        console.print("error: ", style="bold red", end="")
        console.print(str(error), soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.print("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception:
        traceback.print_exc()
        console.print("This is a fault in Manners, not in your input. Please report it with the lines above.")
        sys.exit(1)


def _dashed(word: str) -> str:
    """`--learning_rate` as `--learning-rate`: both are understood, one is shown."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _app(arguments: list[str]) -> typer.Typer:
    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=manners.__doc__)
    words = [a for a in arguments if not a.startswith("-")]
    asked = next((name for name in COMMANDS if name.split() == words[: len(name.split())]), None)

    @app.callback(invoke_without_command=True)
    def version(show: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
        if show:
            print(manners.__version__)
            raise typer.Exit

    homes = {group: typer.Typer(no_args_is_help=True, help=summary) for group, summary in GROUPS.items()}
    for name, row in COMMANDS.items():
        group, _, word = name.rpartition(" ")
        home = homes[group] if group else app
        home.command(word, help=row.summary)(_callback(row) if name == asked else (lambda: None))
    for group, home in homes.items():
        app.add_typer(home, name=group)
    return app


def _callback(row: Command) -> Callable[..., None]:
    """The function typer calls: its signature is made from the settings class, every key an option."""
    kind, function = row.load()

    def run(config: str | None = None, as_json: bool = False, overrides: list[str] | None = None, **options: str | None) -> None:
        first = options.get(kind.positional) if kind.plural else None
        if first is not None and any("=" not in word for word in overrides or ()):
            options[kind.positional] = None  # `--models A B`: B comes as a bare word
            overrides = [first, *(overrides or ())]
        words = [f"{key}={value}" for key, value in options.items() if value is not None]
        settings = load_settings(kind, config, [*words, *with_bare_words(kind, overrides or [])])
        # With --json stdout is for the one line of JSON; what a command prints for people goes where its progress goes.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            result = function(settings)
        if as_json:
            print(json.dumps(result, ensure_ascii=False, default=str))

    bare = f"{kind.positional.upper().removesuffix('S')} ..." if kind.plural else kind.positional.upper()
    shown = f"{bare} KEY=VALUE".strip()
    parameters = [
        _parameter("overrides", list[str] | None, typer.Argument(help="Settings as key=value words.", metavar=shown)),
        _parameter("config", str | None, typer.Option("--config", help="YAML file of settings.")),
        _parameter("as_json", bool, typer.Option("--json", help="End with one line of JSON on stdout, for programs."), False),
    ]
    for key, field in kind.model_fields.items():
        if key == kind.rest:
            continue
        name = "--" + key.replace("_", "-")
        default = "needed" if field.is_required() else "" if field.default is None else f"default {field.default}"
        text = " ".join(filter(None, [(field.description or "").replace("\n", " "), default and f"({default})"]))
        choices = "|".join(map(str, get_args(field.annotation))) if get_origin(field.annotation) is Literal else "VALUE"
        parameters.append(_parameter(key, str | None, typer.Option(name, help=text, metavar=choices, show_default=False)))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _parameter(name: str, kind: Any, option: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, option], default=default)


if __name__ == "__main__":
    main()
