/* SPDX-License-Identifier: GPL-2.0 */
/* Keep rseq out of a count of page faults. */
#ifndef FOLIO_COW_RSEQ_H
#define FOLIO_COW_RSEQ_H

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

#endif /* FOLIO_COW_RSEQ_H */
