"""``python -m finepruning.store list|verify|prune``: look after a store."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finepruning.store.upkeep import Entry, find_faults, find_unneeded, list_entries, read_runs, remove

DAMAGED, REFUSED = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return 0, 1 if something is damaged or stays, 2 if nothing was done."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, soft_wrap=False)
    try:
        runs, problems = read_runs(options.runs if options.command != "verify" else [])
        entries = list_entries(options.store, runs)
        if options.command == "list":
            _show(console, entries, problems)
            return 0
        if options.command == "verify":
            return _verify(console, entries)
        if problems:
            raise ValueError(
                "\n".join([*problems, "What these runs need is unknown, so nothing was removed."])
            )
        return _prune(console, options, entries)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m finepruning.store", description="Look after a store.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("list", "show what lies there, what made it, and how many records need it"),
        ("verify", "compare every file with its checksum; exit status 1 if one is damaged"),
        ("prune", "remove what no record needs; shows it first, and asks"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("--store", type=Path, default=Path("store"), help="the folder (store)")
        if name == "verify":
            continue
        command.add_argument(
            "--runs",
            type=Path,
            nargs="+",
            default=[Path("runs")],
            help="all folders of runs that share it (runs)",
        )
        if name == "prune":
            command.add_argument("--yes", action="store_true", help="remove without asking")
            command.add_argument(
                "--unused-for",
                type=float,
                default=24.0,
                metavar="HOURS",
                help="keep what was used since (24)",
            )
    return parser


def _show(console: Console, entries: Sequence[Entry], problems: Sequence[str]) -> None:
    table = Table(caption="unused: since it was last made or read")
    for column in ("stage", "dataset", "attack", "defense", "seed"):
        table.add_column(column, overflow="fold")
    for column in ("MB", "made in", "unused", "records"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("note")
    datasets = {str(e.about.get("data")): e.key.split("/")[1].rpartition("-")[0] for e in entries if e.about}
    for entry in entries:
        seconds = entry.about.get("seconds")
        table.add_row(
            *(Text(cell) for cell in (entry.key, *_made_by(entry, datasets))),
            f"{entry.size / 1e6:,.2f}",
            "" if seconds is None else _duration(float(seconds)),
            _duration(entry.unused),
            str(len(entry.records)) if entry.state in ("finished", "packed") else "",
            Text(_note(entry)),
        )
    console.print(table)
    total = sum(entry.size for entry in entries)
    console.print(f"{len(entries)} entries, {total / 1e6:,.1f} MB.")
    for problem in problems:
        console.print(Text(problem, style="red"))


def _made_by(entry: Entry, datasets: Mapping[str, str]) -> tuple[str, str, str, str]:
    """Return data set, attack, defense and seed: as records name them, or else by their classes."""
    if entry.state == "packed":
        return entry.key.split("/")[1].rpartition("-")[0], "", "", ""
    made_by = entry.made_by
    if not made_by:
        return "", "", "", ""
    seed = str(made_by.get("seed", ""))
    if entry.records:
        record = entry.records[0]
        defense = str(record["defense"]) if entry.kind == "defended" else ""
        return str(record["dataset"]), str(record["attack"]), defense, seed
    dataset = datasets.get(str(made_by.get("data")), "")
    attack = made_by.get("attack") or {}
    return (
        dataset,
        _class(attack.get("trigger")) or _class(attack) or "none",
        ", ".join(_classes(made_by.get("defense") or {})),
        seed,
    )


def _class(config: Any) -> str:
    return str(config.get("_target_", "")).rpartition(".")[2] if isinstance(config, dict) else ""


def _classes(defense: Mapping[str, Any]) -> list[str]:
    parts = [*(defense.get("callbacks") or {}).values(), defense.get("tuning")]
    return [name for part in parts if (name := _class(part))]


def _note(entry: Entry) -> str:
    if entry.maker:
        return f"being made by {entry.maker}"
    if entry.state == "finished":
        if not entry.about:
            return "damaged"
        return "" if "version" in entry.about else "of an earlier version"
    return {"packed": "", "lock": "a lock of an earlier version"}.get(entry.state, entry.state)


def _verify(console: Console, entries: Sequence[Entry]) -> int:
    checked = [entry for entry in entries if entry.state in ("finished", "packed")]
    faults = find_faults(checked)
    for key, fault in faults.items():
        console.print(Text(f"{key}: {fault}. The next run that needs it makes it anew."))
    console.print(f"{len(checked)} checked, {len(faults)} damaged.")
    return DAMAGED if faults else 0


def _prune(console: Console, options: argparse.Namespace, entries: Sequence[Entry]) -> int:
    if options.unused_for < 0:
        raise ValueError(
            f"--unused-for {options.unused_for} is below 0. Give hours; 0 removes what was just used."
        )
    reasons = find_unneeded(entries, options.unused_for * 3600)
    busy = [entry for entry in entries if entry.maker]
    for entry in busy:
        console.print(Text(f"{entry.key} is being made by {entry.maker}; finished stages stay until then."))
    if not reasons:
        console.print("Nothing to remove.")
        return 0
    going = [entry for entry in entries if entry.key in reasons]
    table = Table("goes", "why")
    table.add_column("unused", justify="right")
    table.add_column("MB", justify="right")
    for entry in going:
        table.add_row(entry.key, reasons[entry.key], _duration(entry.unused), f"{entry.size / 1e6:,.2f}")
    console.print(table)
    amount = f"{len(going)} of {len(entries)} entries, {sum(entry.size for entry in going) / 1e6:,.1f} MB"
    if not options.yes:
        if not sys.stdin.isatty():
            console.print(f"Nothing was removed. Add --yes to remove {amount}.")
            return 0
        if console.input(Text(f"Remove {amount}? [y/N] ")).strip().lower() not in ("y", "yes"):
            console.print("Nothing was removed.")
            return 0
    kept = [entry.key for entry in going if not remove(options.store, entry)]
    for key in kept:
        console.print(Text(f"{key} is in use by now and stays."))
    console.print(f"Removed {len(going) - len(kept)} of {len(entries)} entries.")
    return DAMAGED if kept else 0


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
