"""Write the reference pages of the documentation from the program itself.

    python scripts/reference.py [FOLDER]

``commands.md`` has each command with its own help, ``settings.md`` each setting and preset with
theirs; FOLDER is ``docs/reference`` unless another is given. A test says when the pages there are
no longer what this prints.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import yaml

from regard.cli import app
from regard.config import PRESETS, Config, describe_fields

FOLDER = Path(__file__).parents[1] / "docs" / "reference"

WRITTEN = (
    "<!-- Written by scripts/reference.py: change the help in src/regard, then run it. -->\n\n"
)


def pages() -> dict[str, str]:
    """The text of each page by its name."""
    return {"commands.md": commands(), "settings.md": settings()}


# --- commands ---------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its arguments and options."""
    root = typer.main.get_command(app)
    parts = [
        WRITTEN + "# Commands",
        "This page is `--help` of every command. Exit codes are the same everywhere: **0** all is "
        "done, **1** something failed and the rest is done, **2** the command, its settings or "
        "the data are wrong, **3** a fault of regard's own, **130** it was interrupted.",
        "## regard",
        text(str(root.help)),
        listed(root, typer.Context(root, info_name="regard"), leave="completion"),
    ]
    for name, command in sorted(tree(root, "regard")):
        context = typer.Context(command, info_name=name)
        usage = " ".join([name, *command.collect_usage_pieces(context)])
        parts += [
            f"## {name}",
            f"```text\n{usage}\n```",
            text(str(command.help)),
            listed(command, context, leave="--help"),
        ]
        if name == "regard train":
            parts.append("`--set` and `--config` take the [settings](settings.md).")
    return "\n\n".join(filter(None, parts)) + "\n"


def tree(group: Any, above: str) -> Iterator[tuple[str, Any]]:
    """The commands of a group and of the groups in it, by the words that are typed."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from tree(command, f"{above} {name}")
        else:
            yield f"{above} {name}", command


def listed(command: Any, context: typer.Context, *, leave: str) -> str:
    """A line for each argument and option, as the help has them.

    Args:
        command: whose they are.
        context: of the command.
        leave: what is left out: options with this in their name.
    """
    lines = []
    for parameter in command.params:
        if (
            leave in " ".join(parameter.opts)
            or (record := parameter.get_help_record(context)) is None
        ):
            continue
        name, said = record
        if repeated := "<list[" in name:
            name = re.sub(r"<list\[(.*)\]>", r"<\1>", name)
        name = name.replace("<int range>", "<int>").replace("<float range>", "<float>")
        if parameter.param_type_name == "argument":
            name, repeated = name.rpartition(" ")[0], False
        said, notes = re.fullmatch(r"(.*?)(?:\s\s\[(.*)\])?", said, re.DOTALL).groups()
        notes = [
            re.sub(r"^default: \((.*)\)$", r"default: \1", n) for n in (notes or "").split("; ")
        ]
        if repeated and "repeated" not in said:
            notes.append("may be given again")
        told = "; ".join(filter(None, notes))
        lines.append(f"- `{name}` {text(said)}" + (f" *({text(told)})*" if told else ""))
    return "\n".join(lines)


# --- settings ---------------------------------------------------------------------------------


def settings() -> str:
    """Every preset and every setting."""
    parts = [
        WRITTEN + "# Settings",
        "Settings of `regard train` come from a preset (`--preset`), a YAML file (`--config`) and "
        "single settings (`--set train.epochs=2`); later ones win. The same name is used in all "
        "three: `train.epochs` is `epochs` under `train` in a YAML file.",
        "A name or a value that does not exist is refused before any work, with the nearest name "
        "that does.",
    ]
    groups: dict[str, list[str]] = {}
    for name, said in describe_fields():
        section = name.rpartition(".")[0]
        groups.setdefault(section, []).append(f"- `{name}` {text(said)}")
    for section, lines in groups.items():
        of = Config.model_fields[section].annotation if section else None
        about = text(str(of.__doc__)) if of is not None else "For the whole of a training."
        parts += [f"## {section or 'General'}", about, "\n".join(lines)]
    parts += ["## Presets", "What a preset does not name has the default above."]
    for name, (said, values) in PRESETS.items():
        parts += [f"### {name}", text(said)]
        if values:
            written = yaml.safe_dump(values, sort_keys=False, default_flow_style=False)
            parts.append(f"```yaml\n{written}```")
        else:
            parts.append("It is the defaults above.")
    return "\n\n".join(parts) + "\n"


def text(said: str) -> str:
    """A sentence of the help for Markdown: outside of `code`, signs stand for themselves."""
    pieces = re.split(r"(`[^`]*`)", " ".join(said.split()))
    return "".join(
        piece if piece.startswith("`") else re.sub(r"[*_<]", lambda m: SIGNS[m[0]], piece)
        for piece in pieces
    )


SIGNS = {"*": r"\*", "_": r"\_", "<": "&lt;"}


def main() -> None:
    """Write the pages."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in pages().items():
        (folder / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
