// SPDX-License-Identifier: GPL-2.0
/*
 * How long system calls and faults take on memory that consists of folios of one
 * size: 4 KiB to 2 MiB, the latter mapped by PTEs and by PMDs. As root, on a kernel
 * with huge pages of all these sizes.
 *
 *	folio_calls [-m MIB] [-r ROUNDS] [-s SIZE]... [-x PROGRAM] [-j COMMAND]
 *
 * PROGRAM is run as it is, COMMAND by a shell: a job that people have.
 *
 * Each line, tab-separated: "calls", operation, anon or file, KiB of a folio, pte
 * or pmd, the least and the median ns of all rounds, faults, and "ok" or "mixed":
 * the kernel did not give folios of that size alone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KIB		1024UL
#define MIB		(1024 * KIB)
#define PMD		(2 * MIB)
#define MAX_ROUNDS	64
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

#define THP		"/sys/kernel/mm/transparent_hugepage/"

enum op {
	FAULT, SMAPS, FORK, EXIT, WRITE_AFTER_CHILD, WRITE_ONE, WRITE_EIGHT,
	WRITE_AFTER_PARENT, CHILD_MUNMAP, DONTNEED, MUNMAP, COLD_ALTERNATE, COLD_SPARSE,
	SMAPS_SPARSE, PAGEMAP_SPARSE, PAGEMAP_EACH_SPARSE, FILE_FAULT, FILE_SMAPS,
	FILE_MUNMAP, EXEC, JOB, NR_OPS
};

static const char *const op_names[NR_OPS] = {
	[FAULT]			= "fault",
	[SMAPS]			= "smaps_rollup",
	[FORK]			= "fork",
	[EXIT]			= "child_exit",
	[WRITE_AFTER_CHILD]	= "write_after_child_exit",
	[WRITE_ONE]		= "write_one_page_of_each_folio",
	[WRITE_EIGHT]		= "write_every_eighth_of_each_folio",
	[WRITE_AFTER_PARENT]	= "write_after_parent_exit",
	[CHILD_MUNMAP]		= "munmap_in_child",
	[DONTNEED]		= "dontneed",
	[MUNMAP]		= "munmap",
	[COLD_ALTERNATE]	= "cold_alternate",
	[COLD_SPARSE]		= "cold_sparse",
	[SMAPS_SPARSE]		= "smaps_rollup_sparse",
	[PAGEMAP_SPARSE]	= "pagemap_sparse",
	[PAGEMAP_EACH_SPARSE]	= "pagemap_by_entry_sparse",
	[FILE_FAULT]		= "fault_around",
	[FILE_SMAPS]		= "smaps_rollup",
	[FILE_MUNMAP]		= "munmap",
	[EXEC]			= "exec",
	[JOB]			= "job",
};

struct figure {
	uint64_t ns[MAX_ROUNDS];
	long faults;
};

static const struct layout {
	unsigned long kib;
	bool pmd;
} layouts[] = {
	{ 4, false }, { 16, false }, { 64, false }, { 1024, false },
	{ 2048, false }, { 2048, true },
};

static size_t bytes = 64 * MIB;
static int rounds = 5;

/* What a process measures for its parent to see. */
static struct figure *figures;

static void die(const char *format, ...)
{
	va_list args;

	fprintf(stderr, "error: ");
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, ": %s\n", strerror(errno));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static long minor_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
}

struct start {
	uint64_t ns;
	long faults;
};

static struct start begin(void)
{
	const long faults = minor_faults();

	return (struct start){ now(), faults };
}

static void end(enum op op, int round, struct start start)
{
	figures[op].ns[round] = now() - start.ns;
	figures[op].faults = minor_faults() - start.faults;
}

/* Time a statement, as OP in ROUND. */
#define MEASURE(op, round, statement) do {		\
	const struct start start_ = begin();		\
							\
	statement;					\
	end(op, round, start_);				\
} while (0)

static bool write_setting(const char *value, const char *format, ...)
{
	char path[256];
	va_list args;
	ssize_t n;
	int fd;

	va_start(args, format);
	vsnprintf(path, sizeof(path), format, args);
	va_end(args);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return false;
	n = write(fd, value, strlen(value));
	close(fd);
	return n == (ssize_t)strlen(value);
}

static long read_stat(unsigned long kib, const char *name)
{
	char path[256];
	long value = 0;
	FILE *f;

	snprintf(path, sizeof(path), THP "hugepages-%lukB/stats/%s", kib, name);
	f = fopen(path, "r");
	if (!f)
		return 0;
	if (fscanf(f, "%ld", &value) != 1)
		value = 0;
	fclose(f);
	return value;
}

/* From now on, new memory consists of folios of that size. */
static void choose_folios(unsigned long kib)
{
	unsigned long size;

	for (size = 8; size <= 2048; size *= 2) {
		const char *value = size == kib ? "always" : "never";

		/* Not every size is there for anonymous memory. */
		if ((!write_setting(value, THP "hugepages-%lukB/enabled", size) ||
		     !write_setting(value, THP "hugepages-%lukB/shmem_enabled", size)) &&
		    size == kib)
			die("no folios of %lu KiB", kib);
	}
}

static void touch(volatile char *mem, size_t step)
{
	size_t i;

	for (i = 0; i < bytes; i += step)
		mem[i] = 1;
}

static void look(volatile char *mem)
{
	size_t i;

	for (i = 0; i < bytes; i += 4 * KIB)
		(void)mem[i];
}

/* Where a PMD could map the beginning. What is around it is not mapped. */
static char *reserve(void)
{
	const size_t size = bytes + 2 * PMD;
	char *raw = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *mem;

	if (raw == MAP_FAILED)
		die("mmap");
	mem = (char *)(((uintptr_t)raw + PMD - 1) & ~(PMD - 1));
	munmap(raw, size);
	return mem;
}

static char *map_anon(void)
{
	char *mem = mmap(reserve(), bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (mem == MAP_FAILED)
		die("mmap");
	return mem;
}

/* Have PTEs map what PMDs do: no PMD can have two protections. */
static void split_pmds(char *mem)
{
	size_t i;

	for (i = 0; i < bytes; i += PMD)
		if (mprotect(mem + i, 4 * KIB, PROT_READ) ||
		    mprotect(mem + i, 4 * KIB, PROT_READ | PROT_WRITE))
			die("mprotect");
}

static char *populate(const struct layout *l, int round)
{
	char *mem = map_anon();

	MEASURE(FAULT, round, touch(mem, 4 * KIB));
	if (l->kib == 2048 && !l->pmd)
		split_pmds(mem);
	return mem;
}

/* What the kernel says of all memory of this process, the most by far being ours. */
static void read_smaps(void)
{
	const int fd = open("/proc/self/smaps_rollup", O_RDONLY);
	char buffer[4096];

	if (fd < 0)
		die("smaps_rollup");
	while (read(fd, buffer, sizeof(buffer)) > 0)
		;
	close(fd);
}

static void wait_for(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || status)
		die("a child failed");
}

struct gate {
	int fd[2];
};

static void gate_init(struct gate *g)
{
	if (pipe(g->fd))
		die("pipe");
}

/* Returns once nobody else has the other end. */
static void gate_wait(struct gate *g)
{
	char c;

	close(g->fd[1]);
	while (read(g->fd[0], &c, 1) > 0)
		;
	close(g->fd[0]);
}

static void gate_open(struct gate *g)
{
	close(g->fd[0]);
	close(g->fd[1]);
}

static void fork_and_exit(int round)
{
	struct start start;
	struct gate gate;
	pid_t pid;

	gate_init(&gate);
	start = begin();
	pid = fork();
	if (pid < 0)
		die("fork");
	if (!pid) {
		gate_wait(&gate);
		_exit(0);
	}
	end(FORK, round, start);
	/* Not while the child is on its way to the gate. */
	usleep(2000);
	start = begin();
	gate_open(&gate);
	wait_for(pid);
	end(EXIT, round, start);
}

/* A child that exits at once leaves all entries read-only. */
static void write_protect(void)
{
	const pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (!pid)
		_exit(0);
	wait_for(pid);
}

static void fork_and_munmap(char *mem, int round)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (!pid) {
		MEASURE(CHILD_MUNMAP, round, munmap(mem, bytes));
		_exit(0);
	}
	wait_for(pid);
}

/* The child of a process that has gone writes what it got from it. */
static void outlive_parent(const struct layout *l, int round)
{
	struct gate parent_gone, child_gone;
	pid_t pid;

	gate_init(&child_gone);
	pid = fork();
	if (pid < 0)
		die("fork");
	if (!pid) {
		char *mem = populate(l, round);

		gate_init(&parent_gone);
		if (fork())
			_exit(0);
		gate_wait(&parent_gone);
		MEASURE(WRITE_AFTER_PARENT, round, touch(mem, 4 * KIB));
		_exit(0);
	}
	wait_for(pid);
	gate_wait(&child_gone);
}

static void anon_round(const struct layout *l, int round)
{
	char *mem = populate(l, round);

	MEASURE(SMAPS, round, read_smaps());
	fork_and_exit(round);
	MEASURE(WRITE_AFTER_CHILD, round, touch(mem, 4 * KIB));
	write_protect();
	MEASURE(WRITE_ONE, round, touch(mem, l->kib * KIB));
	write_protect();
	MEASURE(WRITE_EIGHT, round, touch(mem, l->kib < 32 ? 4 * KIB : l->kib * KIB / 8));
	fork_and_munmap(mem, round);
	MEASURE(DONTNEED, round, madvise(mem, bytes, MADV_DONTNEED));
	munmap(mem, bytes);

	mem = populate(l, round);
	MEASURE(MUNMAP, round, munmap(mem, bytes));
	outlive_parent(l, round);
}

/* One read for all, or one for each page */
static void read_pagemap(const char *mem, size_t step)
{
	const int fd = open("/proc/self/pagemap", O_RDONLY);
	const off_t first = (uintptr_t)mem / (4 * KIB) * 8;
	static char buffer[64 * KIB];
	size_t i;

	if (fd < 0)
		die("pagemap");
	for (i = 0; i < bytes / (4 * KIB) * 8; i += step)
		if (pread(fd, buffer, step, first + i) != (ssize_t)step)
			die("pagemap");
	close(fd);
}

/* Of each folio, keep every other page of the first @span, and no more. */
static void keep_alternate(char *mem, size_t folio, size_t span, size_t first)
{
	size_t i;

	for (i = 0; i < bytes; i += 4 * KIB)
		if (i % folio >= span || i / (4 * KIB) % 2 != first)
			madvise(mem + i, 4 * KIB, MADV_DONTNEED);
}

/*
 * The children of a process that has gone map every other page, of all or of the
 * first half of each folio: each page has to be looked at alone, and only the page
 * tables can tell if others map the folio.
 */
static void walk_alternate(const struct layout *l, int round, bool sparse)
{
	const size_t folio = l->kib * KIB, span = sparse ? folio / 2 : folio;
	struct gate all_gone, ready, measured;
	pid_t pid;

	gate_init(&all_gone);
	pid = fork();
	if (pid < 0)
		die("fork");
	if (!pid) {
		char *mem = populate(l, round);

		gate_init(&ready);
		gate_init(&measured);
		if (!fork()) {
			keep_alternate(mem, folio, span, 1);
			gate_open(&ready);
			gate_wait(&measured);
			_exit(0);
		}
		if (fork())
			_exit(0);
		keep_alternate(mem, folio, span, 0);
		gate_wait(&ready);
		if (!sparse) {
			MEASURE(COLD_ALTERNATE, round, madvise(mem, bytes, MADV_COLD));
			_exit(0);
		}
		MEASURE(COLD_SPARSE, round, madvise(mem, bytes, MADV_COLD));
		MEASURE(SMAPS_SPARSE, round, read_smaps());
		MEASURE(PAGEMAP_SPARSE, round, read_pagemap(mem, 32 * KIB));
		MEASURE(PAGEMAP_EACH_SPARSE, round, read_pagemap(mem, 8));
		_exit(0);
	}
	wait_for(pid);
	gate_wait(&all_gone);
}

static int file_of_folios(void)
{
	const int fd = memfd_create("folio_calls", 0);
	char *mem;

	if (fd < 0 || ftruncate(fd, bytes))
		die("memfd_create");
	mem = mmap(reserve(), bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mem == MAP_FAILED)
		die("mmap");
	touch(mem, 4 * KIB);
	munmap(mem, bytes);
	return fd;
}

/* A PMD does not fit where the beginning of the file is in the midst of one. */
static void file_round(const struct layout *l, int fd, int round)
{
	char *mem = reserve() + (l->pmd ? 0 : 64 * KIB);

	mem = mmap(mem, bytes, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
	if (mem == MAP_FAILED)
		die("mmap");
	MEASURE(FILE_FAULT, round, look(mem));
	MEASURE(FILE_SMAPS, round, read_smaps());
	MEASURE(FILE_MUNMAP, round, munmap(mem, bytes));
}

static int cmp(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void report(const struct layout *l, enum op first, enum op last,
		   const char *kind, bool pure)
{
	enum op op;

	for (op = first; op <= last; op++) {
		struct figure *f = &figures[op];

		qsort(f->ns, rounds, sizeof(f->ns[0]), cmp);
		printf("calls\t%s\t%s\t%lu\t%s\t%llu\t%llu\t%ld\t%s\n", op_names[op], kind,
		       l->kib, l->pmd ? "pmd" : "pte", (unsigned long long)f->ns[0],
		       (unsigned long long)f->ns[rounds / 2], f->faults,
		       pure ? "ok" : "mixed");
	}
	fflush(stdout);
}

static void measure(const struct layout *l)
{
	const long folios = bytes / (l->kib * KIB);
	long allocated;
	int round, fd;

	memset(figures, 0, sizeof(*figures) * NR_OPS);
	choose_folios(l->kib);

	allocated = read_stat(l->kib, "anon_fault_alloc");
	for (round = 0; round < rounds; round++)
		anon_round(l, round);
	allocated = read_stat(l->kib, "anon_fault_alloc") - allocated;
	/* Copies are small folios: less would be allocated for those. */
	report(l, FAULT, MUNMAP, "anon", l->kib == 4 || allocated >= 3 * folios * rounds);

	if (l->kib == 2048 && !l->pmd) {
		allocated = read_stat(l->kib, "anon_fault_alloc");
		for (round = 0; round < rounds; round++) {
			walk_alternate(l, round, false);
			walk_alternate(l, round, true);
		}
		allocated = read_stat(l->kib, "anon_fault_alloc") - allocated;
		report(l, COLD_ALTERNATE, PAGEMAP_EACH_SPARSE, "anon",
		       allocated >= 2 * folios * rounds);
	}

	allocated = read_stat(l->kib, "shmem_alloc");
	fd = file_of_folios();
	allocated = read_stat(l->kib, "shmem_alloc") - allocated;
	for (round = 0; round < rounds; round++)
		file_round(l, fd, round);
	close(fd);
	report(l, FILE_FAULT, FILE_MUNMAP, "file", l->kib == 4 || allocated == folios);
}

static void run(char *const args[])
{
	const pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (!pid) {
		execv(args[0], args);
		_exit(1);
	}
	wait_for(pid);
}

/* A program that ends at once, or a job: both with the text of shared libraries. */
static void measure_run(enum op op, char *const args[])
{
	const struct layout l = { 4, false };
	int round;

	choose_folios(l.kib);
	for (round = 0; round < rounds; round++)
		MEASURE(op, round, run(args));
	report(&l, op, op, "file", true);
}

int main(int argc, char **argv)
{
	unsigned long only[ARRAY_SIZE(layouts)] = { 0 };
	char *program[] = { NULL, NULL };
	char *job[] = { "/bin/sh", "-c", NULL, NULL };
	size_t i, j, n_only = 0;
	int opt;

	while ((opt = getopt(argc, argv, "m:r:s:x:j:")) != -1) {
		if (opt == 'm' && atoi(optarg) > 0 && atoi(optarg) % 2 == 0)
			bytes = atoi(optarg) * MIB;
		else if (opt == 'r' && atoi(optarg) > 0 && atoi(optarg) <= MAX_ROUNDS)
			rounds = atoi(optarg);
		else if (opt == 's' && atoi(optarg) > 0 && n_only < ARRAY_SIZE(only))
			only[n_only++] = atoi(optarg);
		else if (opt == 'x')
			program[0] = optarg;
		else if (opt == 'j')
			job[2] = optarg;
		else
			return fprintf(stderr, "usage: %s [-m MIB (even)] [-r ROUNDS (to %d)] [-s KIB]... [-x PROGRAM] [-j COMMAND]\n",
				       argv[0], MAX_ROUNDS), 2;
	}

	figures = mmap(NULL, sizeof(*figures) * NR_OPS, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (figures == MAP_FAILED)
		die("mmap");
	for (i = 0; i < ARRAY_SIZE(layouts); i++) {
		bool wanted = !n_only;

		for (j = 0; j < n_only; j++)
			wanted |= only[j] == layouts[i].kib;
		if (wanted)
			measure(&layouts[i]);
	}
	if (program[0])
		measure_run(EXEC, program);
	if (job[2])
		measure_run(JOB, job);
	return 0;
}
