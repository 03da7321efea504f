#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
'''Reads KTAP as KUnit and the kselftests write it, and counts the results.

usage: ktap.py [--suite NAME] [--base FILE [--all] | --record FILE] [--totals FILE]
               [--trouble FILE] [--quiet] LOG...

A result inside another (indented, or behind "# ") counts for itself; the outer
one counts only where it says more than its parts: a program that died, or a
plan that was not kept. A known failure of the base and XFAIL count as skipped.

  --suite NAME   what to call it in the report
  --base FILE    compare with the results that --record wrote on the base kernel;
                 again for a list of what is unsteady there
  --all          everything that ran there has to run here
  --record FILE  write down everything that does not pass
  --totals FILE  append "NAME PASSED FAILED SKIPPED" for a sum over suites
  --trouble FILE append what failed or took a second try, with its last words
  --quiet        no line for each test
Exit status: 1 if anything failed, or if there were no tests at all.

>>> def states(text):
...     reader = Parser()
...     for line in text.splitlines():
...         reader.feed(line)
...     return [leaf[:2] for test in reader.finish() for leaf in leaves(test)]

KUnit, on a console:
>>> states("""[    0.1] KTAP version 1
... [    0.1] 1..1
... [    0.1]     KTAP version 1
... [    0.1]     # Subtest: rmap
... [    0.1]     1..2
... [    0.1]     ok 1 map
... [    0.1]         ok 1 4k
... [    0.1]         ok 2 2m # SKIP no THP
... [    0.1]     ok 2 unmap
... [    0.1] ok 1 rmap""")
[('rmap/map', 'pass'), ('rmap/unmap/4k', 'pass'), ('rmap/unmap/2m', 'skip')]

A kselftest that died, and one that never came to an end:
>>> states("""TAP version 13
... # running ./cow
... # TAP version 13
... # 1..3
... # # [RUN] COW after fork
... # ok 1 No leak
... # ok 2 # XFAIL no swap
... not ok 1 cow # exit=139
... # running ./mremap_test
... # ok 1 moved""")[1:]     # doctest: +NORMALIZE_WHITESPACE
[('cow/COW after fork: no swap', 'xfail'),
 ('cow/not all tests ran', 'fail'),
 ('mremap_test/moved', 'pass'), ('mremap_test', 'fail')]

What a test said last before it failed, here in the first of two tries:
>>> reader = Parser()
>>> for line in """# first try| TAP version 13
... # first try| # cow.c:7:fork:Expected 1 (1) == 0 (0)
... # first try| not ok 1 cow.fork
... # first try| status 1: ./cow -q
... # ok 1 cow.fork
... ok 1 cow""".splitlines():
...     reader.feed(line)
>>> reader.retries
[('./cow -q (status 1)', [('cow.fork', ['cow.c:7:fork:Expected 1 (1) == 0 (0)'])])]
'''
import argparse
import re
import sys
from collections import Counter, deque

STAMP = re.compile(r"^(<\d+>)?\[ *\d+\.\d+\](\[ *[CT]\d+\])? ")
PREFIX = re.compile(r"(# |    )")
RESULT = re.compile(r"^(not )?ok (\d+)\b\s*(?:- )?(.*?)\s*"
                    r"(?:# *(?:(SKIP|XFAIL|TODO)\b:?\s*(.*?)|exit=\d+)\s*)?$", re.IGNORECASE)
START = re.compile(r"^K?TAP version ")
PLAN = re.compile(r"^1\.\.(\d+)\b")
RUNNING = re.compile(r"^running \.?/?(.*)")
RUN = re.compile(r"^\[RUN\] (.*)")
BEGIN = re.compile(r"^ *RUN +\S|^K?TAP version ")    # nothing of what failed before
FIRST_TRY = re.compile(r"^first try\| (?:status (\d+): (.*)|(.*))")
LAST_WORDS = 6    # lines of what a test said last, when it failed


class Test:
    """One result, with the results inside it."""

    def __init__(self, name, state, reason, children, said=()):
        self.name, self.state, self.reason = name, state, reason
        self.children, self.said = children, list(said)


def split_depth(line):
    """How deep a line is nested, and the line without that."""
    line = STAMP.sub("", line.rstrip("\r\n"))
    depth = 0
    while True:
        m = PREFIX.match(line)
        if not m:
            return depth, line
        depth, line = depth + 1, line[m.end():]


class Parser:
    def __init__(self):
        self.finished = []     # the results of the outermost level
        self.done = []         # by depth: the results that wait for the one around them
        self.plans = []        # by depth: how many were announced
        self.context = ""      # the last [RUN] line: what the results that follow are about
        self.running = None    # the program that has started and has no result yet
        self.said = deque(maxlen=LAST_WORDS)    # since the last result
        self.first_try = None  # reads what a program said that then ran again
        self.retries = []      # (program, [(test, what it said)])

    def at(self, depth):
        while len(self.done) <= depth:
            self.done.append([])
            self.plans.append(None)
        return self.done[depth]

    def close(self, depth):
        """Everything deeper than depth belongs to the result that comes now."""
        children = []
        for d in range(len(self.done) - 1, depth, -1):
            # A result that was never closed stays beside those around it.
            children = self.done[d] + children
            if self.plans[d] is not None and len(self.done[d]) != self.plans[d]:
                children.append(Test("not all tests ran", "fail", f"{self.plans[d]} "
                                     f"announced, {len(self.done[d])} ran", []))
            self.done[d], self.plans[d] = [], None
        return children

    def feed(self, line):
        depth, text = split_depth(line)
        m = FIRST_TRY.match(text)
        if m:
            self.feed_first_try(*m.groups())
            return
        m = RESULT.match(text)
        if m:
            directive = (m[4] or "").upper()
            state = {"SKIP": "skip", "XFAIL": "xfail", "TODO": "xfail"}.get(
                directive, "fail" if m[1] else "pass")
            if m[1] and directive == "SKIP":
                state = "fail"
            reason = m[5] or ""
            name = m[3] or reason or f"#{m[2]}"
            children = self.close(depth)
            if depth and self.context and not children:
                name = f"{self.context}: {name}"
            self.at(depth).append(Test(name, state, reason, children, self.said))
            self.said.clear()
            if depth == 0:
                self.context, self.running = "", None
            return
        if depth == 0 and START.match(text):
            self.finish()    # another report begins
            return
        m = PLAN.match(text)
        if m:
            self.at(depth)
            self.plans[depth] = int(m[1])
            return
        m = RUNNING.match(text)
        if m and depth == 1:
            self.running = m[1]
            self.said.clear()
            return
        m = RUN.match(text)
        if m:
            self.context = m[1]
        elif BEGIN.match(text):
            self.said.clear()
        elif text:
            self.said.append(text.strip())

    def feed_first_try(self, status, program, line):
        """One line of a try that failed; the last one has its status."""
        if not self.first_try:
            self.first_try = Parser()
        if program is None:
            self.first_try.feed(line)
            return
        tests = self.first_try.finish()
        failed = [(path, said) for test in tests for path, state, _, said in leaves(test)
                  if state == "fail"]
        self.retries.append((f"{program} (status {status})",
                             failed or [("", list(self.first_try.said))]))
        self.first_try = None

    def finish(self):
        if self.running:
            self.at(0).append(Test(self.running, "fail", "no result", self.close(0), self.said))
            self.running = None
        self.finished += self.close(-1)
        return self.finished


def leaves(test, path=""):
    """The results that count, as (path, state, reason, what was said)."""
    path = f"{path}/{test.name}" if path else test.name
    found = [leaf for child in test.children for leaf in leaves(child, path)]
    said_more = test.state == "fail" and not any(leaf[1] == "fail" for leaf in found)
    if not found or said_more:
        found.append((path, test.state, test.reason, test.said))
    return found


def plain(path):
    """A name without what changes from run to run: addresses, sizes of the day."""
    path = re.sub(r"0x[0-9a-f]+", "0x*", path)
    path = re.sub(r"\b[0-9a-f]{8,16}\b", "*", path)
    return re.sub(r"\s+", " ", path).strip()


def numbered(results):
    """The same name again gets a number, so that each result has its own."""
    seen = Counter()
    for path, state, reason, said in results:
        path = plain(path)
        seen[path] += 1
        yield (path if seen[path] == 1 else f"{path} [{seen[path]}]"), state, reason, said


def write_trouble(path, suite, failed, retries):
    """For the end of a long log, where the reason is far away."""
    with open(path, "a") as f:
        for test, said in failed:
            f.write(f"failed: {suite}: {test}\n")
            f.writelines(f"    {line[:160]}\n" for line in said)
        for program, tests in retries:
            f.write(f"second try: {suite}: {program}\n")
            for test, said in tests:
                f.writelines([f"  {test}\n"] if test else [])
                f.writelines(f"    {line[:160]}\n" for line in said)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--suite", default="tests")
    parser.add_argument("--base", action="append", default=[])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--record")
    parser.add_argument("--totals")
    parser.add_argument("--trouble")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("log", nargs="+")
    args = parser.parse_args()

    tests, retries, failed = [], [], []
    for log in args.log:
        reader = Parser()
        with open(log, errors="replace") as f:
            for line in f:
                reader.feed(line)
        tests += reader.finish()
        retries += reader.retries

    known = {}        # what does not pass on the base, and how it ends there
    base_ran = {}     # how many results each program has there
    for base in args.base:
        with open(base) as f:
            for line in f:
                if line.strip() and not line.startswith("#"):
                    state, path = line.rstrip("\n").split("\t", 1)
                    if state.isdigit():
                        base_ran[path] = int(state)
                    else:
                        known[path] = state

    ran = {plain(test.name): len(leaves(test)) for test in tests}
    results = list(numbered(leaf for test in tests for leaf in leaves(test)))
    count = Counter()
    report = {"failed": [], "failed, as on the base (always or at times)": [], "skipped here alone": [],
              "passes here alone": []}
    for path, state, reason, said in results:
        line = path + (f" ({reason})" if reason and reason not in path else "")
        before = known.get(path)
        if state == "fail" and before in ("fail", "unsteady"):
            report["failed, as on the base (always or at times)"].append(line)
            count["skip"] += 1
        elif state == "fail":
            report["failed"].append(line)
            failed.append((line, said))
            count["fail"] += 1
        elif state == "pass":
            count["pass"] += 1
            if before and before != "unsteady":
                report["passes here alone"].append(f"{line} (base: {before})")
        else:
            count["skip"] += 1
            if args.base and not before:
                report["skipped here alone"].append(line)
    if args.base:
        report["fewer results than on the base"] = [
            f"{name}: {ran[name]}, base: {base_ran[name]}"
            for name in base_ran if name in ran and ran[name] < base_ran[name]]
    if args.all:
        report["runs on the base, not here"] = [name for name in base_ran if name not in ran]
        count["fail"] += len(report["runs on the base, not here"])
        failed += [(f"{name}: runs on the base, not here", []) for name in base_ran
                   if name not in ran]

    if args.record:
        with open(args.record, "w") as f:
            f.write("# How many results each program has on the base kernel, then what does not\n"
                    "# pass there. Written by BASELINE=1 scripts/kselftest --record, from a run.\n")
            for name, n in ran.items():
                f.write(f"{n}\t{name}\n")
            for path, state, _, _ in results:
                if state != "pass":
                    f.write(f"{state}\t{path}\n")

    if not args.quiet:
        for test in tests:
            states = Counter(leaf[1] for leaf in leaves(test))
            print("%7d passed %5d failed %5d skipped   %s" % (
                states["pass"], states["fail"], states["skip"] + states["xfail"], test.name))
    for heading, lines in report.items():
        if lines:
            print(f"{heading}:")
            for line in lines:
                print(f"    {line}")
    if not results:
        print(f"{args.suite}: no results at all: {' '.join(args.log)}", file=sys.stderr)
        count["fail"] = 1
        failed.append(("no results at all", []))
    if args.trouble:
        write_trouble(args.trouble, args.suite, failed, retries)
    print("%s: %d passed, %d failed, %d skipped" % (
        args.suite, count["pass"], count["fail"], count["skip"]))
    if args.totals:
        with open(args.totals, "a") as f:
            f.write(f"{args.suite} {count['pass']} {count['fail']} {count['skip']}\n")
    return 1 if count["fail"] else 0


if __name__ == "__main__":
    sys.exit(main())
