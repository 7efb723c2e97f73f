/*-------------------------------------------------------------------------
 *
 * ratelimit.h
 *	  Token buckets; the clock is passed in.  Pure C, no locks: whoever keeps a
 *	  bucket in shared memory guards it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SUBDISPATCH_RATELIMIT_H
#define SUBDISPATCH_RATELIMIT_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Two packed words, see ratelimit.c.  All zero bytes are a valid, empty bucket
 * at time 0.
 */
typedef struct TokenBucket
{
	uint64_t	time_bits;
	uint64_t	token_bits;
} TokenBucket;

/*
 * Rates are tokens per second: 0 (or less, or NaN) is unlimited, others are
 * rounded to the nearest millionth and kept within 1e-6 .. 1e9.  A burst below
 * 1 counts as 1.  "now" is microseconds of any one clock.  A time before the
 * latest one brings in no tokens and takes none away; when it is more than a
 * second before, the clock was set back and time counts from there.
 */

/* A full bucket. */
extern void ratelimit_init(TokenBucket *bucket, double rate, int burst, int64_t now);

/* Takes a token if there is one.  Rate and burst may change between calls. */
extern bool ratelimit_take(TokenBucket *bucket, double rate, int burst, int64_t now);

/* A token that was taken and not used.  A bucket that is full stays so. */
extern void ratelimit_give_back(TokenBucket *bucket, double rate, int burst);

/* Would ratelimit_take() find a token?  Changes nothing. */
extern bool ratelimit_peek(const TokenBucket *bucket, double rate, int burst, int64_t now);

#endif							/* SUBDISPATCH_RATELIMIT_H */
