/* SPDX-License-Identifier: GPL-2.0-only */
/* The kernel's own, which needs one macro that tools/include does not have. */
#include <linux/compiler.h>

#ifndef __UNIQUE_ID
#define __UNIQUE_ID(prefix)	__PASTE(__UNIQUE_ID_##prefix, __COUNTER__)
#endif

#include "../../../../include/linux/minmax.h"
