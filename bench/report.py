#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Writes report.md and its plots from the figures beside them.

usage: report.py DIRECTORY

Reads rmap.csv, calls.csv, icount.csv, redis.csv and text.csv, as far as they are
there, and machine, which says where and how they were measured. One thread: the figure of a
kernel is the least of all boots, as all that disturbs makes it longer. More threads:
the median, as the least is that of a thread which had the folio for itself.
"""
import collections
import csv
import os
import statistics
import subprocess
import sys

KERNELS = ("base", "averages", "patched")
TITLES = {"base": "base", "averages": "base, NO_PAGE_MAPCOUNT", "patched": "with the series"}
NOISE = 0.03    # a ratio within that of its bound is neither better nor worse

Cell = collections.namedtuple("Cell", "value ratio low high")


def read(directory, name):
    path = os.path.join(directory, name)
    if not os.path.exists(path):
        return []
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


class Figures:
    """What one instrument measured: for a key, ns of each kernel and boot."""

    def __init__(self, rows, key, column):
        self.ns = collections.defaultdict(lambda: collections.defaultdict(dict))
        self.rows = {}
        for row in rows:
            k = key(row)
            self.ns[k][row["kernel"]][row["boot"]] = float(row[column(row)])
            self.rows[k, row["kernel"]] = row

    def keys(self):
        return list(self.ns)

    def value(self, key, kernel, best=min):
        boots = self.ns.get(key, {}).get(kernel)
        return best(boots.values()) if boots else None

    def cell(self, key, kernel, against="base", best=min):
        """The value of KERNEL, its ratio to AGAINST, and the extremes of the
        ratios of single boots."""
        mine, other = self.ns.get(key, {}).get(kernel), self.ns.get(key, {}).get(against)
        if not mine or not other:
            return None
        ratios = [mine[b] / other[b] for b in mine if other.get(b)]
        if not ratios or not best(other.values()):
            return None
        return Cell(best(mine.values()), best(mine.values()) / best(other.values()),
                    min(ratios), max(ratios))


def rmap_key(row):
    return row["case"], int(row["order"]), int(row["pages"]), int(row["threads"])


def rmap_column(row):
    return "min_ns" if row["threads"] == "1" else "median_ns"


def rmap_best(key):
    return min if key[3] == 1 else statistics.median


def call_key(row):
    return row["operation"], row["memory"], int(row["folio_kib"]), row["mapped"]


def number(x):
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def size(kib):
    return f"{kib // 1024} MiB" if kib >= 1024 else f"{kib} KiB"


class Report:
    def __init__(self, directory):
        self.directory = directory
        self.rmap = Figures(read(directory, "rmap.csv"), rmap_key, rmap_column)
        self.calls = Figures(read(directory, "calls.csv"), call_key, lambda row: "min_ns")
        self.icount = Figures(read(directory, "icount.csv"), call_key, lambda row: "min_ns")
        self.redis = Figures(read(directory, "redis.csv"), lambda row: (row["phase"], row["name"]),
                             lambda row: "value")
        self.text = read(directory, "text.csv")
        self.lines = []

    def line(self, text=""):
        self.lines.append(text)

    # --- targets and regressions ---------------------------------------------

    def targets(self):
        """(what, target, cell or None) for each path that has one."""
        def rmap(what, bound, *key):
            yield what, bound, self.rmap.cell(key, "patched", best=rmap_best(key))

        yield from rmap("rmap, file dup + remove, 512 pages, one thread", 0.02, "dup_file", 9, 512, 1)
        yield from rmap("the same, 16 pages", 0.25, "dup_file", 9, 16, 1)
        yield from rmap("the same, 1 page", 0.9, "dup_file", 9, 1, 1)
        yield from rmap("the same, 16 pages, two threads on one folio", 0.3, "dup_file", 9, 16, 2)
        yield from rmap("fork of 64 MiB in 2 MiB folios by PTEs, rmap part", 0.3, "fork_anon", 9, 512, 1)
        yield from rmap("munmap of the same, rmap part", 0.1, "zap_anon", 9, 512, 1)
        for what, key in (("small folio, file dup + remove", ("dup_file", 0, 1, 1)),
                          ("small folio, file add + remove", ("add_file", 0, 1, 1)),
                          ("small folio, anonymous dup + remove", ("dup_anon", 0, 1, 1))):
            yield from rmap(what, 1.0, *key)
        write = "write_after_child_exit", "anon"
        yield ("write all after child exit, 2 MiB by PTEs (system calls)", 0.05,
               self.calls.cell((*write, 2048, "pte"), "patched"))
        yield ("the same, 64 KiB", 0.2, self.calls.cell((*write, 64, "pte"), "patched"))
        for op in ("fork", "munmap", "write_after_child_exit", "fault"):
            key = op, "anon", 4, "pte"
            yield f"small folios, {op.replace('_', ' ')} (system calls)", 1.0, self.calls.cell(key, "patched")
            yield "the same, instructions", 1.0, self.icount.cell(key, "patched")
        for arch, before, now in self.text_sizes():
            yield f"text of mm/ and fs/proc, {arch}, bytes", 1.0, Cell(now, now / before, now / before, now / before)

    def text_sizes(self):
        totals = collections.defaultdict(int)
        for row in self.text:
            totals[row["arch"], row["kernel"]] += int(row["text"])
        for arch in sorted({arch for arch, _ in totals}):
            yield arch, totals[arch, "base"], totals[arch, "patched"]

    def regressions(self):
        """All that takes longer than on base, or on base with NO_PAGE_MAPCOUNT, by
        more than the noise, in every boot."""
        for name, figures, best in (("rmap", self.rmap, rmap_best),
                                    ("calls", self.calls, lambda key: min),
                                    ("icount", self.icount, lambda key: min)):
            for key in figures.keys():
                for against in ("base", "averages"):
                    cell = figures.cell(key, "patched", against, best(key))
                    if cell and key[0] != "locked_add" and cell.ratio > 1 + NOISE and cell.low > 1:
                        yield name, key, against, cell

    def conclusion(self):
        """What to read if no more is read: ratios to base, and to NO_PAGE_MAPCOUNT."""
        def rmap(*key):
            return self.rmap, key, rmap_best(key)

        def ratio(figures, key, best=min):
            cells = [figures.cell(key, "patched", against, best) for against in ("base", "averages")]
            return " / ".join(f"{cell.ratio:.3f}" for cell in cells) if all(cells) else "not measured"

        anon = [(f"{op.replace('_', ' ')}, {size(kib)} folios{by}, instructions", (self.icount, (op, "anon", kib, how)))
                for op, kib, how, by in (("write_after_child_exit", 64, "pte", ""),
                                         ("write_after_child_exit", 2048, "pte", " by PTEs"),
                                         ("fork", 4, "pte", ""), ("child_exit", 2048, "pmd", " by a PMD"))]
        self.line("Ratios of the series to base, and to base with NO_PAGE_MAPCOUNT. No bare metal was at hand: "
                  "\"rmap\" is native time on User Mode Linux, instructions are counted by QEMU.")
        self.line()
        for what, figures in (("rmap: map and unmap 1 page of a 2 MiB file folio", rmap("dup_file", 9, 1, 1)),
                              ("the same, 512 pages", rmap("dup_file", 9, 512, 1)),
                              ("the same, 16 pages, two threads on one folio", rmap("dup_file", 9, 16, 2)),
                              ("rmap: fork of 2 MiB folios by PTEs", rmap("fork_anon", 9, 512, 1)),
                              *anon,
                              ("fault around, 2 MiB file folios, instructions",
                               (self.icount, ("fault_around", "file", 2048, "pte")))):
            self.line(f"- {what}: {ratio(*figures)}")
        self.line()

    def summary(self):
        self.line("## Regressions")
        self.line()
        found = sorted(self.regressions(), key=lambda r: -r[3].ratio)
        for name, key, against, cell in found:
            counted = name == "calls" and self.icount.cell(key, "patched", against)
            self.line(f"- {name}: {' '.join(map(str, key))}: {cell.ratio:.2f} of {TITLES[against]} "
                      f"(single boots: {cell.low:.2f} to {cell.high:.2f}"
                      + (f"; instructions: {counted.ratio:.2f})" if counted else ")"))
        if not found:
            self.line(f"None: nothing takes over {NOISE:.0%} longer in every boot.")
        self.line()
        spread = sorted(cell.high / cell.low for key in self.calls.keys()
                        if (cell := self.calls.cell(key, "averages")))
        if spread:
            self.line("How much of \"calls\" is noise: between the boots of one run, the ratio of the two base kernels "
                      f"differs by a factor of {statistics.median(spread):.2f} or more in half of the cases, of "
                      f"{spread[len(spread) * 9 // 10]:.2f} or more in a tenth. What these cost for certain, the "
                      "instructions say.")
            self.line()
        if any((name, key[0], against) == ("icount", "fault_around", "averages") for name, key, against, _ in found):
            self.line("fault_around: with NO_PAGE_MAPCOUNT, the first page of a large folio that is mapped counts as "
                      "the whole folio in the statistics, and the others as nothing. The series counts what is "
                      "mapped, as base does, and so has statistics to change for each batch of 16 pages.")
            self.line()
        self.line("## Targets")
        self.line()
        self.line("Ratios to base, in one run. A target of 1.00 is met within the noise, "
                  f"{NOISE:.0%}; that of the text size is not.")
        self.line()
        self.line("| path | target | measured | single boots | |")
        self.line("|---|---|---|---|---|")
        for what, bound, cell in self.targets():
            if not cell:
                self.line(f"| {what} | <= {bound:.2f} | - | - | not measured |")
                continue
            slack = NOISE if bound == 1 and "text" not in what else 0
            met = "met" if cell.ratio <= bound + slack else "**missed**"
            self.line(f"| {what} | <= {bound:.2f} | {cell.ratio:.3f} | "
                      f"{cell.low:.3f} to {cell.high:.3f} | {met} |")
        self.line()
        self.fork_limit()

    def fork_limit(self):
        """What the rmap part of fork() consists of."""
        fork, clear = ([self.rmap.value((name, 9, 512, 1), k) for k in KERNELS]
                       for name in ("fork_anon", "clear_exclusive"))
        if not all(fork + clear):
            return
        locked = min(clear)
        self.line("The rmap part of fork() is to count, and to have each page cease to be exclusive "
                  "(PageAnonExclusive). By a locked instruction on each page's flags, which others may change at the "
                  f"same time (PG_hwpoison), the latter takes {number(locked)} ns for the pages of a 2 MiB folio, and "
                  f"base {number(max(fork[0] - locked, 0))} ns more to count. The series stores the one byte of the "
                  f"flags that nobody else changes, and takes {number(fork[2])} ns for both.")
        self.line()

    # --- tables ----------------------------------------------------------------

    def rmap_table(self):
        keys = self.rmap.keys()
        if not keys:
            return
        self.line("## The rmap functions alone, native")
        self.line()
        self.line("ns for one call that maps or unmaps a batch of pages. \"dup\" adds to the mappings of "
                  "another MM, as fork() does; \"add\" is the first mapping, which statistics count; each of the "
                  "two with the unmapping that undoes it, and half of the time of both. \"fork\" and \"zap\" go "
                  "through 64 MiB, fork with pages that were exclusive. Ratios to base, and the extremes of single "
                  "boots.")
        self.line()
        adds = [(key[3], self.rmap.value(key, "patched", rmap_best(key))) for key in keys if key[0] == "locked_add"]
        if adds:
            others = ", ".join(f"{number(ns)} ns if {threads} threads do it to one variable"
                               for threads, ns in adds if threads > 1)
            self.line(f"One locked addition takes {number(adds[0][1])} ns here{', ' if others else ''}{others}: "
                      "the limit for all that counts.")
            self.line()
        self.line("| | folio | pages | threads | base | NO_PAGE_MAPCOUNT | series | ratio | single boots |"
                  " to NO_PAGE_MAPCOUNT |")
        self.line("|---|---|---|---|---|---|---|---|---|---|")
        for key in keys:
            best = rmap_best(key)
            cell = self.rmap.cell(key, "patched", best=best)
            other = self.rmap.cell(key, "patched", "averages", best)
            if key[0] == "locked_add" or not cell or not other:
                continue
            values = " | ".join(number(self.rmap.value(key, k, best)) for k in KERNELS)
            self.line(f"| {key[0].replace('_', ' ')} | {size(4 << key[1])} | {key[2]} | {key[3]} | {values} | "
                      f"{cell.ratio:.3f} | {cell.low:.3f} to {cell.high:.3f} | {other.ratio:.3f} |")
        self.line()
        self.line("NO_PAGE_MAPCOUNT accounts a folio as mapped, all of it, as long as a page of it is; the series "
                  "accounts pages that are mapped. So in \"add\" by two threads, each of which maps and unmaps "
                  "some pages of a folio that nobody else maps, statistics change each time, which all processors "
                  "share where a change is of many pages.")
        self.line()
        self.line("![time against pages in a batch](rmap.svg)")
        self.line("![contention for one 2 MiB page cache folio](contention.svg)")
        self.line()
        if os.path.exists(os.path.join(self.directory, "16-processors", "report.md")):
            self.line("With up to 16 threads, on a machine that has as many processors: "
                      "[16-processors/report.md](16-processors/report.md).")
            self.line()
            self.line("![contention of 16 threads](16-processors/contention.svg)")
            self.line()

    def calls_table(self, figures, heading, unit, scale):
        keys = figures.keys()
        if not keys:
            return
        self.line(f"## {heading}")
        self.line()
        self.line(f"| operation | memory | folio | mapped by | base, {unit} | NO_PAGE_MAPCOUNT | series | ratio | "
                  "single boots | faults: base | series |")
        self.line("|---|---|---|---|---|---|---|---|---|---|---|")
        order = {op: i for i, op in enumerate(dict.fromkeys(k[0] for k in keys))}
        mixed = False
        for key in sorted(keys, key=lambda k: (order[k[0]], k[1], k[2], k[3] == "pmd")):
            cell = figures.cell(key, "patched")
            if not cell or not figures.value(key, "averages"):
                continue
            values = " | ".join(number(figures.value(key, k) / scale) for k in KERNELS)
            rows = [figures.rows[key, k] for k in KERNELS]
            star = "*" if any(r["folios"] != "ok" for r in rows) else ""
            mixed = mixed or star
            self.line(f"| {key[0].replace('_', ' ')} | {key[1]} | {size(key[2])}{star} | {key[3].upper()} | {values} | "
                      f"{cell.ratio:.3f} | {cell.low:.3f} to {cell.high:.3f} | {rows[0]['faults']} | {rows[2]['faults']} |")
        self.line()
        if mixed:
            self.line("\\* Not all folios were of that size.")
            self.line()

    def redis_table(self):
        names = (("ms", "ms"), ("cpu_ms", "ms of redis on a processor"), ("minor_faults", "faults of redis"),
                 ("pgreuse", "of these, pages reused"), ("thp_cow_copy", "pages of large folios copied"))
        if not self.redis.keys():
            return
        self.line("## redis, native")
        self.line()
        self.line("redis in THPs is written to while a child saves its data (BGSAVE), and further when the child has "
                  "gone. Medians.")
        self.line()
        self.line("| | | base | NO_PAGE_MAPCOUNT | series | ratio | single boots |")
        self.line("|---|---|---|---|---|---|---|")
        for phase, title in (("during", "while saved"), ("after", "after that")):
            for name, what in names:
                values = [self.redis.value((phase, name), k, statistics.median) for k in KERNELS]
                cell = self.redis.cell((phase, name), "patched", best=statistics.median)
                ratio = f"{cell.ratio:.3f} | {cell.low:.3f} to {cell.high:.3f}" if cell else "- | -"
                self.line(f"| {title} | {what} | "
                          + " | ".join("-" if v is None else f"{v:.0f}" for v in values) + f" | {ratio} |")
        self.line()

    def text_table(self):
        if not self.text:
            return
        self.line("## Size of the code")
        self.line()
        self.line("Bytes of text, without tests.")
        self.line()
        self.line("| | base | NO_PAGE_MAPCOUNT | series | ratio |")
        self.line("|---|---|---|---|---|")
        sizes = collections.defaultdict(collections.Counter)    # of objects, and of their directories
        for row in self.text:
            for name in row["object"], os.path.dirname(row["object"]):
                sizes[row["arch"], name][row["kernel"]] += int(row["text"])
        for (arch, name), size in sizes.items():
            if not name.endswith(".o"):
                row = [size[kernel] for kernel in KERNELS]
                self.line(f"| {arch}, {name} | " + " | ".join(map(str, row)) + f" | {row[2] / row[0]:.3f} |")
        self.line()
        for arch in dict.fromkeys(arch for arch, _ in sizes):
            more = {name: size["patched"] - size["base"]
                    for (a, name), size in sizes.items() if a == arch and name.endswith(".o")}
            names = sorted((n for n in more if abs(more[n]) >= 200), key=more.get, reverse=True)
            rest = sum(more.values()) - sum(more[n] for n in names)
            self.line(f"Bytes more or less than on base, {arch}: " + ", ".join(f"{n} {more[n]:+d}" for n in names)
                      + f"; each of the others less than 200, together {rest:+d}. What is new is the decision about "
                      "reuse (memory.o, util.o), the rmap walk that counts a page's mappings (rmap.o, page.o), smaps "
                      "by batches (task_mmu.o).")
            self.line()

    # --- plots -----------------------------------------------------------------

    def plot(self, name, columns, unit, setup, panels):
        """Plot panels, COLUMNS in a row, and one key below them. A panel is a title and lists of points: one for
        each kernel, and one that all kernels share, if there is one. UNIT is that of all y axes."""
        styles = [f"with linespoints lt {i + 1}" for i in range(len(KERNELS))]
        styles.append("with lines lc rgb '#444444' lw 1.5 dt 2")
        titles = [TITLES[k] for k in KERNELS] + ["one locked addition"]
        rows = -(-len(panels) // columns)
        height = 320 * rows + 40
        script = [f"set terminal svg size 960,{height} dynamic noenhanced font 'sans-serif,13' "
                  "background '#ffffff'",
                  f"set output '{os.path.join(self.directory, name)}'",
                  "set grid lc rgb '#dddddd'", "set border 3 lc rgb '#888888'", "set tics nomirror", "unset key",
                  "set linetype 1 lc rgb '#888888' lw 2 pt 7 ps 0.6",
                  "set linetype 2 lc rgb '#e08214' lw 2 pt 5 ps 0.6",
                  "set linetype 3 lc rgb '#1b6ca8' lw 2.5 pt 7 ps 0.7",
                  "set logscale xy", *setup]
        for i, (_, curves) in enumerate(panels):
            for c, points in enumerate(curves):
                script += [f"$p{i}c{c} << EOD", *(f"{x} {y}" for x, y in points), "EOD"]
        script.append("set multiplot")
        for i, (title, curves) in enumerate(panels):
            left, top = i % columns, 1 - 320 * (i // columns) / height
            script += [f"set lmargin at screen {0.02 + 0.98 * (left + 0.2) / columns}", f"set rmargin at screen {0.02 + 0.98 * (left + 0.97) / columns}",
                       f"set tmargin at screen {top - 40 / height}", f"set bmargin at screen {top - 270 / height}",
                       f"set title '{title}'", f"set ylabel '{'' if left else unit}'",
                       "plot " + ", ".join(f"$p{i}c{c} using 1:2 {styles[c]}" for c in range(len(curves)))]
        used = max(len(curves) for _, curves in panels)
        script += ["unset title", "unset tics", "unset border", "unset grid", "unset xlabel", "unset ylabel",
                   "unset logscale", "set lmargin at screen 0.02", "set rmargin at screen 0.98",
                   "set bmargin at screen 0", f"set tmargin at screen {30 / height}",
                   "set key center center horizontal",
                   "plot [0:1] [0:1] " + ", ".join(f"NaN {styles[c]} title '{titles[c]}'" for c in range(used))]
        subprocess.run(["gnuplot"], input="\n".join(script) + "\n", text=True, check=True)

    def plot_rmap(self):
        panels = []
        for case, title in (("dup_file", "page cache"), ("dup_anon", "anonymous")):
            keys = sorted(key for key in self.rmap.keys() if (key[0], key[1], key[3]) == (case, 9, 1))
            panels.append((f"2 MiB folio, {title}",
                           [[(key[2], self.rmap.value(key, k)) for key in keys] for k in KERNELS]))
        self.plot("rmap.svg", 2, "ns for each batch",
                  ["set xlabel 'pages in the batch'", "set xtics (1,4,16,64,512)", "set yrange [1:10000]"], panels)

        def by_threads(kernel, *case):
            keys = sorted((key for key in self.rmap.keys() if key[:3] == case), key=lambda key: key[3])
            return [(key[3], self.rmap.value(key, kernel, rmap_best(key))) for key in keys]

        limit = by_threads("patched", "locked_add", 0, 1)
        panels = [(f"{n} page{'s' * (n > 1)} of one 2 MiB folio",
                   [by_threads(k, "dup_file", 9, n) for k in KERNELS] + [limit]) for n in (1, 16, 512)]
        self.plot("contention.svg", 3, "ns for each batch",
                  ["set xlabel 'threads'", "set xtics (1,2,4,8,16)", f"set xrange [0.9:{1.1 * limit[-1][0]}]",
                   "set yrange [1:100000]"], panels)

    def plot_calls(self, figures, name, unit, scale):
        ops = ("fork", "child_exit", "write_after_child_exit", "write_after_parent_exit", "munmap_in_child", "dontneed")
        if not figures.keys():
            return
        panels = []
        for op in ops:
            keys = sorted((key for key in figures.keys() if key[0] == op and key[1] == "anon" and key[3] == "pte"),
                          key=lambda key: key[2])
            panels.append((op.replace("_", " "),
                           [[(key[2], figures.value(key, k) / scale) for key in keys] for k in KERNELS]))
        self.plot(name, 3, unit,
                  ["set xlabel 'folio'", "set xtics ('4K' 4, '16K' 16, '64K' 64, '1M' 1024, '2M' 2048)",
                   "set xrange [3:3000]"], panels)

    def write(self):
        self.line("# How fast it is")
        self.line()
        self.conclusion()
        self.summary()
        with open(os.path.join(self.directory, "machine")) as f:
            self.line("## Where and how")
            self.line()
            self.lines += f.read().splitlines()
        self.line()
        self.rmap_table()
        self.plot_rmap()
        self.calls_table(self.calls, "System calls and faults on User Mode Linux, native", "us", 1000)
        self.plot_calls(self.calls, "calls.svg", "us", 1000)
        if self.calls.keys():
            self.line("A fault of user space costs some 57 us here, nearly all of it between the host and User Mode "
                      "Linux, whatever the kernel does: what counts is how many there are.")
            self.line()
            self.line("![system calls, native](calls.svg)")
            self.line()
        self.calls_table(self.icount, "The same in instructions, in QEMU", "thousands", 1000)
        self.plot_calls(self.icount, "icount.svg", "thousand instructions", 1000)
        if self.icount.keys():
            self.line("An atomic instruction counts as one, though it takes longer than others.")
            self.line()
            self.line("![system calls, in instructions](icount.svg)")
            self.line()
        self.redis_table()
        self.text_table()
        with open(os.path.join(self.directory, "report.md"), "w") as f:
            f.write("\n".join(self.lines).rstrip() + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    Report(sys.argv[1]).write()
