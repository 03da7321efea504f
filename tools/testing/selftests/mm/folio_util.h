/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the folio_* programs share: files of sysfs and /proc, a cgroup, random numbers,
 * and actors, processes that run what they are sent and then block, so that nothing
 * changes while the test looks:
 *
 *	SELF ---- run(B, op_write, first, nr) ----> B: op_write(first, nr), answer, block
 *
 * Functions that cannot go on end the test by die().
 */
#ifndef __FOLIO_UTIL_H__
#define __FOLIO_UTIL_H__

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include "hugepage_settings.h"
#include "vm_util.h"

/* As vm_util.h has the others. */
#define KPF_DIRTY	BIT_ULL(4)
#define KPF_MMAP	BIT_ULL(11)
#define KPF_ANON	BIT_ULL(12)
#define KPF_SWAPCACHE	BIT_ULL(13)
#define KPF_SWAPBACKED	BIT_ULL(14)
#define KPF_HUGE	BIT_ULL(17)
#define KPF_KSM		BIT_ULL(21)
#define KPF_ZERO_PAGE	BIT_ULL(24)

#define CGROUPS		"/sys/fs/cgroup/"
#define MAX_ACTORS	16
#define REPLY_SECONDS	60		/* a debug kernel that is emulated takes its time */

static inline void __printf(1, 2) __noreturn die(const char *fmt, ...)
{
	va_list args;

	fflush(stdout);
	va_start(args, fmt);
	dprintf(STDOUT_FILENO, "# ");
	vdprintf(STDOUT_FILENO, fmt, args);
	dprintf(STDOUT_FILENO, "\n");
	va_end(args);
	_exit(KSFT_FAIL);
}

/* Files */

/* Write to a file of sysfs and the like. Return: whether that worked. */
static inline bool __printf(2, 3) put(const char *path, const char *fmt, ...)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	va_list args;
	int len;

	if (fd < 0)
		return false;
	va_start(args, fmt);
	len = vdprintf(fd, fmt, args);
	va_end(args);
	close(fd);
	return len > 0;
}

/* Return: the number after KEY and blanks in a file of such lines, or -1. */
static inline long long read_key(const char *path, const char *key)
{
	FILE *f = fopen(path, "re");
	long long value = -1;
	size_t len = strlen(key);
	char line[256];

	while (f && value < 0 && fgets(line, sizeof(line), f))
		if (!strncmp(line, key, len) && strchr(": \t", line[len]))
			value = strtoll(line + len + 1, NULL, 10);
	if (f)
		fclose(f);
	return value;
}

/* Fold the per-CPU parts of /proc/vmstat. */
static inline bool fold_vmstat(void)
{
	int fd = open("/proc/sys/vm/stat_refresh", O_RDONLY | O_CLOEXEC);
	char c;
	bool done = fd >= 0 && read(fd, &c, 1) >= 0;

	close(fd);
	return done;
}

static inline bool has_config(const char *option)
{
	char cmd[256];

	snprintf(cmd, sizeof(cmd),
		 "{ zcat /proc/config.gz || cat /boot/config-$(uname -r); } 2>/dev/null | grep -q '^%s=y'",
		 option);
	return !system(cmd);
}

/* Settings to restore at exit; hugepage_settings.h does it for those of THP. */
static struct knob {
	const char *path;
	char value[64];
	pid_t owner;
} knobs[8];

static inline void restore_knobs(void)
{
	struct knob *knob;

	for (knob = knobs; knob->path; knob++) {
		if (knob->owner == getpid())
			put(knob->path, "%s", knob->value);
	}
}

/* Remember what a file contains, and restore it at exit. The path has to stay. */
static inline void keep(const char *path)
{
	struct knob *knob = knobs;
	char *old;

	while (knob->path)
		knob++;
	if (read_file(path, knob->value, sizeof(knob->value)) <= 0)
		return;
	/* Of choices like "always [madvise] never", the one in brackets */
	old = strchr(knob->value, '[');
	if (old) {
		memmove(knob->value, old + 1, strlen(old));
		knob->value[strcspn(knob->value, "]")] = '\0';
	}
	knob->path = path;
	knob->owner = getpid();
	if (knob == knobs)
		atexit(restore_knobs);
}

/*
 * Let khugepaged sleep. It does so only while there is a process that it could look at;
 * the first one to come after none wakes it, and this would be a test. So let it look at
 * this process, which stays to the end. An area without an anon_vma would not do.
 */
static inline void park_khugepaged(void)
{
	unsigned long scans = thp_read_num("khugepaged/full_scans");
	size_t size = 2 * read_pmd_pagesize();
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
	int i;

	thp_write_num("khugepaged/scan_sleep_millisecs", 3600 * 1000);
	if (p == MAP_FAILED)
		return;
	*p = 1;
	madvise(p, size, MADV_DONTNEED);
	madvise(p, size, MADV_HUGEPAGE);
	for (i = 0; i < 100 && thp_read_num("khugepaged/full_scans") == scans; i++)
		usleep(20000);
}

/* A cgroup (v2) of our own, with the memory controller */
static struct {
	char dir[96];		/* empty if there is none; ends with a slash */
	char home[PATH_MAX];	/* where we come from */
	bool controls;		/* the root cgroup's memory controller, by us */
} cgroup;

static inline const char *cgroup_file(const char *name)
{
	static char path[160];

	snprintf(path, sizeof(path), "%s%s", cgroup.dir, name);
	return path;
}

/* Leave our cgroup, and remove it. Its other processes have to be gone. */
static inline void cgroup_leave(void)
{
	int tries;

	put(cgroup.home, "0");
	for (tries = 0; cgroup.dir[0] && rmdir(cgroup.dir) && tries < 50; tries++)
		usleep(20000);
	if (cgroup.controls)
		put(CGROUPS "cgroup.subtree_control", "-memory");
	cgroup.dir[0] = '\0';
	cgroup.controls = false;
}

/* Make a cgroup, and join it. Return: whether that worked. */
static inline bool cgroup_enter(const char *name)
{
	char buf[PATH_MAX];

	if (read_file("/proc/self/cgroup", buf, sizeof(buf)) <= 0 || strncmp(buf, "0::/", 4))
		return false;
	snprintf(cgroup.home, sizeof(cgroup.home), CGROUPS "%.*s/cgroup.procs",
		 (int)strcspn(buf + 4, "\n"), buf + 4);
	if (read_file(CGROUPS "cgroup.subtree_control", buf, sizeof(buf)) <= 0 ||
	    !strstr(buf, "memory"))
		cgroup.controls = put(CGROUPS "cgroup.subtree_control", "+memory");
	snprintf(cgroup.dir, sizeof(cgroup.dir), CGROUPS "%s.%d/", name, getpid());
	if (!mkdir(cgroup.dir, 0755) && !access(cgroup_file("memory.stat"), R_OK) &&
	    put(cgroup_file("cgroup.procs"), "0"))
		return true;
	cgroup_leave();
	return false;
}

/* Random numbers: splitmix64, by Steele, Lea and Flood (OOPSLA 2014) */
static inline uint64_t random64(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

static inline unsigned int random_below(uint64_t *state, unsigned int limit)
{
	return (random64(state) >> 32) * limit >> 32;
}

#if __has_include("sys/rseq.h")
#include <sys/rseq.h>
#endif

/*
 * When a thread moves to another CPU, the kernel writes to the rseq area that the C
 * library has registered. After fork(), this takes a fault that counts as one of the
 * thread. Take it now, by a write that changes nothing: rseq_cs is 0 outside of
 * critical sections.
 */
static inline void touch_rseq(void)
{
#ifdef RSEQ_SIG
	char *area = (char *)__builtin_thread_pointer() + __rseq_offset;

	if (__rseq_size)
		__atomic_store_n(&((struct rseq *)area)->rseq_cs, 0, __ATOMIC_RELAXED);
#endif
}

/* Actors */

enum { SELF, A, B, C };

/* What runs in an actor; negative results are errors. */
typedef long (*op_fn)(long a, long b);

struct call {
	op_fn op;
	long a;
	long b;
};

static struct actor {
	int cmd[2];
	int reply[2];
	int pidfd;
	pid_t pid;		/* 0 if there is none */
} actor[MAX_ACTORS];

static inline void make_actors(void)
{
	int i;

	for (i = 1; i < MAX_ACTORS; i++)
		if (pipe2(actor[i].cmd, O_CLOEXEC) || pipe2(actor[i].reply, O_CLOEXEC))
			die("no pipes: %s", strerror(errno));
}

/* The life of an actor */
static inline void __noreturn serve(int me)
{
	struct call c;
	long ret;
	int i;

	/* Then the end of SELF is the end of the file for all of them. */
	for (i = 1; i < MAX_ACTORS; i++) {
		if (actor[i].cmd[1] >= 0)
			close(actor[i].cmd[1]);
		actor[i].cmd[1] = -1;
	}
	alarm(5 * REPLY_SECONDS);
	while (read(actor[me].cmd[0], &c, sizeof(c)) == sizeof(c)) {
		ret = c.op(c.a, c.b);
		if (write(actor[me].reply[1], &ret, sizeof(ret)) != sizeof(ret))
			break;
	}
	_exit(0);
}

static inline long op_fork(long child, long unused)
{
	pid_t pid = fork();

	if (!pid)
		serve(child);
	return pid;
}

static inline long op_exit(long unused_a, long unused_b)
{
	_exit(0);
}

/* Have an actor run op, and do not wait for its answer. */
static inline void send_call(int who, op_fn op, long a, long b)
{
	struct call c = { op, a, b };

	if (write(actor[who].cmd[1], &c, sizeof(c)) != sizeof(c))
		die("actor %d does not listen", who);
}

static inline long wait_reply(int who)
{
	struct pollfd pfds[] = {
		{ .fd = actor[who].reply[0], .events = POLLIN },
		{ .fd = actor[who].pidfd, .events = POLLIN },
	};
	long ret;

	if (poll(pfds, 2, REPLY_SECONDS * 1000) <= 0)
		die("actor %d does not answer", who);
	if (!(pfds[0].revents & POLLIN) ||
	    read(actor[who].reply[0], &ret, sizeof(ret)) != sizeof(ret))
		die("actor %d died", who);
	return ret;
}

/* Have an actor, or SELF, run op. Return: what op returns. */
static inline long run(int who, op_fn op, long a, long b)
{
	if (who == SELF)
		return op(a, b);
	send_call(who, op, a, b);
	return wait_reply(who);
}

static inline void spawn(int parent, int child)
{
	actor[child].pid = run(parent, op_fork, child, 0);
	if (actor[child].pid <= 0)
		die("no process: %d", actor[child].pid);
	actor[child].pidfd = syscall(__NR_pidfd_open, actor[child].pid, 0);
	if (actor[child].pidfd < 0)
		die("pidfd_open: %s", strerror(errno));
}

/* Only once it is gone as a whole, its memory is, too. */
static inline void await_end(int who)
{
	struct pollfd pfd = { .fd = actor[who].pidfd, .events = POLLIN };

	if (poll(&pfd, 1, REPLY_SECONDS * 1000) != 1)
		die("actor %d does not end", who);
	close(actor[who].pidfd);
	waitpid(actor[who].pid, NULL, WNOHANG);
	actor[who].pid = 0;
}

static inline void quit(int who)
{
	send_call(who, op_exit, 0, 0);
	await_end(who);
}

static inline void kill_actors(void)
{
	int i;

	for (i = 1; i < MAX_ACTORS; i++) {
		if (!actor[i].pid)
			continue;
		kill(actor[i].pid, SIGKILL);
		await_end(i);
	}
}

#endif /* __FOLIO_UTIL_H__ */
