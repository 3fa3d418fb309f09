"""Command lines as configurations: a preset's settings, and the flags that override them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import field, fields, make_dataclass, replace
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import tyro

from ..methods.method import Method
from ..methods.registry import find_method, methods
from ..runs.config import SearchConfig, configured
from ..runs.presets import preset_names, search_settings
from ..runs.training_config import PRESETS, TrainingConfig
from ..spaces.settings import SpaceSettings

__all__ = ["peek_flags", "search_config", "split_command", "training_config"]

Config = TypeVar("Config", bound=SearchConfig)


def split_command(
    parser: argparse.ArgumentParser, args: list[str] | None, own: Mapping[str, str]
) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line of a command that starts searches: its own flags, and the searches' flags after ``--``.

    Args:
        parser: parser of the command's own flags.
        args: the command line; by default the process's own.
        own: flag of a search that the command sets -> the flag to give before ``--`` instead.

    Raises:
        ValueError: a flag of ``own`` is given to the searches; or the command runs under a launcher.
        SystemExit: one of the command's own flags is unknown or malformed.
    """
    words = sys.argv[1:] if args is None else args
    cut = words.index("--") if "--" in words else len(words)
    chosen, flags = parser.parse_args(words[:cut]), words[cut + 1 :]
    name = parser.prog.split()[-1]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"{name} starts its searches itself, each as one process: start it without a launcher, or launch the "
            f"commands that --dry-run prints"
        )
    if named := [flag for flag in flags if flag.split("=")[0] in own]:
        instead = ", ".join(dict.fromkeys(own[flag.split("=")[0]] for flag in named))
        raise ValueError(f"{name} gives each run its {', '.join(named)}: say {instead} before --")
    return chosen, flags


def search_config(
    kind: type[Config],
    space: SpaceSettings,
    args: list[str] | None = None,
    prog: str | None = None,
    overlay: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration of a search from its command line: the preset's settings, and then the flags.

    Args:
        kind: the class of the configuration; a command with more flags has its own.
        space: settings of the space.
        args: the command line; by default the process's own.
        prog: the command's name, for its help.
        overlay: settings that override the preset; flags override them.

    Raises:
        SystemExit: a flag is unknown or malformed (shown with the usage), as command lines do.
    """
    if "--list-methods" in (sys.argv if args is None else args):
        _list_methods()
    defaults = kind()
    method = _method(peek_flags(args, prog, method=(None, defaults.method.name))["method"], prog)
    names = preset_names(method, space)
    given = peek_flags(
        args,
        prog,
        preset=(names, names[0]),
        scale=(["published", *space.scales], "published"),
        dataset=(None, defaults.data.dataset),
    )
    settings = {**search_settings(method, space, **given), **(overlay or {})}
    settings = {name: value for name, value in settings.items() if name in {**defaults.settings, **method.settings}}
    return _parsed(configured(defaults, settings), names, space, args, prog)


def training_config(args: list[str] | None = None, prog: str | None = None) -> TrainingConfig:
    """The configuration of a training from its command line: the preset's settings, the data set's, then the flags.

    Raises:
        SystemExit: a flag is unknown or malformed (shown with the usage), as command lines do.
    """
    given = peek_flags(args, prog, preset=([*PRESETS], TrainingConfig.preset), dataset=(None, None))
    default = TrainingConfig.of_preset(**given)
    return tyro.cli(TrainingConfig, prog=prog, args=args, default=default, config=(tyro.conf.OmitArgPrefixes,))


def _list_methods() -> NoReturn:
    width = max(map(len, methods()))
    for name, method in methods().items():
        print(f"{name:{width}}  {method.summary}")
    print(f"{'a+b':{width}}  two methods combined, if they are compatible")
    sys.exit(0)


def _method(name: str, prog: str | None) -> Method:
    try:
        return find_method(name)
    except ValueError as error:
        print(f"{prog or 'sparsemix search'}: {error}", file=sys.stderr)
        sys.exit(2)


def _parsed(
    config: Config, presets: Sequence[str], space: SpaceSettings, args: list[str] | None, prog: str | None
) -> Config:
    """The configuration with a command line applied; the method's own settings become additional groups of flags.

    The flags of a command depend on its method. tyro reads flags from a class, so the class is created here.
    """
    parts = [(type(part).__name__.lower(), type(part), field(default=part)) for part in config.method.parts]
    shown = {
        "method": (
            str,
            config.method.name,
            "Search method, or several that go together (a+b); --list-methods shows them.",
        ),
        "preset": (Literal[tuple(presets)], config.preset, "Preset of settings, which the other flags override."),
        "scale": (Literal[("published", *space.scales)], config.scale, "Size of the search; proxy suits a CPU."),
    }
    chosen = [
        (name, Annotated[annotation, tyro.conf.arg(help=text)], field(default=value))
        for name, (annotation, value, text) in shown.items()
    ]
    of_method = make_dataclass(type(config).__name__, [*chosen, *parts], bases=(type(config),), frozen=True)
    values = {each.name: getattr(config, each.name) for each in fields(config) if each.name not in shown}
    default = of_method(**values, **{name: value for name, (_, value, _) in shown.items()})
    parsed: Any = tyro.cli(of_method, prog=prog, args=args, default=default, config=(tyro.conf.OmitArgPrefixes,))
    values = {name: getattr(parsed, name) for name in (*values, "preset", "scale")}
    method = replace(config.method, parts=tuple(getattr(parsed, name) for name, _, _ in parts))
    return replace(config, **values, method=method)


def peek_flags(
    args: list[str] | None, prog: str | None = None, **flags: tuple[Sequence[str] | None, str | None]
) -> dict[str, Any]:
    """The values of flags that determine the defaults of the others; ``flags``: name -> (choices or None, default)."""
    parser = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    for name, (choices, default) in flags.items():
        parser.add_argument(f"--{name}", choices=choices, default=default)
    return vars(parser.parse_known_args(args)[0])
