/*-------------------------------------------------------------------------
 *
 * histogram.h
 *	  A log-linear histogram of microseconds: eight buckets for every power of
 *	  two.  Pure C; the caller owns the array of counts and guards it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SUBDISPATCH_HISTOGRAM_H
#define SUBDISPATCH_HISTOGRAM_H

#include <stdint.h>

/* Counts in an array; every uint64 value has a bucket. */
#define HISTOGRAM_BUCKETS	496

/* The bucket of a value, 0 .. HISTOGRAM_BUCKETS - 1. */
extern int	histogram_bucket(uint64_t us);

/* The largest value that falls into a bucket. */
extern uint64_t histogram_bucket_max(int bucket);

/*
 * The q-quantile (0.5 is the median, 1 the maximum) as the largest value of
 * its bucket: never below the true one and less than 12.5 % above it; exact
 * below 16.  0 if nothing was counted.
 */
extern uint64_t histogram_quantile(const uint64_t *counts, double q);

#endif							/* SUBDISPATCH_HISTOGRAM_H */
