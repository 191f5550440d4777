"""What every command has in common: an option may be followed by several values."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperCommand


class Command(TyperCommand):
    """A command whose repeatable options take several values: `-c 2d 3d_fullres` means `-c 2d -c 3d_fullres`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments after spreading several values of one option."""
        options = [parameter for parameter in self.params if not isinstance(parameter, TyperArgument)]
        positional = len(self.params) - len(options)
        return super().parse_args(ctx, spread(args, options, positional))


def spread(arguments: list[str], options: list[Any], positional: int) -> list[str]:
    """Repeat the name of a repeatable option before each further value that follows it.

    A value of a `NAME=VALUE` option is known by its `=`; other values are taken once all `positional` arguments
    have been seen, so that `-c 2d Dataset004` still means what it says.
    """
    known = {name: option for option in options for name in option.opts}
    result: list[str] = []
    repeated, awaits_value, seen = None, False, 0
    for index, token in enumerate(arguments):
        if token == "--":
            return result + arguments[index:]
        if awaits_value:
            awaits_value = False
        elif token.startswith("-") and len(token) > 1:
            option = known.get(token.partition("=")[0])
            awaits_value = "=" not in token and option is not None and not option.is_flag
            repeated = option if option is not None and option.multiple else None
        elif repeated is not None and ("=" in token if "=" in (repeated.metavar or "") else seen >= positional):
            result.append(repeated.opts[0])
        else:
            seen += 1
            repeated = None
        result.append(token)
    return result
