/*-------------------------------------------------------------------------
 *
 * tap.h
 *	  The little of TAP that the unit tests need: ok(), is(), done().
 *
 *-------------------------------------------------------------------------
 */
#ifndef SUBDISPATCH_TAP_H
#define SUBDISPATCH_TAP_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static int	tap_tests = 0;
static int	tap_failed = 0;

static inline bool
ok(bool passed, const char *name)
{
	printf("%s %d - %s\n", passed ? "ok" : "not ok", ++tap_tests, name);
	if (!passed)
		tap_failed++;
	return passed;
}

static inline bool
is_int(int64_t got, int64_t expected, const char *name)
{
	bool		passed = ok(got == expected, name);

	if (!passed)
		printf("# got %" PRId64 ", expected %" PRId64 "\n", got, expected);
	return passed;
}

static inline bool
is_text(const char *got, const char *expected, const char *name)
{
	bool		passed = ok(strcmp(got, expected) == 0, name);

	if (!passed)
		printf("# got      %s\n# expected %s\n", got, expected);
	return passed;
}

/* The program's exit status. */
static inline int
done(void)
{
	printf("1..%d\n", tap_tests);
	return tap_failed > 0;
}

/* A seeded generator, so that a failure can be repeated (xorshift64*). */
static uint64_t tap_random_state = UINT64_C(0x9E3779B97F4A7C15);

static inline uint64_t
random_bits(void)
{
	tap_random_state ^= tap_random_state >> 12;
	tap_random_state ^= tap_random_state << 25;
	tap_random_state ^= tap_random_state >> 27;
	return tap_random_state * UINT64_C(0x2545F4914F6CDD1D);
}

static inline uint64_t
random_below(uint64_t bound)
{
	return random_bits() % bound;
}

#endif							/* SUBDISPATCH_TAP_H */
