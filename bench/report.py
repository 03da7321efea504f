#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Writes report.md and its plots from the figures beside them.

usage: report.py DIRECTORY

Reads rmap.csv, calls.csv, icount.csv, redis.csv, text.csv and functions.csv, as far as
they are there, and machine, which says where and how they were measured. The figure of a
kernel is the least of all boots, as all that disturbs makes it longer; with more threads,
and of redis, the median, as the least is that of a thread which had the folio for itself;
of native system calls the mean without the least and the most, as much of them is the host's:
one boot in twenty is below 0.6 or above 1.6 of the median.
"""
import collections
import csv
import itertools
import math
import os
import random
import statistics
import subprocess
import sys

KERNELS = ("base", "averages", "patched")
TITLES = {"base": "base", "averages": "base, NO_PAGE_MAPCOUNT", "patched": "with the series"}
SLOWER = 1.03   # what has to be explained

FORK = "More instructions for a batch of few pages, but one locked one for five or more: see dup anon, native."
EXPLAINED = {
    "fork": FORK,
    "fork-fork": FORK,
    "fork-after-one-kernel": FORK,
    "reuse-one": "A write to one page makes a window of 16 PTEs writable.",
    "reuse-eighth": "The same, where each window has one page that is written.",
    "reuse-one-kernel": "A write by the kernel makes up to 512 PTEs writable.",
    "cow-vain-shared": "Each write fault reads 3/4 of the PTEs of the folio before it copies: the worst case.",
    "cow-vain-tables": "The folio is exclusive, but in two page tables: base knows that, the series copies.",
    "cold-alternate": "Each folio's PTEs are read once, in vain.",
    "cold-sparse": "Each folio's PTEs are read once, in vain.",
    "smaps_rollup-sparse": "Each folio's PTEs are read once, in vain.",
    "pagemap-sparse": "One read() for each entry: each reads the folio's PTEs again, in vain.",
}

Cell = collections.namedtuple("Cell", "value ratio low high")


def read(directory, name):
    path = os.path.join(directory, name)
    if not os.path.exists(path):
        return []
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def trimmed_mean(boots):
    kept = sorted(boots)[1:-1] if len(boots) > 2 else boots
    return sum(kept) / len(kept)


class Figures:
    """What one instrument measured: for a key, the figure of each kernel and boot."""

    def __init__(self, rows, key, column, best=lambda key: min):
        self.boots = collections.defaultdict(lambda: collections.defaultdict(list))
        self.rows = {}
        self.best = best
        for row in rows:
            k = key(row)
            self.boots[k][row["kernel"]].append(float(row[column(row)]))
            self.rows[k, row["kernel"]] = row

    def keys(self):
        return list(self.boots)

    def value(self, key, kernel):
        boots = self.boots.get(key, {}).get(kernel)
        return self.best(key)(boots) if boots else None

    def interval(self, key):
        """Where the ratios of two kernels lie that do not differ, for all rows together in
        95 % of all ways to divide the boots of the base kernel, "base" and "again", in two."""
        base, again = (self.boots[key].get(kernel, []) for kernel in ("base", "again"))
        pool, n = base + again, len(base)
        if not again or len(again) != n:
            return None, None
        halves = list(itertools.combinations(range(2 * n), n)) if math.comb(2 * n, n) <= 4000 else \
            [random.Random(seed).sample(range(2 * n), n) for seed in range(2000)]
        best, ratios = self.best(key), []
        for half in map(set, halves):
            mine = best([pool[i] for i in half])
            other = best([pool[i] for i in range(2 * n) if i not in half])
            ratios.append(mine / other if other else 1)
        ratios.sort()
        cut = int(len(ratios) * 0.025 / len(self.boots))
        return ratios[cut], ratios[-1 - cut]

    def cell(self, key, against="base"):
        """The value of the kernel with the series, its ratio to AGAINST, the interval."""
        mine, other = self.value(key, "patched"), self.value(key, against)
        if mine is None or not other:
            return None
        return Cell(mine, mine / other, *self.interval(key))


def is_slower(cell, bound=1.0):
    return round(cell.ratio, 3) > round(max(cell.high or 1.0, bound), 3)


def rmap_key(row):
    return row["case"], int(row["order"]), int(row["pages"]), int(row["threads"])


def call_key(row):
    return row["operation"], int(row["folio_kib"]), row["mapped"], row["tasks"]


def number(x):
    return "-" if x is None else f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def size(kib):
    return f"{kib // 1024} MiB" if kib >= 1024 else f"{kib} KiB"


def call_name(key):
    op, kib, mapped, tasks = key
    if tasks != "1":
        op += f", {tasks[:-1]} " + {"p": "process", "t": "thread"}[tasks[-1]]
        op += {"1p": "", "1t": ""}.get(tasks, "es" if tasks[-1] == "p" else "s")
    return op, size(kib) + (f", {mapped.upper()}s" if kib == 2048 else "")


def ratios(cell, bold=True):
    """The last two columns of all tables"""
    if not cell:
        return "- | -"
    ratio = f"{cell.ratio:.3f}"
    if bold and cell.high and is_slower(cell):
        ratio = f"**{ratio}**"
    return f"{ratio} | " + (f"{cell.low:.3f} to {cell.high:.3f}" if cell.high else "-")


class Report:
    def __init__(self, directory):
        self.directory = directory
        self.rmap = Figures(read(directory, "rmap.csv"), rmap_key,
                            lambda row: "min_ns" if row["threads"] == "1" else "median_ns",
                            lambda key: min if key[3] == 1 else statistics.median)
        self.calls = Figures(read(directory, "calls.csv"), call_key, lambda row: "min_ns", lambda key: trimmed_mean)
        self.icount = Figures(read(directory, "icount.csv"), call_key, lambda row: "min_ns")
        self.redis = Figures(read(directory, "redis.csv"), lambda row: (row["phase"], row["name"]),
                             lambda row: "value", lambda key: statistics.median)
        self.text = read(directory, "text.csv")
        self.functions = read(directory, "functions.csv")
        self.lines = []

    def line(self, text=""):
        self.lines.append(text)

    # --- conclusion ------------------------------------------------------------

    def count(self, figures, what):
        cells = [cell for key in figures.keys() if key[0] != "locked_add" and (cell := figures.cell(key))]
        if not cells:
            return f"{what}: not measured."
        slower = [cell for cell in cells if is_slower(cell)]
        return (f"{what}: {len(cells)} rows; {sum(cell.ratio < (cell.low or 1) for cell in cells)} are faster than base, "
                f"{len(slower)} slower, {sum(is_slower(cell, SLOWER) for cell in slower)} of these by over "
                f"{SLOWER - 1:.0%}; the others are within what base differs from base.")

    def some(self, op, *layouts):
        """Ratios of OP: instructions for each of LAYOUTS, (KiB, mapped)."""
        found = [(layout, cell) for layout in layouts if (cell := self.icount.cell((op, *layout, "1")))]
        return ", ".join(("no difference" if cell.high and cell.low <= cell.ratio <= cell.high else f"{cell.ratio:.3f}")
                         + f" ({call_name((op, *layout, '1'))[1]})" for layout, cell in found) or "not measured"

    def conclusion(self):
        small, k64, pte, pmd = (4, "pte"), (64, "pte"), (2048, "pte"), (2048, "pmd")
        self.line(f"1. {self.count(self.icount, 'Instructions')}")
        self.line(f"2. {self.count(self.calls, 'Native time of system calls (User Mode Linux)')}")
        self.line(f"3. {self.count(self.rmap, 'Native time of the rmap functions alone')}")
        for n, ops in enumerate((("reuse-byte", "child-reuse-byte"), ("fork", "fork-fork"), ("munmap", "dontneed")), 4):
            self.line(f"{n}. " + "; ".join(f"{op}: {self.some(op, small, k64, pte, pmd)}" for op in ops) + ".")
        rmap = [(text, self.rmap.cell(key)) for text, key in (
            ("1 page", ("dup_file", 9, 1, 1)), ("16 pages", ("dup_file", 9, 16, 1)), ("512", ("dup_file", 9, 512, 1)),
            ("16 by two threads", ("dup_file", 9, 16, 2)), ("a small folio", ("dup_file", 0, 1, 1)))]
        self.line("7. Map and unmap pages of a 2 MiB file folio, the rmap functions: "
                  + (", ".join(f"{cell.ratio:.3f} ({text})" for text, cell in rmap if cell) or "not measured") + ".")
        self.line("8. The worst cases of reading page tables and of batches: "
                  + "; ".join(f"{op}: {self.some(op, pte)}" for op in
                              ("cow-vain-shared", "cow-vain-tables", "reuse-one-kernel", "pagemap-sparse", "cold-sparse")) + ".")
        redis = self.redis.cell(("after", "cpu_ms"))
        self.line("9. redis after BGSAVE, instructions: " + (f"{redis.ratio:.3f}" + (
            f" (base against base: {redis.low:.3f} to {redis.high:.3f})" if redis.high else "") if redis else "not measured")
            + ". Text of mm/ and fs/proc: " + ", ".join(
                f"{now / before:.3f} ({arch})" for arch, before, now in self.text_sizes()) + ".")
        self.line("10. No bare metal was at hand, and instructions are blind to what an atomic one costs. "
                  "\"On bare metal\" below has three commands that measure it.")
        self.line()

    def slower(self):
        """All that is slower than base by over 3 %, outside of the interval, and why."""
        self.line("## Slower than base by over 3 %")
        self.line()
        found = []
        for figures, title in ((self.icount, lambda key: ", ".join(call_name(key)) + ", instructions"),
                               (self.calls, lambda key: ", ".join(call_name(key)) + ", native"),
                               (self.rmap, lambda key: f"rmap functions, {key[0]}, {size(4 << key[1])}, pages {key[2]}, threads {key[3]}"),
                               (self.redis, lambda key: f"redis, {key[0]} BGSAVE, {key[1]}")):
            found += [(cell.ratio, title(key), key) for key in figures.keys()
                      if key[0] != "locked_add" and (figures is not self.redis or key[1] == "cpu_ms") and (cell := figures.cell(key)) and is_slower(cell, SLOWER)]
        for ratio, title, key in sorted(found, reverse=True):
            self.line(f"- {title}: {ratio:.2f}. {EXPLAINED.get(key[0], 'Not explained.')}")
        if not found:
            self.line("None.")
        self.line()

    def text_sizes(self):
        totals = collections.Counter()
        for row in self.text:
            totals[row["arch"], row["kernel"]] += int(row["text"])
        for arch in sorted({arch for arch, _ in totals}):
            yield arch, totals[arch, "base"], totals[arch, "patched"]

    # --- tables ----------------------------------------------------------------

    def table(self):
        self.line("## All operations")
        self.line()
        self.line("Native: us, User Mode Linux. Instructions: thousands, QEMU. A/A: the interval of the ratio of base to "
                  "base, in which a difference means nothing. Bold: slower, outside of it. A copy of a page is 4096 "
                  "instructions and a fault of User Mode Linux 57 us whatever the kernel does: what has many faults is "
                  "not measured natively. One processor: tasks take turns.")
        self.line()
        self.line("| operation | folio | native: base | NO_PAGE_MAPCOUNT | ours | ratio | A/A | "
                  "instructions: base | NO_PAGE_MAPCOUNT | ours | ratio | A/A |")
        self.line("|---" * 12 + "|")
        keys = list(dict.fromkeys(self.icount.keys() + self.calls.keys()))
        order = {op: i for i, op in enumerate(dict.fromkeys(key[0] for key in keys))}
        mixed = False
        for key in sorted(keys, key=lambda key: (order[key[0]], key[3], key[1], key[2] == "pmd")):
            name, folio = call_name(key)
            columns = []
            for figures in self.calls, self.icount:
                columns += [number(v and v / 1000) for v in (figures.value(key, k) for k in KERNELS)]
                columns.append(ratios(figures.cell(key)))
                if any(figures.rows.get((key, k), {}).get("folios") == "mixed" for k in KERNELS):
                    mixed, folio = True, folio.rstrip("*") + "*"
            self.line(f"| {name} | {folio} | " + " | ".join(columns) + " |")
        self.line()
        if mixed:
            self.line("\\* Not all folios were of that size.")
            self.line()

    def rmap_table(self):
        if not self.rmap.keys():
            return
        self.line("## The rmap functions alone, native")
        self.line()
        self.line("ns for one call that maps or unmaps a batch of pages. \"dup\" adds to the mappings of another MM, as "
                  "fork() does; \"add\" is the first mapping, which statistics count; each of the two with the unmapping "
                  "that undoes it, and half of the time of both. \"fork\" and \"zap\" go through 64 MiB, fork with pages "
                  "that were exclusive; \"clear exclusive\" is that part of it, by one atomic instruction for each page. "
                  "\"locked add\", one atomic addition, is the limit for all that counts.")
        self.line()
        self.line("| | folio | pages | threads | base | NO_PAGE_MAPCOUNT | ours | ratio | A/A |")
        self.line("|---" * 9 + "|")
        for key in self.rmap.keys():
            values = " | ".join(number(self.rmap.value(key, k)) for k in KERNELS)
            self.line(f"| {key[0].replace('_', ' ')} | {size(4 << key[1])} | {key[2]} | {key[3]} | {values} | "
                      f"{ratios(self.rmap.cell(key))} |")
        self.line()
        self.line("NO_PAGE_MAPCOUNT accounts a folio as mapped, all of it, as long as a page of it is; the series "
                  "accounts pages that are mapped. So in \"add\" by two threads, each of which maps and unmaps "
                  "some pages of a folio that nobody else maps, statistics change each time, which all processors "
                  "share where a change is of many pages.")
        self.line()

    def redis_table(self):
        names = (("cpu_ms", "ms of redis on a processor"), ("minor_faults", "faults of redis"),
                 ("pgreuse", "of these, pages reused"), ("thp_cow_copy", "pages of large folios copied"))
        if not self.redis.keys():
            return
        self.line("## redis, in instructions")
        self.line()
        self.line("redis in THPs is written to while a child saves its data (BGSAVE), and further when the child has "
                  "gone. In QEMU: a millisecond is a million instructions, counted in tens of ms. Medians.")
        self.line()
        self.line("| | | base | NO_PAGE_MAPCOUNT | ours | ratio | A/A |")
        self.line("|---" * 7 + "|")
        for phase, title in (("during", "while saved"), ("after", "after that")):
            for name, what in names:
                values = (self.redis.value((phase, name), k) for k in KERNELS)
                self.line(f"| {title} | {what} | " + " | ".join("-" if v is None else f"{v:.0f}" for v in values)
                          + f" | {ratios(self.redis.cell((phase, name)))} |")
        self.line()

    def text_table(self):
        if not self.text:
            return
        self.line("## Size of the code")
        self.line()
        self.line("Bytes of code (all sections of text, no data, no strings), without tests.")
        self.line()
        self.line("| | base | NO_PAGE_MAPCOUNT | ours | ratio |")
        self.line("|---" * 5 + "|")
        sizes = collections.defaultdict(collections.Counter)    # of objects, and of their directories
        for row in self.text:
            for name in row["object"], os.path.dirname(row["object"]):
                sizes[row["arch"], name][row["kernel"]] += int(row["text"])
        for (arch, name), of in sizes.items():
            if not name.endswith(".o"):
                row = [of[kernel] for kernel in KERNELS]
                self.line(f"| {arch}, {name} | " + " | ".join(map(str, row)) + f" | {row[2] / row[0]:.3f} |")
        self.line()
        for arch in dict.fromkeys(arch for arch, _ in sizes):
            for what, more in (("objects", {name: of["patched"] - of["base"] for (a, name), of in sizes.items()
                                            if a == arch and name.endswith(".o")}),
                               ("functions", {row["function"]: int(row["patched"]) - int(row["base"])
                                              for row in self.functions if row["arch"] == arch})):
                names = sorted(more, key=more.get, reverse=True)[:8]
                if names:
                    self.line(f"The {what} that grow most, {arch}: " + ", ".join(f"{n} {more[n]:+d}" for n in names)
                              + f"; all others together {sum(more.values()) - sum(more[n] for n in names):+d}.")
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
                       "plot " + ", ".join(f"$p{i}c{c} using 1:2 {styles[c]}" for c, points in enumerate(curves) if points)]
        used = max(len(curves) for _, curves in panels)
        script += ["unset title", "unset tics", "unset border", "unset grid", "unset xlabel", "unset ylabel",
                   "unset logscale", "set lmargin at screen 0.02", "set rmargin at screen 0.98",
                   "set bmargin at screen 0", f"set tmargin at screen {30 / height}",
                   "set key center center horizontal",
                   "plot [0:1] [0:1] " + ", ".join(f"NaN {styles[c]} title '{titles[c]}'" for c in range(used))]
        subprocess.run(["gnuplot"], input="\n".join(script) + "\n", text=True, check=True)

    def plot_rmap(self):
        if not self.rmap.keys():
            return
        panels = []
        for case, title in (("dup_file", "page cache"), ("dup_anon", "anonymous")):
            keys = sorted(key for key in self.rmap.keys() if (key[0], key[1], key[3]) == (case, 9, 1))
            panels.append((f"2 MiB folio, {title}",
                           [[(key[2], self.rmap.value(key, k)) for key in keys] for k in KERNELS]))
        self.plot("rmap.svg", 2, "ns for each batch",
                  ["set xlabel 'pages in the batch'", "set xtics (1,4,16,64,512)", "set yrange [1:10000]"], panels)

        def by_threads(kernel, *case):
            keys = sorted((key for key in self.rmap.keys() if key[:3] == case), key=lambda key: key[3])
            return [(key[3], self.rmap.value(key, kernel)) for key in keys]

        limit = by_threads("patched", "locked_add", 0, 1)
        panels = [(f"{n} page{'s' * (n > 1)} of one 2 MiB folio",
                   [by_threads(k, "dup_file", 9, n) for k in KERNELS] + [limit]) for n in (1, 16, 512)]
        self.plot("contention.svg", 3, "ns for each batch",
                  ["set xlabel 'threads'", "set xtics (1,2,4,8,16)", f"set xrange [0.9:{1.1 * limit[-1][0]}]",
                   "set yrange [1:100000]"], panels)
        self.line("![time against pages in a batch](rmap.svg)")
        self.line("![contention for one 2 MiB page cache folio](contention.svg)")

    def plot_calls(self, figures, name, unit, title, ops):
        panels = []
        for op in ops:
            keys = sorted((key for key in figures.keys() if key[0] == op and key[2] == "pte"), key=lambda key: key[1])
            if keys:
                panels.append((op, [[(key[1], v / 1000) for key in keys if (v := figures.value(key, k))] for k in KERNELS]))
        if panels:
            self.plot(name, 3, unit, ["set xlabel 'folio'", "set xtics ('4K' 4, '16K' 16, '64K' 64, '256K' 256, '2M' 2048)",
                                      "set xrange [3:3000]"], panels)
            self.line(f"![{title}]({name})")

    def write(self):
        self.line("# How fast it is")
        self.line()
        self.line("Ratios of the kernel with the series to base; less is better.")
        self.line()
        self.conclusion()
        self.table()
        self.plot_calls(self.icount, "icount.svg", "thousand instructions", "operations, in instructions",
                        ("munmap", "fork", "pte-dontneed", "cow-byte", "reuse-byte", "child-reuse-byte"))
        self.plot_calls(self.calls, "calls.svg", "us", "system calls, native", ("munmap", "fork", "dontneed"))
        self.plot_rmap()
        self.line()
        self.slower()
        with open(os.path.join(self.directory, "machine")) as f:
            self.line("## Where and how")
            self.line()
            self.lines += f.read().splitlines()
        self.line()
        self.line("What User Mode Linux adds to native times, counted: `host-calls.md`. What the operations are: head of `folio_calls.c`. One figure is the least of all boots; the median with "
                  "more than one thread, and of redis; of native system calls, the mean without the least and the most.")
        self.line()
        self.line("### On bare metal, or under vng")
        self.line()
        self.line("`make bench-metal` writes a folder with two files. The first command on the base kernel, the second on "
                  "the one with the series, both as root, the third anywhere:")
        self.line()
        self.line("    ./bench-metal run base.csv")
        self.line("    ./bench-metal run ours.csv")
        self.line("    ./bench-metal table base.csv ours.csv")
        self.line()
        self.rmap_table()
        self.redis_table()
        self.text_table()
        with open(os.path.join(self.directory, "report.md"), "w") as f:
            f.write("\n".join(self.lines).rstrip() + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    Report(sys.argv[1]).write()
