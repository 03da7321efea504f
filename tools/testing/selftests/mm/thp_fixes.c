// SPDX-License-Identifier: GPL-2.0-only
/* Regression tests for THPs: bugs as user space meets them. */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <fcntl.h>
#include <linux/mman.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include "vm_util.h"
#include "../../../../mm/gup_test.h"

FIXTURE(thp) {
	size_t size;	/* of what a PMD maps */
	char *addr;	/* room for one, at an aligned address */
};

FIXTURE_SETUP(thp)
{
	char *mem;

	self->size = read_pmd_pagesize();
	if (!self->size)
		SKIP(return, "no THP");
	mem = mmap(NULL, 2 * self->size, PROT_NONE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
	ASSERT_NE(mem, MAP_FAILED);
	self->addr = mem + self->size - (uintptr_t)mem % self->size;
}

FIXTURE_TEARDOWN(thp) {}

static bool map_anon(char *addr, size_t size)
{
	if (mmap(addr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_FIXED, -1, 0) ==
	    MAP_FAILED)
		return false;
	madvise(addr, size, MADV_HUGEPAGE);
	memset(addr, 1, size);
	return check_huge_anon(addr, size, 1, size);
}

/* A memfd of one PMD-mapped THP; MADV_COLLAPSE ignores shmem_enabled. */
static int map_memfd(char *addr, size_t size)
{
	int fd = memfd_create("thp_fixes", 0);

	if (fd < 0 || ftruncate(fd, size) ||
	    mmap(addr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		return -1;
	memset(addr, 1, size);
	return !madvise(addr, size, MADV_COLLAPSE) && check_huge_shmem(addr, size, 1, size) ?
	       fd : -1;
}

/* The line of smaps_rollup that begins with @name, in bytes */
static size_t rollup(const char *name)
{
	char buf[4096], *line = NULL;

	if (read_file("/proc/self/smaps_rollup", buf, sizeof(buf)) > 0)
		line = strstr(buf, name);
	return line ? strtoul(line + strlen(name), NULL, 10) * 1024 : 0;
}

TEST_F(thp, pss_of_pmd)
{
	const size_t before = rollup("Pss:");

	if (!before)
		SKIP(return, "no smaps");
	if (!map_anon(self->addr, self->size))
		SKIP(return, "no anonymous THP");
	/* The pages that are shared with other processes can change a bit. */
	EXPECT_GT(rollup("Pss:"), before + self->size / 2);
}

TEST_F(thp, pin_private_file)
{
	struct pin_longterm_test args = { .addr = (uintptr_t)self->addr, .size = getpagesize() };
	int gup = open("/sys/kernel/debug/gup_test", O_RDWR);
	int fd = map_memfd(self->addr, self->size);

	if (gup < 0 || fd < 0)
		SKIP(return, "no gup_test, or no THP of a memfd");
	ASSERT_NE(mmap(self->addr, self->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
		       fd, 0), MAP_FAILED);
	FORCE_READ(self->addr[0]);
	if (!check_huge_shmem(self->addr, self->size, 1, self->size))
		SKIP(return, "not PMD-mapped");

	/* If this does not return, the time limit of the harness ends it. */
	EXPECT_EQ(ioctl(gup, PIN_LONGTERM_TEST_START, &args), 0);
	ioctl(gup, PIN_LONGTERM_TEST_STOP);
}

TEST_F(thp, truncate_swapped)
{
	const size_t half = self->size / 2;
	int fd = map_memfd(self->addr, self->size), i, status = -1;
	pid_t pid;

	if (fd < 0)
		SKIP(return, "no THP of a memfd");
	madvise(self->addr, self->size, MADV_PAGEOUT);
	if (rollup("Swap:") < self->size)
		SKIP(return, "not swapped out");

	/* If ftruncate() does not return, it cannot be killed: leave it alone. */
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		dup2(fd, 0);
		for (i = 1; i < 1024; i++)
			close(i);
		_exit(!!ftruncate(0, half));
	}
	for (i = 0; i < 100 && !waitpid(pid, &status, WNOHANG); i++)
		usleep(100000);
	kill(pid, SIGKILL);
	ASSERT_EQ(status, 0);

	ASSERT_EQ(ftruncate(fd, self->size), 0);
	EXPECT_EQ(self->addr[half - 1], 1);
	EXPECT_EQ(self->addr[half], 0);
	EXPECT_EQ(self->addr[self->size - 1], 0);
}

TEST_F(thp, debugfs_unsplittable)
{
	int split = open("/sys/kernel/debug/split_huge_pages", O_WRONLY);
	int once = open("/sys/kernel/debug/clear_warn_once", O_WRONLY);
	int kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	char buf[8192] = "";

	if (split < 0 || once < 0 || kmsg < 0)
		SKIP(return, "no debugfs, or no /dev/kmsg");
	if (!map_anon(self->addr, self->size))
		SKIP(return, "no anonymous THP");
	ASSERT_EQ(write(once, "1", 1), 1);
	lseek(kmsg, 0, SEEK_END);

	/* There are no anonymous folios of order 1. */
	dprintf(split, "%d,0x%lx,0x%lx,1", getpid(), (unsigned long)self->addr,
		(unsigned long)self->addr + self->size);
	EXPECT_TRUE(check_huge_anon(self->addr, self->size, 1, self->size));
	while (read(kmsg, buf, sizeof(buf) - 1) > 0)
		EXPECT_EQ(strstr(buf, "unsplittable"), NULL);
}

TEST_HARNESS_MAIN
