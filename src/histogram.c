/*-------------------------------------------------------------------------
 *
 * histogram.c
 *	  A log-linear histogram of microseconds.
 *
 * Values below 16 have a bucket each; from there on the bits below the
 * highest three that follow the leading one are dropped, so that each power of
 * two has eight buckets of equal width, an eighth of the value at most.
 *
 * Constraints: pure C, no locks.  histogram_quantile() reads the counts twice;
 * if they change in between it is off by what came in, never out of bounds.
 *
 *-------------------------------------------------------------------------
 */
#include "histogram.h"

#define SUB_BITS	3			/* 2^3 buckets for a power of two */
#define SUB			(1 << SUB_BITS)

static int
highest_bit(uint64_t value)
{
	int			bit = 0;

	for (int step = 32; step > 0; step /= 2)
	{
		if (value >> step)
		{
			value >>= step;
			bit += step;
		}
	}
	return bit;
}

int
histogram_bucket(uint64_t us)
{
	int			shift;

	if (us < SUB)
		return (int) us;
	shift = highest_bit(us) - SUB_BITS;
	/* The shifted value is 8 .. 15: the leading one makes up for shift 0. */
	return shift * SUB + (int) (us >> shift);
}

uint64_t
histogram_bucket_max(int bucket)
{
	int			shift;
	uint64_t	first;

	if (bucket < SUB)
		return bucket < 0 ? 0 : (uint64_t) bucket;
	if (bucket >= HISTOGRAM_BUCKETS)
		bucket = HISTOGRAM_BUCKETS - 1;
	shift = bucket / SUB - 1;
	first = (uint64_t) (SUB + bucket % SUB) << shift;
	return first + ((UINT64_C(1) << shift) - 1);
}

/* How many of the counted values, from the smallest, make up the quantile. */
static uint64_t
quantile_rank(uint64_t total, double q)
{
	double		exact;
	uint64_t	rank;

	if (!(q > 0))
		return 1;
	if (q >= 1)
		return total;
	exact = q * (double) total;
	rank = (uint64_t) exact;
	if ((double) rank < exact)
		rank++;
	if (rank < 1)
		return 1;
	return rank > total ? total : rank;
}

uint64_t
histogram_quantile(const uint64_t *counts, double q)
{
	uint64_t	total = 0;
	uint64_t	rank;
	int			last = 0;

	for (int i = 0; i < HISTOGRAM_BUCKETS; i++)
		total += counts[i];
	if (total == 0)
		return 0;

	rank = quantile_rank(total, q);
	for (int i = 0; i < HISTOGRAM_BUCKETS; i++)
	{
		if (counts[i] == 0)
			continue;
		last = i;
		if (counts[i] >= rank)
			break;
		rank -= counts[i];
	}
	return histogram_bucket_max(last);
}
