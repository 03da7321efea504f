/* SPDX-License-Identifier: GPL-2.0 */
/* For those who count their page faults. */
#ifndef FOLIO_COW_RSEQ_H
#define FOLIO_COW_RSEQ_H

#if __has_include("sys/rseq.h")
#include <sys/rseq.h>
#endif

/*
 * When a thread comes to another processor, the kernel writes that to the rseq
 * area that the C library has registered. This counts as a fault of the thread
 * where fork() has left the area shared, at any time after the fork. A write of
 * our own takes that fault beforehand, and there is none until the next fork.
 * rseq_cs is the field that user space may write; no critical section is what it
 * says already. (To unregister the area takes the length it was registered with,
 * which the library keeps to itself.)
 */
static inline void touch_rseq(void)
{
#ifdef RSEQ_SIG
	char *area = (char *)__builtin_thread_pointer() + __rseq_offset;

	if (__rseq_size)
		__atomic_store_n(&((struct rseq *)area)->rseq_cs, 0, __ATOMIC_RELAXED);
#endif
}

#endif /* FOLIO_COW_RSEQ_H */
