/*-------------------------------------------------------------------------
 *
 * growing.h
 *	  Arrays in a process's memory that become larger.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_GROWING_H
#define SD_GROWING_H

#include "postgres.h"

#include "utils/memutils.h"

/*
 * Room for n elements at least, and for twice as many as before.  array is NULL
 * at first.  What holds the array outlives errors, most often: *size says only
 * what there is, also when there is no memory for more.
 */
static inline void *
growing_enlarge(void *array, int *size, int n, Size element, MemoryContext context)
{
	int			larger = Max(n, *size <= PG_INT32_MAX / 2 ? *size * 2 : n);

	if (array)
		array = repalloc_huge(array, larger * element);
	else
		array = MemoryContextAllocHuge(context, larger * element);
	*size = larger;
	return array;
}

#endif							/* SD_GROWING_H */
