/*-------------------------------------------------------------------------
 *
 * ratelimit.c
 *	  Token buckets in exact integer arithmetic.
 *
 * A rate is held as millionths of a token per second, so one microsecond at
 * that rate brings in that many units of 1e-12 token, an integer: nothing is
 * ever rounded after the rate itself, and a bucket does not drift however
 * often or seldom it is asked.
 *
 * A bucket is a number of whole tokens (31 bits), a fraction in units (40
 * bits), and the time at which they were counted (57 bits of signed
 * microseconds, +-2283 years), packed into two words because it lies in shared
 * memory once per response stream.
 *
 * Constraints: pure C, no 128-bit integers needed, no locks, no clock.
 *
 *-------------------------------------------------------------------------
 */
#include "ratelimit.h"

#include <limits.h>

#define UNITS_PER_TOKEN		INT64_C(1000000000000)
#define US_PER_S			INT64_C(1000000)
#define MICRO				1e6		/* millionths of a token in a token */
#define MAX_MICRO_RATE		INT64_C(1000000000000000)	/* 1e9 per second */

/*
 * Times read by different processes come a little out of order: then the later
 * one stands.  A clock that is further behind was set back, and waiting for it
 * to catch up would hold up a stream for as long.
 */
#define MAX_LAG				US_PER_S

#define FRACTION_BITS		40
#define LOW_TOKEN_BITS		24
#define HIGH_TOKEN_BITS		7
#define MAX_TIME			((INT64_C(1) << 56) - 1)

/* A bucket, unpacked. */
typedef struct Level
{
	int64_t		at;				/* microseconds */
	int64_t		tokens;			/* 0 .. INT_MAX */
	int64_t		units;			/* 0 .. UNITS_PER_TOKEN - 1 */
} Level;

static int64_t
clamp_time(int64_t now)
{
	if (now > MAX_TIME)
		return MAX_TIME;
	return now < -MAX_TIME ? -MAX_TIME : now;
}

static Level
unpack(const TokenBucket *bucket)
{
	Level		level;
	uint64_t	time = bucket->time_bits >> HIGH_TOKEN_BITS;
	uint64_t	high = bucket->time_bits & ((1u << HIGH_TOKEN_BITS) - 1);

	/* Extend the sign of the 57-bit time without shifting a negative. */
	level.at = (int64_t) time;
	if (level.at > MAX_TIME)
		level.at -= INT64_C(1) << 57;
	level.tokens = (int64_t) ((high << LOW_TOKEN_BITS) | (bucket->token_bits >> FRACTION_BITS));
	level.units = (int64_t) (bucket->token_bits & ((UINT64_C(1) << FRACTION_BITS) - 1));
	return level;
}

static void
pack(TokenBucket *bucket, const Level *level)
{
	uint64_t	tokens = (uint64_t) level->tokens;

	bucket->time_bits = ((uint64_t) level->at << HIGH_TOKEN_BITS) | (tokens >> LOW_TOKEN_BITS);
	bucket->token_bits = (tokens << FRACTION_BITS) | (uint64_t) level->units;
}

/* Millionths of a token per second; 0 for unlimited (which NaN is, too). */
static int64_t
micro_rate(double rate)
{
	double		micro = rate * MICRO;

	if (!(micro > 0))
		return 0;
	if (micro >= (double) MAX_MICRO_RATE)
		return MAX_MICRO_RATE;
	return micro < 1 ? 1 : (int64_t) (micro + 0.5);
}

static void
fill(Level *level, int64_t burst)
{
	level->tokens = burst;
	level->units = 0;
}

/*
 * Adds what came in since the level was counted, up to the burst.  Every
 * product below stays under 2^62: the seconds are bounded by the time that
 * fills the bucket from empty, the rest is less than a second.
 */
static void
refill(Level *level, int64_t rate, int64_t burst, int64_t now)
{
	int64_t		elapsed;
	int64_t		seconds;
	int64_t		us;
	int64_t		micro;
	int64_t		units;

	if (now <= level->at)
	{
		if (level->at - now > MAX_LAG)
			level->at = now;	/* the clock was set back: count from here */
		if (level->tokens >= burst)
			fill(level, burst);	/* the burst may have been lowered */
		return;
	}
	elapsed = now - level->at;
	level->at = now;
	seconds = elapsed / US_PER_S;
	us = elapsed % US_PER_S;
	if (level->tokens >= burst || seconds > burst * US_PER_S / rate)
	{
		fill(level, burst);
		return;
	}

	micro = seconds * rate;
	units = level->units + (micro % US_PER_S) * US_PER_S + us * (rate % UNITS_PER_TOKEN);
	level->tokens += micro / US_PER_S + us * (rate / UNITS_PER_TOKEN) + units / UNITS_PER_TOKEN;
	level->units = units % UNITS_PER_TOKEN;
	if (level->tokens >= burst)
		fill(level, burst);
}

/* The level at "now"; false if the rate is unlimited. */
static bool
level_at(const TokenBucket *bucket, double rate, int burst, int64_t now, Level *level)
{
	int64_t		micro = micro_rate(rate);

	if (micro == 0)
		return false;
	*level = unpack(bucket);
	refill(level, micro, burst < 1 ? 1 : burst, clamp_time(now));
	return true;
}

void
ratelimit_init(TokenBucket *bucket, double rate, int burst, int64_t now)
{
	Level		level;

	(void) rate;				/* a full bucket is the same at any rate */
	level.at = clamp_time(now);
	fill(&level, burst < 1 ? 1 : burst);
	pack(bucket, &level);
}

bool
ratelimit_take(TokenBucket *bucket, double rate, int burst, int64_t now)
{
	Level		level;
	bool		taken;

	if (!level_at(bucket, rate, burst, now, &level))
		return true;
	taken = level.tokens > 0;
	if (taken)
		level.tokens--;
	pack(bucket, &level);
	return taken;
}

void
ratelimit_give_back(TokenBucket *bucket, double rate, int burst)
{
	Level		level;

	if (micro_rate(rate) == 0)
		return;
	level = unpack(bucket);
	if (level.tokens < (burst < 1 ? 1 : burst))
		level.tokens++;
	pack(bucket, &level);
}

bool
ratelimit_peek(const TokenBucket *bucket, double rate, int burst, int64_t now)
{
	Level		level;

	return !level_at(bucket, rate, burst, now, &level) || level.tokens > 0;
}
