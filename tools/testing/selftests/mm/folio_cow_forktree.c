// SPDX-License-Identifier: GPL-2.0
/*
 * folio_cow_forktree - what is copied on write when a fork tree has withered
 *
 * A process fills memory that consists of large folios, and forks. When all
 * its relatives that share the memory are gone, the one process that is left
 * writes to every page. Nobody else needs the old contents, so nothing has to
 * be copied, and few faults for each folio are enough to find that out:
 *
 *	forked:	   A -> B	   A -> B	   A -> B -> C	   A -> B, C, ... K
 *	gone:	        B	   A		   A    B	   all but G
 *	writes:	   A		        B	             C	           G
 *
 * While a relative is alive, on the other hand, every page must be copied.
 *
 * The test itself (the master) never maps the memory. It tells the processes
 * over pipes what to do, and looks at them from outside:
 *
 *	master --- commands ---> A, B, ... K	 fork, exit, exec, write, check
 *	   |
 *	   +--- /proc/PID/pagemap, kpageflags	 which page is where: a page whose
 *	   |					 PFN changes by the write is copied
 *	   +--- /proc/vmstat			 thp_cow_*, where the kernel has it
 *
 * The writer counts its page faults. It must not look at the memory before it
 * writes: what it reads enters the TLB, and that may cost faults of its own.
 *
 * Every word of every page says who wrote it, and after each tree every process
 * that is left checks all of them. That has to be right on any kernel. The bounds
 * on copies and faults are for kernels that count thp_cow_reuse.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <fcntl.h>
#include <getopt.h>
#include <linux/mempolicy.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/param.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "kselftest.h"
#include "folio_cow_rseq.h"
#include "vm_util.h"
#include "hugepage_settings.h"

#define NR_WORKERS	11	/* a zygote and its ten children */
#define MAX_STEPS	8
#define DEFAULT_MIB	16
#define MAX_MIB		512	/* twice that has to fit where all is copied */
#define REPLY_SECONDS	120	/* a debug kernel that is emulated takes its time */
/* Above this (arm64 with 64K pages: 512 MiB) a row would take too long. */
#define MAX_PMD_SIZE	(64UL << 20)

enum op {
	OP_END,
	OP_FORK,
	OP_EXIT,
	OP_EXEC,
	OP_WRITE,
	/* The rest is not for the trees: the master uses it. */
	OP_MAP,
	OP_CHECK,
	OP_REAP,
};

/* Processes are called A to K; A fills the memory. */
struct step {
	enum op op;
	char who;		/* forks, exits, ... */
	char from;		/* its children, when it forks */
	char to;
};

struct tree {
	const char *name;	/* who is gone, in this order: who writes */
	char writer;		/* writes to every page in the end */
	bool copies;		/* must copy: others need the old contents */
	struct step steps[MAX_STEPS];
};

static const struct tree trees[] = {
	{
		.name = "child gone: parent",
		.writer = 'A',
		.steps = {
			{ OP_FORK, 'A', 'B', 'B' },
			{ OP_EXIT, 'B' },
		},
	}, {
		.name = "parent gone: child",
		.writer = 'B',
		.steps = {
			{ OP_FORK, 'A', 'B', 'B' },
			{ OP_EXIT, 'A' },
		},
	}, {
		.name = "grandparent, parent gone: grandchild",
		.writer = 'C',
		.steps = {
			{ OP_FORK, 'A', 'B', 'B' },
			{ OP_FORK, 'B', 'C', 'C' },
			{ OP_EXIT, 'A' },
			{ OP_EXIT, 'B' },
		},
	}, {
		.name = "parent, grandparent gone: grandchild",
		.writer = 'C',
		.steps = {
			{ OP_FORK, 'A', 'B', 'B' },
			{ OP_FORK, 'B', 'C', 'C' },
			{ OP_EXIT, 'B' },
			{ OP_EXIT, 'A' },
		},
	}, {
		.name = "child, grandchild gone: grandparent",
		.writer = 'A',
		.steps = {
			{ OP_FORK, 'A', 'B', 'B' },
			{ OP_FORK, 'B', 'C', 'C' },
			{ OP_EXIT, 'B' },
			{ OP_EXIT, 'C' },
		},
	}, {
		.name = "zygote, 9 of 10 gone: the last child",
		.writer = 'G',
		.steps = {
			{ OP_FORK, 'A', 'B', 'K' },
			{ OP_EXIT, 'B', .to = 'F' },
			{ OP_EXIT, 'H', .to = 'K' },
			{ OP_EXIT, 'A' },
		},
	}, {
		.name = "all 10 children gone: zygote",
		.writer = 'A',
		.steps = {
			{ OP_FORK, 'A', 'B', 'K' },
			{ OP_EXIT, 'B', .to = 'K' },
		},
	}, {
		.name = "child exec'ed: parent",
		.writer = 'A',
		.steps = {
			{ OP_FORK, 'A', 'B', 'B' },
			{ OP_EXEC, 'B' },
		},
	}, {
		.name = "parent copied all: child",
		.writer = 'B',
		.steps = {
			{ OP_FORK, 'A', 'B', 'B' },
			{ OP_WRITE, 'A' },
		},
	}, {
		.name = "child alive: parent",
		.writer = 'A',
		.copies = true,
		.steps = {
			{ OP_FORK, 'A', 'B', 'B' },
		},
	}, {
		.name = "parent alive: child",
		.writer = 'B',
		.copies = true,
		.steps = {
			{ OP_FORK, 'A', 'B', 'B' },
		},
	}, {
		.name = "parent gone, sibling alive: child",
		.writer = 'C',
		.copies = true,
		.steps = {
			{ OP_FORK, 'A', 'B', 'C' },
			{ OP_EXIT, 'A' },
		},
	},
};

struct size {
	size_t pages;		/* 0: as many as a PMD maps */
	bool pmd;		/* mapped so, and not by PTEs */
};

static const struct size sizes[] = {
	{ .pages = 4 },
	{ .pages = 16 },
	{ .pmd = false },
	{ .pmd = true },
};

enum event {
	EV_REUSE,
	EV_ADOPT,
	EV_BATCH,
	EV_COPY,
	NR_EVENTS,
};

static const char * const event_keys[] = {
	[EV_REUSE]	= "thp_cow_reuse",
	[EV_ADOPT]	= "thp_cow_adopt",
	[EV_BATCH]	= "thp_cow_batch",
	[EV_COPY]	= "thp_cow_copy",
};

struct row {
	unsigned long copied;
	unsigned long shared;		/* written to, but seen by others */
	long faults;
	long long events[NR_EVENTS];	/* below 0: the kernel has none */
	bool intact;			/* the folios have not been split */
	bool data_ok;
	const char *skip;		/* why, or NULL */
	const char *why;		/* it fails, or NULL */
	const char *remark;		/* the same, or what a base kernel may do */
};

struct worker {
	pid_t pid;
	char parent;		/* 0: the master, or gone */
	char mark;		/* who wrote last to its memory, after A filled it */
	bool execed;		/* has no memory of ours any more */
	int cmd[2];
	int reply[2];
};

struct command {
	enum op op;
	char who;		/* to fork; whose mark to write or to expect */
	pid_t pid;		/* to reap */
};

struct reply {
	int err;
	pid_t pid;		/* of the child */
	long faults;
	unsigned long nr_bad;
	unsigned long bad_page;	/* the first one */
	__u64 bad_word;
};

static struct {
	size_t pmd_size;
	size_t len;
	unsigned long nr_pages;
	char *arena;
	__u64 *before;		/* pagemap entries of the writer */
	__u64 *after;
	__u64 *other;
	int kpageflags;
	unsigned int mib;
	bool quiet;
	bool raw;
	bool strict;
	bool has_events;

	/* of the row at work */
	const struct size *size;
	size_t folio_size;
	unsigned long folio_pages;
	struct worker workers[NR_WORKERS];
} test;

static struct row rows[ARRAY_SIZE(sizes)][ARRAY_SIZE(trees)];

static struct worker *worker(char who)
{
	return &test.workers[who - 'A'];
}

/* The contents: each word names its writer, its page and its place there */

#define MARK_PLACE	0xffffffULL

static __u64 stamp(char who, unsigned long page, __u64 place)
{
	return (__u64)who << 56 | (__u64)page << 24 | place;
}

/* The u64 that a writer changes: at another offset in each page. */
static unsigned long mark_place(unsigned long page)
{
	return page % (psize() / sizeof(__u64));
}

static void fill(__u64 *word)
{
	unsigned long page, place;

	for (page = 0; page < test.nr_pages; page++)
		for (place = 0; place < psize() / sizeof(*word); place++)
			*word++ = stamp('A', page, place);
}

static void check(const __u64 *word, char mark, struct reply *reply)
{
	unsigned long page, place;
	__u64 want;

	for (page = 0; page < test.nr_pages; page++) {
		for (place = 0; place < psize() / sizeof(*word); place++, word++) {
			want = stamp('A', page, place);
			if (mark && place == mark_place(page))
				want = stamp(mark, page, MARK_PLACE);
			if (*word == want)
				continue;
			if (!reply->nr_bad++) {
				reply->bad_page = page;
				reply->bad_word = *word;
			}
		}
	}
}

/* What is measured: between the two calls is nothing else that could fault. */
static long write_marks(__u64 *words, unsigned long nr_pages, char who)
{
	const unsigned long words_per_page = psize() / sizeof(*words);
	struct rusage before, after;
	unsigned long page;

	getrusage(RUSAGE_THREAD, &before);
	for (page = 0; page < nr_pages; page++)
		words[page * words_per_page + mark_place(page)] =
			stamp(who, page, MARK_PLACE);
	getrusage(RUSAGE_THREAD, &after);
	return after.ru_minflt - before.ru_minflt +
	       after.ru_majflt - before.ru_majflt;
}

/* The processes that map memory */

/*
 * Ends without the atexit handlers, which are the master's. Without a writer
 * left, a worker reads EOF should the master die.
 */
static void worker_init(void)
{
	int i;

	signal(SIGTERM, SIG_DFL);
	signal(SIGINT, SIG_DFL);
	signal(SIGHUP, SIG_DFL);
	signal(SIGQUIT, SIG_DFL);
	for (i = 0; i < NR_WORKERS; i++)
		close(test.workers[i].cmd[1]);
}

/* A change to one page splits the PMD; the change back keeps the PTEs. */
static int worker_split_pmds(void)
{
	char *addr;

	for (addr = test.arena; addr < test.arena + test.len; addr += test.pmd_size)
		if (mprotect(addr, psize(), PROT_READ) ||
		    mprotect(addr, psize(), PROT_READ | PROT_WRITE))
			return -errno;
	return 0;
}

static int worker_map(void)
{
	char *mem = mmap(test.arena, test.len, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	if (mem == MAP_FAILED || madvise(mem, test.len, MADV_HUGEPAGE))
		return -errno;
	fill((__u64 *)mem);
	/*
	 * khugepaged must not collapse what we map by PTEs. It leaves such a VMA
	 * alone; before this point, what it could collapse has a PMD already.
	 */
	if (madvise(mem, test.len, MADV_NOHUGEPAGE))
		return -errno;
	if (test.folio_size == test.pmd_size && !test.size->pmd)
		return worker_split_pmds();
	return 0;
}

/*
 * Twice, by the same code: the first time, on a word of its own, is for the
 * faults that the code, the stack and the counters take.
 */
static long worker_write(char who)
{
	__u64 word;
	const struct {
		__u64 *words;
		unsigned long nr_pages;
	} runs[] = {
		{ &word, 1 },
		{ (__u64 *)test.arena, test.nr_pages },
	};
	unsigned int i;
	long faults;

	touch_rseq();
	for (i = 0; i < ARRAY_SIZE(runs); i++)
		faults = write_marks(runs[i].words, runs[i].nr_pages, who);
	return faults;
}

/* To the same program, which goes on in worker_execed(). */
static int worker_exec(char self)
{
	const struct worker *w = worker(self);
	char cmd[16], reply[16];

	snprintf(cmd, sizeof(cmd), "%d", w->cmd[0]);
	snprintf(reply, sizeof(reply), "%d", w->reply[1]);
	execl("/proc/self/exe", "folio_cow_forktree", "--execed", cmd, reply, NULL);
	return -errno;
}

static void worker_answer(char self, const struct reply *reply)
{
	if (write(worker(self)->reply[1], reply, sizeof(*reply)) != sizeof(*reply))
		_exit(1);
}

static void worker_do(char *self, const struct command *cmd, struct reply *reply)
{
	switch (cmd->op) {
	case OP_MAP:
		reply->err = worker_map();
		break;
	case OP_FORK:
		reply->pid = fork();
		if (reply->pid < 0)
			reply->err = -errno;
		else if (!reply->pid)
			*self = cmd->who;
		break;
	case OP_EXEC:
		reply->err = worker_exec(*self);
		break;
	case OP_WRITE:
		reply->faults = worker_write(cmd->who);
		break;
	case OP_CHECK:
		check((__u64 *)test.arena, cmd->who, reply);
		break;
	case OP_REAP:
		reply->err = waitpid(cmd->pid, NULL, 0) == cmd->pid ? 0 : -errno;
		break;
	default:
		reply->err = -EINVAL;
	}
}

/* The first answer, of a new worker, says that it is ready. */
static __noreturn void worker_run(char self)
{
	struct reply reply = {};
	struct command cmd;

	for (;;) {
		worker_answer(self, &reply);
		if (read(worker(self)->cmd[0], &cmd, sizeof(cmd)) != sizeof(cmd) ||
		    cmd.op == OP_EXIT)
			_exit(0);
		memset(&reply, 0, sizeof(reply));
		worker_do(&self, &cmd, &reply);
	}
}

static __noreturn void worker_execed(char **argv)
{
	worker('A')->cmd[0] = atoi(argv[0]);
	worker('A')->reply[1] = atoi(argv[1]);
	worker_run('A');
}

/* The master's side of the pipes. None of this can fail on a healthy system. */

static void wait_reply(char who, struct reply *reply)
{
	const struct worker *w = worker(who);
	struct pollfd pfd = { .fd = w->reply[0], .events = POLLIN };

	if (poll(&pfd, 1, REPLY_SECONDS * 1000) != 1 ||
	    read(w->reply[0], reply, sizeof(*reply)) != sizeof(*reply))
		ksft_exit_fail_msg("process %c does not answer\n", who);
	if (reply->err)
		ksft_exit_fail_msg("process %c: %s\n", who, strerror(-reply->err));
}

static void send_command(char who, const struct command *cmd)
{
	if (write(worker(who)->cmd[1], cmd, sizeof(*cmd)) != sizeof(*cmd))
		ksft_exit_fail_perror("writing to a process");
}

static struct reply tell(char who, struct command cmd)
{
	struct reply reply;

	send_command(who, &cmd);
	wait_reply(who, &reply);
	return reply;
}

static void start_first(void)
{
	struct reply ready;
	pid_t pid = fork();

	if (pid < 0)
		ksft_exit_fail_perror("fork");
	if (!pid) {
		worker_init();
		worker_run('A');
	}
	worker('A')->pid = pid;
	worker('A')->parent = 0;
	worker('A')->mark = 0;
	worker('A')->execed = false;
	wait_reply('A', &ready);
}

static void do_fork(char parent, char child)
{
	struct reply ready, reply = tell(parent, (struct command) {
		.op = OP_FORK, .who = child
	});

	worker(child)->pid = reply.pid;
	worker(child)->parent = parent;
	worker(child)->mark = worker(parent)->mark;
	worker(child)->execed = false;
	wait_reply(child, &ready);
}

/*
 * A process that can be reaped has dropped its memory. Those whose parent is
 * gone are the master's, as it is a subreaper.
 */
static void do_exit(char who)
{
	struct worker *w = worker(who);
	char i;

	send_command(who, &(struct command) { .op = OP_EXIT });
	if (w->parent)
		tell(w->parent, (struct command) { .op = OP_REAP, .pid = w->pid });
	else if (waitpid(w->pid, NULL, 0) != w->pid)
		ksft_exit_fail_perror("waitpid");
	w->pid = 0;
	for (i = 'A'; i < 'A' + NR_WORKERS; i++)
		if (worker(i)->parent == who)
			worker(i)->parent = 0;
}

/* From the last, so that parents are there to reap. */
static void exit_all(void)
{
	char who;

	for (who = 'A' + NR_WORKERS - 1; who >= 'A'; who--)
		if (worker(who)->pid)
			do_exit(who);
}

static long do_write(char who)
{
	struct reply reply = tell(who, (struct command) {
		.op = OP_WRITE, .who = who
	});

	worker(who)->mark = who;
	return reply.faults;
}

static void do_step(const struct step *step)
{
	char i;

	switch (step->op) {
	case OP_FORK:
		for (i = step->from; i <= step->to; i++)
			do_fork(step->who, i);
		break;
	case OP_EXIT:
		for (i = step->who; i <= MAX(step->who, step->to); i++)
			do_exit(i);
		break;
	case OP_EXEC:
		tell(step->who, (struct command) { .op = OP_EXEC });
		worker(step->who)->execed = true;
		break;
	case OP_WRITE:
		do_write(step->who);
		break;
	default:
		ksft_exit_fail_msg("no such step: %d\n", step->op);
	}
}

/* What the kernel says */

static int open_pagemap(char who)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", worker(who)->pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		ksft_exit_fail_perror(path);
	return fd;
}

static void read_pagemap(char who, __u64 *entries)
{
	const off_t offset = (uintptr_t)test.arena / psize() * sizeof(*entries);
	const ssize_t len = test.nr_pages * sizeof(*entries);
	int fd = open_pagemap(who);

	if (pread(fd, entries, len, offset) != len)
		ksft_exit_fail_perror("reading pagemap");
	close(fd);
}

/* The number of PMD-mapped pages. Only PAGEMAP_SCAN returns it. */
static unsigned long pmd_mapped_pages(char who)
{
	struct page_region region;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)test.arena,
		.end = (uintptr_t)test.arena + test.len,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = PAGE_IS_HUGE | PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_HUGE,
	};
	int fd = open_pagemap(who);
	unsigned long nr = 0;
	int ret;

	while ((ret = ioctl(fd, PAGEMAP_SCAN, &arg)) > 0) {
		nr += (region.end - region.start) / psize();
		arg.start = arg.walk_end;
	}
	if (ret < 0)
		ksft_exit_fail_perror("PAGEMAP_SCAN");
	close(fd);
	return nr;
}

/* Whether one folio, of the size asked for, begins at this PFN. */
static bool is_folio(__u64 pfn)
{
	static __u64 flags[(MAX_PMD_SIZE >> 12) + 1];
	unsigned long i, nr = test.folio_pages;
	ssize_t len;

	/* One page more shows that it ends there; at the end of memory is none. */
	len = pread(test.kpageflags, flags, (nr + 1) * sizeof(*flags), pfn * sizeof(*flags));
	if (len < (ssize_t)(nr * sizeof(*flags)))
		return false;
	if (len == (ssize_t)((nr + 1) * sizeof(*flags)) && (flags[nr] & KPF_COMPOUND_TAIL))
		return false;
	if (!(flags[0] & KPF_COMPOUND_HEAD) || !(flags[0] & KPF_THP))
		return false;
	for (i = 1; i < nr; i++)
		if (!(flags[i] & KPF_COMPOUND_TAIL))
			return false;
	return true;
}

/* Whether the pages are whole folios of the size, in their natural places. */
static bool are_folios(const __u64 *entries)
{
	const unsigned long nr = test.folio_pages;
	unsigned long page;

	for (page = 0; page < test.nr_pages; page++) {
		if (!PAGEMAP_PRESENT(entries[page]) ||
		    PAGEMAP_PFN(entries[page]) % nr != page % nr)
			return false;
		if (page % nr ? PAGEMAP_PFN(entries[page]) !=
				PAGEMAP_PFN(entries[page - 1]) + 1 :
				!is_folio(PAGEMAP_PFN(entries[page])))
			return false;
	}
	return true;
}

static bool mapped_as_asked(char who)
{
	return pmd_mapped_pages(who) == (test.size->pmd ? test.nr_pages : 0);
}

static void read_events(long long *events)
{
	FILE *file = fopen("/proc/vmstat", "r");
	long long value;
	char key[64];
	int i;

	if (!file)
		ksft_exit_fail_perror("/proc/vmstat");
	for (i = 0; i < NR_EVENTS; i++)
		events[i] = -1;
	while (fscanf(file, "%63s %lld", key, &value) == 2)
		for (i = 0; i < NR_EVENTS; i++)
			if (!strcmp(key, event_keys[i]))
				events[i] = value;
	fclose(file);
}

/* Rows */

static unsigned long nr_folios(void)
{
	return test.nr_pages / test.folio_pages;
}

/* Faults to write all of a folio in order: the window of each is twice the last one. */
static unsigned long nr_windows(void)
{
	const unsigned long min = psize() == 4096 ? 16 : 128;
	unsigned long nr, windows = 1;

	for (nr = test.folio_pages; nr > min && !test.size->pmd; nr /= 2)
		windows++;
	return windows;
}

static size_t size_bytes(const struct size *size)
{
	return size->pages ? size->pages * psize() : test.pmd_size;
}

static const char *size_name(const struct size *size)
{
	static char buf[64];
	size_t bytes = size_bytes(size);
	bool mib = bytes >= 1UL << 20;

	snprintf(buf, sizeof(buf), "%zu %s%s", bytes >> (mib ? 20 : 10), mib ? "MiB" : "KiB",
		 size->pages ? "" : size->pmd ? " by PMDs" : " by PTEs");
	return buf;
}

static bool has_memory(char who)
{
	return worker(who)->pid && !worker(who)->execed;
}

/* Each process finds what it should: no more and no less than its own writes. */
static bool check_data(void)
{
	struct reply reply;
	bool ok = true;
	char who;

	for (who = 'A'; who < 'A' + NR_WORKERS; who++) {
		if (!has_memory(who))
			continue;
		reply = tell(who, (struct command) {
			.op = OP_CHECK, .who = worker(who)->mark
		});
		if (!reply.nr_bad)
			continue;
		ok = false;
		ksft_print_msg("%c finds %lu wrong words, the first is %#llx in page %lu\n",
			       who, reply.nr_bad, (unsigned long long)reply.bad_word,
			       reply.bad_page);
	}
	return ok;
}

/* Where the writer and another one have the same page, after the write. */
static unsigned long count_shared(char writer)
{
	unsigned long page, nr = 0;
	char who;

	for (who = 'A'; who < 'A' + NR_WORKERS; who++) {
		if (who == writer || !has_memory(who))
			continue;
		read_pagemap(who, test.other);
		for (page = 0; page < test.nr_pages; page++)
			nr += PAGEMAP_PRESENT(test.other[page]) &&
			      PAGEMAP_PFN(test.other[page]) == PAGEMAP_PFN(test.after[page]);
	}
	return nr;
}

static void measure(char writer, struct row *row)
{
	long long events[NR_EVENTS];
	unsigned long page;
	int i;

	read_events(events);
	row->faults = do_write(writer);
	read_events(row->events);
	for (i = 0; i < NR_EVENTS; i++)
		if (events[i] >= 0)
			row->events[i] -= events[i];
	read_pagemap(writer, test.after);
	for (page = 0; page < test.nr_pages; page++)
		row->copied += PAGEMAP_PFN(test.before[page]) != PAGEMAP_PFN(test.after[page]);
	row->intact = are_folios(test.after);
	row->shared = count_shared(writer);
	row->data_ok = check_data();
}

/*
 * The events are counted for the whole system, so others may add to them, but
 * never take away: each page became writable in a fault, or with a batch.
 */
static bool events_missing(const struct tree *tree, const struct row *row)
{
	const long long *ev = row->events;
	int i;

	for (i = 0; i < NR_EVENTS; i++)
		if (ev[i] < 0)
			return false;
	if (tree->copies)
		return ev[EV_COPY] < (long long)row->copied;
	/* A PMD is made writable without any of these. */
	return !test.size->pmd &&
	       ev[EV_REUSE] + ev[EV_ADOPT] + ev[EV_BATCH] < (long long)test.nr_pages;
}

/* Returns what is wrong, on any kernel, or NULL. */
static const char *find_harm(const struct tree *tree, const struct row *row)
{
	if (!row->data_ok)
		return "wrong data";
	if (row->shared)
		return "wrote to pages that others have, too";
	if (tree->copies && row->copied != test.nr_pages)
		return "did not copy all";
	return NULL;
}

/* Returns what is wrong with a kernel that has the bounds, or NULL. */
static const char *find_waste(const struct tree *tree, const struct row *row)
{
	if (!tree->copies && row->copied)
		return "needless copies";
	if (!tree->copies && (unsigned long)row->faults > nr_folios() * nr_windows())
		return "too many faults";
	if (!tree->copies && !row->intact)
		return "split folios";
	if (events_missing(tree, row))
		return "fewer events than pages";
	return NULL;
}

static void judge(const struct tree *tree, struct row *row)
{
	const char *waste = find_waste(tree, row);

	row->why = find_harm(tree, row);
	if (!row->why && (test.strict || test.has_events))
		row->why = waste;
	row->remark = row->why ?: waste;
}

/* Returns why the tree cannot be grown, or NULL. */
static const char *grow(const struct tree *tree)
{
	const struct step *step;

	start_first();
	tell('A', (struct command) { .op = OP_MAP });
	read_pagemap('A', test.before);
	if (!are_folios(test.before))
		return "no memory in such folios to be had";
	if (!mapped_as_asked('A'))
		return "the folios are not mapped that way";
	for (step = tree->steps; step < tree->steps + MAX_STEPS && step->op; step++)
		do_step(step);
	/* Swapped out, migrated, split: the system does that when it must. */
	read_pagemap(tree->writer, test.before);
	if (!are_folios(test.before) || !mapped_as_asked(tree->writer))
		return "the folios changed before they were written to";
	return NULL;
}

/* For scripts: columns with tabs between them. */
static void print_raw(const struct size *size, const struct tree *tree, const struct row *row)
{
	const unsigned long nr = row->skip ? 0 : test.nr_pages;
	int i;

	ksft_print_msg("row\t%s\t%s\t%s\t%s\t%lu\t%lu\t%lu\t%ld", size_name(size), tree->name,
		       tree->copies ? "copy" : "reuse",
		       row->skip ? "skip" : row->why ? "fail" : "ok",
		       nr, nr ? nr_folios() : 0, row->copied, row->faults);
	for (i = 0; i < NR_EVENTS; i++)
		printf("\t%lld", row->skip ? -1 : row->events[i]);
	printf("\t%s\n", row->skip ?: row->remark ?: "");
}

static void run_row(const struct size *size, const struct tree *tree, struct row *row)
{
	if (!row->skip)
		row->skip = grow(tree);
	if (!row->skip) {
		measure(tree->writer, row);
		judge(tree, row);
	}
	exit_all();
	if (test.raw)
		print_raw(size, tree, row);
	if (row->skip)
		ksft_test_result_skip("%s: %s (%s)\n", size_name(size), tree->name, row->skip);
	else if (row->why)
		ksft_test_result_fail("%s: %s (%s)\n", size_name(size), tree->name, row->why);
	else
		ksft_test_result_pass("%s: %s\n", size_name(size), tree->name);
}

/* Folios of this size alone, on request, and at any cost. */
static void enable_size(size_t bytes)
{
	struct thp_settings settings;
	int i;

	thp_read_settings(&settings);
	settings.thp_enabled = THP_MADVISE;
	settings.thp_defrag = THP_DEFRAG_ALWAYS;
	for (i = 0; i < NR_ORDERS; i++)
		settings.hugepages[i].enabled = THP_NEVER;
	settings.hugepages[sz2ord(bytes, psize())].enabled = THP_MADVISE;
	thp_write_settings(&settings);
}

/* Returns why there can be no such folios, or NULL. */
static const char *prepare_size(const struct size *size)
{
	const size_t bytes = size_bytes(size);

	if (bytes > MAX_PMD_SIZE)
		return "a PMD maps too much here";
	if (!(thp_supported_orders() & (1UL << sz2ord(bytes, psize()))))
		return "no such folios here";
	test.size = size;
	test.folio_size = bytes;
	test.folio_pages = bytes / psize();
	enable_size(bytes);
	return NULL;
}

static void run_size(unsigned int nr)
{
	const char *skip = prepare_size(&sizes[nr]);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(trees); i++) {
		rows[nr][i].skip = skip;
		run_row(&sizes[nr], &trees[i], &rows[nr][i]);
	}
}

/* The table */

static void print_event(long long value)
{
	if (value < 0)
		printf(" %7s", "-");
	else
		printf(" %7lld", value);
}

static void print_row(const struct tree *tree, const struct row *row)
{
	int i;

	ksft_print_msg("  %-37s", tree->name);
	if (row->skip) {
		printf(" skipped: %s\n", row->skip);
		return;
	}
	printf(" %7lu %7ld", row->copied, row->faults);
	for (i = 0; i < EV_COPY; i++)
		print_event(row->events[i]);
	/* Without the series, a fault for each page is no news. */
	if (row->why || (row->copied && !tree->copies))
		printf("  <-- %s", row->remark);
	printf("%s\n", tree->copies ? "  (must copy)" : "");
}

static void print_rows(unsigned int nr)
{
	const size_t bytes = size_bytes(&sizes[nr]);
	char title[64];
	unsigned int i;

	snprintf(title, sizeof(title), "%s: %zu folios", size_name(&sizes[nr]), test.len / bytes);
	ksft_print_msg("\n");
	ksft_print_msg("%-39s %7s %7s %7s %7s %7s\n", title,
		       "copied", "faults", "reuse", "adopt", "batch");
	for (i = 0; i < ARRAY_SIZE(trees); i++)
		print_row(&trees[i], &rows[nr][i]);
}

static void print_table(void)
{
	unsigned int i;

	ksft_print_msg("\n");
	ksft_print_msg("Who is gone: who then writes, once, to each of the %lu pages of %zu MiB.\n",
		       test.nr_pages, test.len >> 20);
	for (i = 0; i < ARRAY_SIZE(sizes); i++)
		print_rows(i);
	ksft_print_msg("\n");
	if (!test.has_events)
		ksft_print_msg("Without thp_cow_reuse, copies and faults are not judged.\n");
}

/* Set-up */

/* For the master alone: what the others do not inherit, they cannot disturb. */
static void *alloc_private(size_t size)
{
	void *mem = mmap(NULL, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (mem == MAP_FAILED || madvise(mem, size, MADV_DONTFORK))
		ksft_exit_fail_perror("mmap");
	return mem;
}

/* The address is reserved, so that it is free in A; there is no memory there. */
static void setup_memory(void)
{
	size_t align;
	char *mem;

	test.pmd_size = read_pmd_pagesize();
	align = test.pmd_size && test.pmd_size <= MAX_PMD_SIZE ? test.pmd_size : 1UL << 20;
	test.len = roundup((size_t)test.mib << 20, align);
	test.nr_pages = test.len / psize();
	mem = mmap(NULL, test.len + align, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	test.arena = (char *)roundup((uintptr_t)mem, align);
	test.before = alloc_private(test.nr_pages * sizeof(__u64));
	test.after = alloc_private(test.nr_pages * sizeof(__u64));
	test.other = alloc_private(test.nr_pages * sizeof(__u64));
}

static void setup_kernel(void)
{
	long long events[NR_EVENTS];

	test.kpageflags = open("/proc/kpageflags", O_RDONLY);
	if (test.kpageflags < 0)
		ksft_exit_skip("%s\n", geteuid() ?
			       "needs root: only root may read /proc/kpageflags" :
			       "no /proc/kpageflags (CONFIG_PROC_PAGE_MONITOR)");
	if (!thp_available())
		ksft_exit_skip("no transparent huge pages\n");
	read_events(events);
	test.has_events = events[EV_REUSE] >= 0;
	/*
	 * With any policy of its own, a process is left alone by NUMA balancing,
	 * whose faults we would count. Without NUMA, it is left alone anyway.
	 */
	syscall(__NR_set_mempolicy, MPOL_LOCAL, NULL, 0);
	thp_save_settings();
}

static void setup_workers(void)
{
	int i;

	if (prctl(PR_SET_CHILD_SUBREAPER, 1))
		ksft_exit_fail_perror("PR_SET_CHILD_SUBREAPER");
	for (i = 0; i < NR_WORKERS; i++)
		if (pipe(test.workers[i].cmd) || pipe(test.workers[i].reply))
			ksft_exit_fail_perror("pipe");
}

static void usage(void)
{
	printf("Usage: folio_cow_forktree [-hqrs] [-m MiB]\n"
	       "Count the pages that a process copies when its relatives are gone.\n"
	       "  -m, --mib MiB  memory of the process (%d)\n"
	       "  -q, --quiet    no table, only the results\n"
	       "  -r, --raw      no table, but a line for a program with each result\n"
	       "  -s, --strict   bounds on copies and faults on any kernel\n"
	       "Needs root. Exit status: 0 all is well, 1 some fail, 4 skipped.\n",
	       DEFAULT_MIB);
}

static unsigned int parse_mib(const char *arg)
{
	unsigned long mib;
	char *end;

	errno = 0;
	mib = strtoul(arg, &end, 0);
	if (errno || end == arg || *end || !mib || mib > MAX_MIB) {
		fprintf(stderr, "folio_cow_forktree: -m takes 1 to %d\n", MAX_MIB);
		exit(KSFT_FAIL);
	}
	return mib;
}

static void parse_options(int argc, char **argv)
{
	static const struct option options[] = {
		{ "help", no_argument, NULL, 'h' },
		{ "mib", required_argument, NULL, 'm' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "raw", no_argument, NULL, 'r' },
		{ "strict", no_argument, NULL, 's' },
		{},
	};
	int opt;

	test.mib = DEFAULT_MIB;
	while ((opt = getopt_long(argc, argv, "hm:qrs", options, NULL)) != -1) {
		switch (opt) {
		case 'h':
			usage();
			exit(KSFT_PASS);
		case 'm':
			test.mib = parse_mib(optarg);
			break;
		case 'q':
			test.quiet = true;
			break;
		case 'r':
			test.raw = true;
			break;
		case 's':
			test.strict = true;
			break;
		default:
			exit(KSFT_FAIL);
		}
	}
}

int main(int argc, char **argv)
{
	unsigned int i;

	if (argc == 4 && !strcmp(argv[1], "--execed"))
		worker_execed(argv + 2);
	parse_options(argc, argv);
	ksft_print_header();
	setup_kernel();
	ksft_set_plan(ARRAY_SIZE(sizes) * ARRAY_SIZE(trees));
	setup_memory();
	setup_workers();
	for (i = 0; i < ARRAY_SIZE(sizes); i++)
		run_size(i);
	if (!test.quiet && !test.raw)
		print_table();
	ksft_finished();
}
