/* Unit tests of src/histogram.c. */
/* uses: histogram.c */
#include "histogram.h"
#include "tap.h"

#include <stdlib.h>

#define SAMPLES	20001

static void
test_buckets(void)
{
	bool		inside = true;
	bool		close = true;
	bool		ends_meet = true;

	is_int(histogram_bucket(0), 0, "zero is in the first bucket");
	is_int(histogram_bucket(UINT64_MAX), HISTOGRAM_BUCKETS - 1, "the largest value is in the last bucket");
	ok(histogram_bucket_max(HISTOGRAM_BUCKETS - 1) == UINT64_MAX, "the last bucket ends at the largest value");

	for (int b = 0; b < HISTOGRAM_BUCKETS; b++)
	{
		uint64_t	max = histogram_bucket_max(b);

		ends_meet &= histogram_bucket(max) == b;
		if (b < HISTOGRAM_BUCKETS - 1)
			ends_meet &= histogram_bucket(max + 1) == b + 1;
	}
	ok(ends_meet, "each bucket begins where the one before ends");

	for (int i = 0; i < 1000000; i++)
	{
		uint64_t	value = random_bits() >> random_below(64);
		int			b = histogram_bucket(value);
		uint64_t	max;

		inside &= b >= 0 && b < HISTOGRAM_BUCKETS;
		max = histogram_bucket_max(b);
		inside &= max >= value && (b == 0 || histogram_bucket_max(b - 1) < value);
		close &= value < 16 ? max == value : max - value < value / 8 + 1;
	}
	ok(inside, "random values are in the bucket that covers them");
	ok(close, "a bucket's end is less than an eighth above its values");
	is_int((int64_t) histogram_bucket_max(-1), 0, "a bucket below the first is taken as the first");
	ok(histogram_bucket_max(100000) == UINT64_MAX, "a bucket behind the last is taken as the last");
}

static int
compare(const void *a, const void *b)
{
	uint64_t	x = *(const uint64_t *) a;
	uint64_t	y = *(const uint64_t *) b;

	return x < y ? -1 : x > y;
}

static void
test_quantiles(void)
{
	static uint64_t counts[HISTOGRAM_BUCKETS];
	static uint64_t values[SAMPLES];
	static const double quantiles[] = {0, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1};

	is_int((int64_t) histogram_quantile(counts, 0.5), 0, "no values: 0");
	counts[histogram_bucket(7)] = 1;
	is_int((int64_t) histogram_quantile(counts, 0), 7, "one value is every quantile: 0");
	is_int((int64_t) histogram_quantile(counts, 0.5), 7, "one value is every quantile: 0.5");
	is_int((int64_t) histogram_quantile(counts, 1), 7, "one value is every quantile: 1");
	is_int((int64_t) histogram_quantile(counts, -3), 7, "a quantile below 0 is the smallest value");
	is_int((int64_t) histogram_quantile(counts, 3), 7, "a quantile above 1 is the largest value");
	counts[histogram_bucket(7)] = 0;

	for (int i = 0; i < SAMPLES; i++)
	{
		values[i] = random_bits() >> (20 + random_below(40));
		counts[histogram_bucket(values[i])]++;
	}
	qsort(values, SAMPLES, sizeof(values[0]), compare);
	for (size_t i = 0; i < sizeof(quantiles) / sizeof(quantiles[0]); i++)
	{
		double		q = quantiles[i];
		int			rank = (int) (q * SAMPLES);
		uint64_t	exact;
		uint64_t	got = histogram_quantile(counts, q);
		char		name[64];

		if (rank < q * SAMPLES)
			rank++;
		exact = values[rank > 0 ? rank - 1 : 0];
		snprintf(name, sizeof(name), "quantile %g of random values is within 12.5 %%", q);
		if (!ok(got >= exact && got - exact <= exact / 8, name))
			printf("# got %" PRIu64 ", exactly %" PRIu64 "\n", got, exact);
	}
}

int
main(void)
{
	test_buckets();
	test_quantiles();
	return done();
}
