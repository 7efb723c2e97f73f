/*-------------------------------------------------------------------------
 *
 * body.c
 *	  Payloads in shared memory, and who refers to them.
 *
 * When one body goes to many streams the references of their entries are taken
 * in advance, which is one atomic step for ADVANCE of them.  What was not
 * needed is given back when the dispatcher does something else, and at its end:
 * see stream_flush().
 *
 * No locks are taken, but for DSA's.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "stream_private.h"

#define ADVANCE		64

SdBody *
body_make(const char *data, Size len, uint64 event_id, bool is_error, bool has_event_id)
{
	SdBody	   *body = sd_alloc(SD_MEM_RESPONSE, offsetof(SdBody, data) + len);

	if (body == NULL)
		return NULL;
	pg_atomic_init_u32(&body->refs, 1);
	body->len = len;
	body->event_id = event_id;
	body->is_error = is_error;
	body->has_event_id = has_event_id;
	memcpy(body->data, data, len);
	return body;
}

void
body_unref(SdBody *body)
{
	if (body && pg_atomic_sub_fetch_u32(&body->refs, 1) == 0)
		sd_free(body);
}

SdBody *
body_ref(SdBody *body)
{
	pg_atomic_fetch_add_u32(&body->refs, 1);
	return body;
}

static SdBody *advanced = NULL; /* only to compare, unless nadvanced > 0 */
static uint32 nadvanced = 0;

void
body_give_back_advance(void)
{
	if (nadvanced > 0 && pg_atomic_sub_fetch_u32(&advanced->refs, nadvanced) == 0)
		sd_free(advanced);
	nadvanced = 0;
	advanced = NULL;
}

SdBody *
body_ref_for_entry(SdBody *body)
{
	if (body != advanced)
	{
		body_give_back_advance();
		advanced = body;
		return body_ref(body);
	}
	if (nadvanced == 0)
	{
		pg_atomic_fetch_add_u32(&body->refs, ADVANCE);
		nadvanced = ADVANCE;
	}
	nadvanced--;
	return body;
}
