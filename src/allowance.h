/*-------------------------------------------------------------------------
 *
 * allowance.h
 *	  Whether a stream, and its user, may have one more response.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_ALLOWANCE_H
#define SD_ALLOWANCE_H

#include "stream.h"

/*
 * Has the stream a token, and its user?  Takes them if take is true: both or
 * none.  To take is the channel's dispatcher's alone; others get a guess.
 */
extern bool allowance_ask(SdStream *stream, bool take);

/* Most streams have no limit at all, which is quickly seen. */
static inline bool
allowance_pass(SdStream *stream, bool take)
{
	if (stream->extras == 0 && subdispatch_user_rate_limit <= 0)
		return true;
	return allowance_ask(stream, take);
}

/*
 * Gives back what allowance_pass() took for the stream's last response: *before
 * is the stream's bucket as it was before that.
 */
extern void allowance_give_back(SdStream *stream, const TokenBucket *before);

#endif							/* SD_ALLOWANCE_H */
