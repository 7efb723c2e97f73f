/*-------------------------------------------------------------------------
 *
 * allowance.c
 *	  Whether a stream, and its user, may have one more response.
 *
 * A stream's bucket is written by the channel's dispatcher alone, which goes
 * without a lock.  From a user's bucket the dispatchers of all its streams take.
 *
 * Locks: the spinlock of a user's bucket.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "allowance.h"

static int
user_burst(void)
{
	return subdispatch_user_burst > 0 ? subdispatch_user_burst :
		Max(1, (int) Min(subdispatch_user_rate_limit, 1e6));
}

static bool
user_passes(SdStream *stream, bool take)
{
	SdQuota    *user;
	double		rate = subdispatch_user_rate_limit;
	TimestampTz now;
	bool		result;

	if (rate <= 0)
		return true;
	user = stream_identity(stream)->user;
	if (user == NULL)
		return true;
	now = GetCurrentTimestamp();
	SpinLockAcquire(&user->mutex);
	result = take ? ratelimit_take(&user->tokens, rate, user_burst(), now) :
		ratelimit_peek(&user->tokens, rate, user_burst(), now);
	SpinLockRelease(&user->mutex);
	return result;
}

bool
allowance_ask(SdStream *stream, bool take)
{
	SdStreamLimit *limit = stream_rate(stream);
	TimestampTz now;

	if (limit == NULL)
		return user_passes(stream, take);
	now = GetCurrentTimestamp();
	if (!ratelimit_peek(&limit->tokens, limit->rate, limit->burst, now) ||
		!user_passes(stream, take))
		return false;
	if (take)
		(void) ratelimit_take(&limit->tokens, limit->rate, limit->burst, now);
	return true;
}

void
allowance_give_back(SdStream *stream, const TokenBucket *before)
{
	SdQuota    *user = stream_identity(stream)->user;

	if (stream_rate(stream))
		stream_rate(stream)->tokens = *before;
	if (user == NULL)
		return;
	SpinLockAcquire(&user->mutex);
	ratelimit_give_back(&user->tokens, subdispatch_user_rate_limit, user_burst());
	SpinLockRelease(&user->mutex);
}
