/*-------------------------------------------------------------------------
 *
 * response.h
 *	  Text of graphql-transport-ws messages: payloads, which all subscriptions
 *	  of a response stream share, and the messages that carry them.
 *
 * Pure C and json-c, no PostgreSQL header.  Every function appends to the
 * buffer and returns true; when the buffer cannot grow it returns false and
 * leaves the buffer's content as it was.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SUBDISPATCH_RESPONSE_H
#define SUBDISPATCH_RESPONSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * A growable byte buffer, owned by the caller; the content is not
 * NUL-terminated.  Start with {NULL, 0, 0, grow}.
 *
 * grow(old, newsize) is realloc() in its contract: old may be NULL; it returns
 * NULL if there is no memory, or leaves by longjmp (no json-c object is alive
 * when it is called, so nothing leaks).
 */
typedef struct RespBuf
{
	char	   *data;
	size_t		len;
	size_t		cap;
	void	   *(*grow) (void *old, size_t newsize);
} RespBuf;

/* response_payload_with_dropped(): responses were lost, nobody knows how many */
#define RESPONSE_DROPPED_UNKNOWN	(-1)

/* "s" as a JSON string literal with its quotes; NULL is taken as "". */
extern bool response_escape(RespBuf *buf, const char *s);

/* Bytes that response_message() appends. */
extern size_t response_message_size(const char *type, size_t operation_id_len,
									const char *payload, size_t payload_len);

/*
 * A whole message, {"type":<type>,"id":<operation id>[,"payload":<payload>]}.
 * "type" is next, complete or error; the operation id comes from
 * response_escape(), once per subscription; a NULL payload is left out.
 */
extern bool response_message(RespBuf *buf, const char *type,
							 const char *escaped_operation_id, size_t operation_id_len,
							 const char *payload, size_t payload_len);

/*
 * {"data":<result>,"errors":null}, or with a response_key
 * {"data":{"<key>":<result>},"errors":null}.  A NULL result is JSON null.
 */
extern bool response_payload_data(RespBuf *buf, const char *result_json, size_t len,
								  const char *response_key, bool omit_null_errors);

/* {"data":null,"errors":[{"message":…,"extensions":{"code":<sqlstate>}}]} */
extern bool response_payload_error(RespBuf *buf, const char *message,
								   const char *sqlstate);

/*
 * "payload", an object, with "extensions":{"subdispatch":{"dropped":n}} as its
 * last member.  "payload" must not lie in "buf".
 */
extern bool response_payload_with_dropped(RespBuf *buf, const char *payload, size_t len,
										  int64_t dropped);

/*
 * Puts "extensions":{"subdispatch":{"eventId":<id>}} at the end of the payload
 * that begins at "start" in the buffer and ends with it; false if that is none.
 */
extern bool response_payload_add_event_id(RespBuf *buf, size_t start, int64_t event_id);

/* response_payload_with_dropped() for a payload that has an event id. */
extern bool response_payload_merge_dropped(RespBuf *buf, const char *payload, size_t len,
										   int64_t dropped);

/* A loss notice: {"data":null,"errors":null,"extensions":…} */
extern bool response_payload_loss(RespBuf *buf, int64_t dropped, bool omit_null_errors);

/* An "error" message's payload: [{"message":…,"extensions":{"code":<code>}}] */
extern bool response_payload_end(RespBuf *buf, const char *message, const char *code);

#endif							/* SUBDISPATCH_RESPONSE_H */
