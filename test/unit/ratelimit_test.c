/* Unit tests of src/ratelimit.c, against a bucket in 128-bit arithmetic. */
/* uses: ratelimit.c */
#include "ratelimit.h"
#include "tap.h"

#include <limits.h>
#include <math.h>

#define S	INT64_C(1000000)

/* The reference: a level of 1e-12 tokens, nothing packed, nothing split. */
typedef __int128 wide;

#define TOKEN	((wide) INT64_C(1000000000000))

typedef struct Reference
{
	wide		level;
	int64_t		at;
} Reference;

static bool
reference_take(Reference *r, int64_t micro_rate, int burst, int64_t now)
{
	wide		full = TOKEN * burst;

	if (now > r->at)
		r->level += (wide) micro_rate * ((wide) now - r->at);
	if (now > r->at || r->at - now > S)
		r->at = now;
	if (r->level > full)
		r->level = full;
	if (r->level < TOKEN)
		return false;
	r->level -= TOKEN;
	return true;
}

static int
take_many(TokenBucket *b, double rate, int burst, int64_t now, int tries)
{
	int			taken = 0;

	for (int i = 0; i < tries; i++)
		taken += ratelimit_take(b, rate, burst, now);
	return taken;
}

static void
test_basics(void)
{
	TokenBucket b;

	ok(sizeof(TokenBucket) == 16, "a bucket takes 16 bytes");
	ratelimit_init(&b, 10, 5, 1000 * S);
	is_int(take_many(&b, 10, 5, 1000 * S, 100), 5, "a new bucket has its burst");
	ok(!ratelimit_take(&b, 10, 5, 1000 * S + 99999), "a token is not there a microsecond early");
	ok(!ratelimit_peek(&b, 10, 5, 1000 * S + 99999), "nor does peek see it");
	ok(ratelimit_peek(&b, 10, 5, 1000 * S + 100000), "peek sees it when it is due");
	ok(ratelimit_take(&b, 10, 5, 1000 * S + 100000), "and take takes it");
	ok(!ratelimit_take(&b, 10, 5, 1000 * S + 100000), "once");
	is_int(take_many(&b, 10, 5, 1000000 * S, 100), 5, "long idle fills the bucket to the burst");
	is_int(take_many(&b, 0, 5, 1000000 * S, 100), 100, "rate 0 is unlimited");
	is_int(take_many(&b, -1, 5, 1000000 * S, 100), 100, "a negative rate is unlimited");
	is_int(take_many(&b, NAN, 5, 1000000 * S, 100), 100, "NaN is unlimited");
	ok(ratelimit_peek(&b, 0, 5, 1000000 * S), "peek knows unlimited too");
	is_int(take_many(&b, 10, 5, 1000000 * S, 100), 0, "which took nothing from the bucket");

	ratelimit_init(&b, 10, 0, 0);
	is_int(take_many(&b, 10, 0, 0, 10), 1, "a burst below 1 counts as 1");
	memset(&b, 0, sizeof(b));
	is_int(take_many(&b, 10, 5, 0, 10), 0, "zero bytes are an empty bucket at time 0");
	is_int(take_many(&b, 10, 5, 200000, 10), 2, "that fills");
}

static void
test_clock(void)
{
	TokenBucket b;

	ratelimit_init(&b, 1, 10, 100 * S);
	take_many(&b, 1, 10, 100 * S, 7);
	is_int(take_many(&b, 1, 10, 100 * S - 500000, 1), 1, "a time a little back: the tokens are still there");
	is_int(take_many(&b, 1, 10, 100 * S, 10), 2, "and no others came");
	is_int(take_many(&b, 1, 10, 100 * S + 999999, 10), 0, "time went on from the later one");
	is_int(take_many(&b, 1, 10, 101 * S, 10), 1, "exactly");

	ratelimit_init(&b, 1, 10, 100 * S);
	take_many(&b, 1, 10, 100 * S, 7);
	is_int(take_many(&b, 1, 10, -5000 * S, 10), 3, "a clock that was set back takes no tokens away and brings none");
	is_int(take_many(&b, 1, 10, -4999 * S, 10), 1, "and they come in again from there");

	ratelimit_init(&b, 1e9, INT_MAX, INT64_MAX);
	ok(ratelimit_take(&b, 1e9, INT_MAX, INT64_MIN), "the earliest time after the latest");
	ok(ratelimit_take(&b, 1e9, INT_MAX, INT64_MAX), "and the other way");
	ok(ratelimit_take(&b, 1e-6, INT_MAX, INT64_MAX), "at the smallest rate");
	ok(ratelimit_take(&b, INFINITY, 1, INT64_MIN), "and the largest");
}

static void
test_changes(void)
{
	TokenBucket b;

	ratelimit_init(&b, 1, 100, 0);
	is_int(take_many(&b, 1, 3, 0, 100), 3, "a lower burst takes effect at once");
	ratelimit_init(&b, 1, 3, 0);
	is_int(take_many(&b, 1, 100, 0, 100), 3, "a higher burst has to fill");
	is_int(take_many(&b, 1, 100, 50 * S, 100), 50, "at the rate");
}

static void
test_give_back(void)
{
	TokenBucket b;

	ratelimit_init(&b, 1, 3, 0);
	ratelimit_give_back(&b, 1, 3);
	is_int(take_many(&b, 1, 3, 0, 100), 3, "a full bucket takes nothing back");
	ratelimit_give_back(&b, 1, 3);
	is_int(take_many(&b, 1, 3, 0, 100), 1, "an empty one does");
	ratelimit_give_back(&b, 1, 3);
	is_int(take_many(&b, 1, 3, 1 * S + S / 2, 100), 2, "beside what has come in");
	is_int(take_many(&b, 1, 3, 2 * S, 100), 1, "of which it loses nothing");
	ratelimit_give_back(&b, 0, 3);
	is_int(take_many(&b, 1, 3, 2 * S, 100), 0, "without a limit nothing was taken");
}

/* No drift: a million uneven steps let through what one long step would. */
static void
test_drift(void)
{
	static const double rates[] = {0.000001, 0.333333, 3, 7.7, 1000, 33333.333333, 499999.999999};

	for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++)
	{
		TokenBucket b;
		int64_t		now = 0;
		int64_t		taken = 0;
		char		name[80];

		memset(&b, 0, sizeof(b));
		for (int n = 0; n < 1000000; n++)
		{
			now += (int64_t) random_below(3);
			taken += ratelimit_take(&b, rates[i], 10, now);
		}
		snprintf(name, sizeof(name), "no drift at %g per second", rates[i]);
		is_int(taken, (int64_t) ((wide) llround(rates[i] * 1e6) * now / TOKEN), name);
	}
}

/* One life of a bucket at extreme parameters; the step at which it differs. */
static int
random_life(void)
{
	static const int64_t bases[] = {0, INT64_C(800000000000000), INT64_C(-60000000000000000)};
	TokenBucket b;
	Reference	r;
	int64_t		now = bases[random_below(3)];
	int64_t		micro = 1 + (int64_t) (random_bits() >> (14 + random_below(50))) % INT64_C(1000000000000000);
	int			burst = 1 + (int) (random_bits() >> (34 + random_below(30)));
	double		rate;

	/* Let the double be read back as the same millionths. */
	rate = (double) micro / 1e6;
	micro = (int64_t) (rate * 1e6 + 0.5);
	if (micro > INT64_C(1000000000000000))
		micro = INT64_C(1000000000000000);
	if (burst < 1)
		burst = 1;
	ratelimit_init(&b, rate, burst, now);
	r.level = TOKEN * burst;
	r.at = now;
	if (random_below(2))
	{
		memset(&b, 0, sizeof(b));
		r.level = 0;
		r.at = 0;
	}

	for (int i = 0; i < 200; i++)
	{
		int64_t		step = (int64_t) (random_bits() >> (8 + random_below(56)));

		if (random_below(10) == 0)
			now -= step >> random_below(30);
		else
			now += step;
		if (now > INT64_C(70000000000000000) || now < -INT64_C(70000000000000000))
			now = 0;
		if (ratelimit_peek(&b, rate, burst, now) != ratelimit_take(&b, rate, burst, now))
			return i;			/* peek is checked by take, take by the reference */
		(void) reference_take(&r, micro, burst, now);
		for (int n = 0; n < 3; n++)
		{
			if (ratelimit_take(&b, rate, burst, now) != reference_take(&r, micro, burst, now))
				return i;
		}
	}
	return -1;
}

static void
test_random(void)
{
	int			differ = 0;

	for (int i = 0; i < 20000; i++)
		differ += random_life() >= 0;
	is_int(differ, 0, "20000 random lives are those of the reference");
}

int
main(void)
{
	test_basics();
	test_clock();
	test_changes();
	test_give_back();
	test_drift();
	test_random();
	return done();
}
