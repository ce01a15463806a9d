"""Help texts of the commands, which typer would change: it parses [...] as markup and shows flags with a value."""

from typing import Any

from rich.markup import escape
from typer.core import TyperCommand, TyperGroup, TyperOption


class HelpCommand(TyperCommand):
    """A command whose help is printed as it is written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _keep_help(self)

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with flags that show no type."""
        return _without_flag_types(super().get_params(ctx))


class HelpGroup(TyperGroup):
    """A group of commands whose help is printed as it is written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _keep_help(self)

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, with flags that show no type."""
        return _without_flag_types(super().get_params(ctx))


def _keep_help(command: TyperCommand | TyperGroup) -> None:
    """Join the lines of each paragraph, and escape what rich would parse as markup."""
    if command.help:
        paragraphs = command.help.split("\n\n")
        command.help = escape("\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))
    for parameter in command.params:
        text = getattr(parameter, "help", None)
        if text:
            parameter.help = escape(text)  # type: ignore[attr-defined]


def _without_flag_types(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
    return parameters
