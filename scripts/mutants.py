#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""For scripts/mutants: "add RESULTS CONSOLE" appends what a guest's console tells, for
each error its number, after how many seconds it was noticed, and by what;
"table MUTANT.C FOLDER" writes FOLDER/mutants.md from the results there."""
import pathlib
import re
import runpy
import sys

HEAD = """# Which test notices which error

`make mutants` switches on each error of `patches/mutants` alone and writes this table: the
KUnit suites (and how many of their cases), selftests, WARNs and the second account ("check")
that noticed, and after how many seconds; "-": nothing did. All cases: `mutants-*.tsv`.

"""
NOTES = "## Noticed by nothing\n"	# what follows is written by hand, and stays


def label(line):
    """A short name of what the kernel reported."""
    where = re.search(r"WARNING: (\S+):\d+ at ([\w.]+)", line)
    if where:
        return "check" if "mapcounts_check" in where[1] else "WARN in " + where[2]
    known = re.search(r"Bad (page|rss-counter)", line)
    return known[0] if known else "crash" if re.search("BUG|Oops|panic|fault|NULL|unable", line) else line[:40]


def parse(lines, scan):
    """Yield (nr, seconds, [what]) for each error that was switched on."""
    nr, last = None, 0.0
    for line in lines:
        stamp, new = re.match(r"\[ *(\d+\.\d+)\] ?(.*)", line.rstrip("\r\n")), None
        if not stamp:
            continue
        last, text = float(stamp[1]), stamp[2]
        switch = re.match(r"mutant: (\d+)$", text)
        if nr is None and switch:
            nr, start, suite, found = int(switch[1]), last, "boot", {}
        elif nr is None:
            continue
        elif switch:
            yield nr, found
            nr = None
        elif text.startswith("kunit: "):
            suite = text[7:]
        elif text.startswith("mutant: no end"):
            new = "hang in " + suite
        elif re.match(r" {4,}not ok \d+ ", text):
            new = f"{suite}:" + re.sub(r" *#.*", "", text.split(None, 3)[3])
        elif scan["BAD"].search(text) and not scan["harmless"](text):
            new = label(text)
        if new:
            found.setdefault(new, last - start)
    if nr is not None:	# The guest ended in the middle of it.
        if not any(what.startswith("hang") for what in found):
            found[f"{'crash' if found.pop('crash', 0) else 'hang'} in {suite}"] = last - start
        yield nr, found


def read(path):
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return {int(nr): (after, what.split("; ") if what else []) for nr, after, what in rows}


def add(results, console):
    usual = read(results).get(0, ("", []))[1]
    scan = runpy.run_path(str(pathlib.Path(__file__).parent / "console-scan"))
    with results.open("a") as out, console.open(errors="replace") as lines:
        for nr, found in parse(lines, scan):
            found = {what: after for what, after in found.items() if nr == 0 or what not in usual}
            after = f"{min(found.values()):.1f}" if found else "-"
            print(nr, after, "; ".join(found), sep="\t", file=out)
            usual = list(found) if nr == 0 else usual


def cell(after, what):
    cases = {}
    for name in what:
        name, case = name.split(":")[0], ":" in name
        cases[name] = cases.get(name, 0) + case
    return ", ".join(f"{name} {n or ''}".strip() for name, n in cases.items()) + (f"; {after} s" if what else "-")


def table(source, folder):
    errors = re.findall(r'^\t\{ (\d+), "(.*)" \},$', source.read_text(), re.M)
    columns = [(f.stem[8:], read(f)) for f in sorted(folder.glob("mutants-*.tsv"))]
    lines = [f"| nr | error | {' | '.join(n for n, _ in columns)} |", "|---" * (len(columns) + 2) + "|"]
    left = []
    for nr, what in errors:
        seen = [rows.get(int(nr)) for _, rows in columns]
        if any(seen):
            lines.append(f"| {nr} | {what} | {' | '.join(cell(*s) if s else '' for s in seen)} |")
            left += [] if any(s and s[1] for s in seen) else [nr]
    lines += ["", f"{len(lines) - 2} errors, of which nothing noticed {len(left)}: {', '.join(left)}.", "", NOTES]
    path = folder / "mutants.md"
    path.touch()
    path.write_text(HEAD + "\n".join(lines) + path.read_text().partition(NOTES)[2])


{"add": add, "table": table}[sys.argv[1]](*map(pathlib.Path, sys.argv[2:]))
