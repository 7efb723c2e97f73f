/*-------------------------------------------------------------------------
 *
 * response.c
 *	  Text of graphql-transport-ws messages.
 *
 * A response is serialized once, as a payload that all subscriptions of its
 * response stream share.  What differs between them, the operation id, is put
 * in front when the message is read, so a message costs two copies and no JSON
 * work.  Strings are written by json-c; results are JSON text already.
 *
 * Constraints: pure C and json-c, no locks.  Text is taken to be valid in its
 * encoding.  Room is made before a json-c object exists, so that a grow()
 * which leaves by longjmp leaks nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "response.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define FIRST_CAPACITY	256

/* ---------- the buffer ---------- */

/* Makes room for "more" bytes. */
static bool
reserve(RespBuf *buf, size_t more)
{
	size_t		cap = buf->cap;
	void	   *data;

	if (more <= buf->cap - buf->len)
		return true;
	if (more > SIZE_MAX / 2 - buf->len)
		return false;
	if (cap < FIRST_CAPACITY)
		cap = FIRST_CAPACITY;
	while (cap < buf->len + more)
		cap *= 2;
	data = buf->grow(buf->data, cap);
	if (data == NULL)
		return false;
	buf->data = data;
	buf->cap = cap;
	return true;
}

static bool
append(RespBuf *buf, const char *bytes, size_t len)
{
	if (!reserve(buf, len))
		return false;
	if (len > 0)
		memcpy(buf->data + buf->len, bytes, len);
	buf->len += len;
	return true;
}

static bool
append_text(RespBuf *buf, const char *text)
{
	return append(buf, text, strlen(text));
}

/* For functions that append several parts: all of them or nothing. */
static bool
finish(RespBuf *buf, size_t start, bool ok)
{
	if (!ok)
		buf->len = start;
	return ok;
}

/* ---------- strings ---------- */

/* An upper bound for the literal's length; false if it is absurd. */
static bool
literal_bound(const char *s, size_t len, size_t *bound)
{
	*bound = 2;
	if (len > INT_MAX / 6)
		return false;			/* json-c counts in int */
	for (size_t i = 0; i < len; i++)
	{
		unsigned char c = (unsigned char) s[i];

		*bound += (c < 0x20) ? 6 : (c == '"' || c == '\\') ? 2 : 1;
	}
	return true;
}

bool
response_escape(RespBuf *buf, const char *s)
{
	size_t		len = s ? strlen(s) : 0;
	size_t		bound;
	json_object *string;
	const char *literal;
	size_t		literal_len;
	bool		ok = false;

	if (!literal_bound(s, len, &bound) || !reserve(buf, bound))
		return false;

	string = json_object_new_string_len(s ? s : "", (int) len);
	if (string == NULL)
		return false;
	literal = json_object_to_json_string_length(string, JSON_C_TO_STRING_PLAIN |
												JSON_C_TO_STRING_NOSLASHESCAPE,
												&literal_len);
	if (literal != NULL && literal_len <= bound)
		ok = append(buf, literal, literal_len);
	json_object_put(string);
	return ok;
}

/* ---------- messages ---------- */

static inline char *
put(char *at, const char *bytes, size_t len)
{
	memcpy(at, bytes, len);
	return at + len;
}

#define MESSAGE_TYPE	"{\"type\":\""
#define MESSAGE_ID		"\",\"id\":"
#define MESSAGE_PAYLOAD	",\"payload\":"

size_t
response_message_size(const char *type, size_t operation_id_len,
					  const char *payload, size_t payload_len)
{
	size_t		size = sizeof(MESSAGE_TYPE) - 1 + strlen(type) +
		sizeof(MESSAGE_ID) - 1 + operation_id_len + 1;

	if (payload != NULL)
		size += sizeof(MESSAGE_PAYLOAD) - 1 + payload_len;
	return size;
}

bool
response_message(RespBuf *buf, const char *type,
				 const char *escaped_operation_id, size_t operation_id_len,
				 const char *payload, size_t payload_len)
{
	char	   *at;

	/* Made for every delivery: room is made once, and what is constant is copied as such. */
	if (!reserve(buf, response_message_size(type, operation_id_len, payload, payload_len)))
		return false;
	at = buf->data + buf->len;
	at = put(at, MESSAGE_TYPE, sizeof(MESSAGE_TYPE) - 1);
	at = put(at, type, strlen(type));
	at = put(at, MESSAGE_ID, sizeof(MESSAGE_ID) - 1);
	at = put(at, escaped_operation_id, operation_id_len);
	if (payload != NULL)
	{
		at = put(at, MESSAGE_PAYLOAD, sizeof(MESSAGE_PAYLOAD) - 1);
		at = put(at, payload, payload_len);
	}
	*at++ = '}';
	buf->len = at - buf->data;
	return true;
}

/* ---------- payloads ---------- */

bool
response_payload_data(RespBuf *buf, const char *result_json, size_t len,
					  const char *response_key, bool omit_null_errors)
{
	size_t		start = buf->len;
	bool		ok = append_text(buf, "{\"data\":");

	if (result_json == NULL)
	{
		result_json = "null";
		len = strlen(result_json);
	}
	if (ok && response_key != NULL)
		ok = append_text(buf, "{") && response_escape(buf, response_key) &&
			append_text(buf, ":");
	ok = ok && append(buf, result_json, len);
	if (ok && response_key != NULL)
		ok = append_text(buf, "}");
	if (ok && !omit_null_errors)
		ok = append_text(buf, ",\"errors\":null");
	return finish(buf, start, ok && append_text(buf, "}"));
}

/* [{"message":…,"extensions":{"code":…}}] */
static bool
append_errors(RespBuf *buf, const char *message, const char *code)
{
	return append_text(buf, "[{\"message\":") &&
		response_escape(buf, message) &&
		append_text(buf, ",\"extensions\":{\"code\":") &&
		response_escape(buf, code) &&
		append_text(buf, "}}]");
}

bool
response_payload_error(RespBuf *buf, const char *message, const char *sqlstate)
{
	size_t		start = buf->len;

	return finish(buf, start,
				  append_text(buf, "{\"data\":null,\"errors\":") &&
				  append_errors(buf, message, sqlstate) &&
				  append_text(buf, "}"));
}

bool
response_payload_end(RespBuf *buf, const char *message, const char *code)
{
	size_t		start = buf->len;

	return finish(buf, start, append_errors(buf, message, code));
}

#define EXTENSIONS		"\"extensions\":{\"subdispatch\":{"
#define EXTENSIONS_END	"}}}"	/* with the brace that closes the payload */

static bool
append_number(RespBuf *buf, const char *name, int64_t n)
{
	char		member[64];

	snprintf(member, sizeof(member), "\"%s\":%" PRId64, name, n);
	return append_text(buf, member);
}

/* "dropped":n */
static bool
append_dropped_member(RespBuf *buf, int64_t dropped)
{
	return dropped >= 0 ? append_number(buf, "dropped", dropped) :
		append_text(buf, "\"dropped\":null");
}

/* "extensions":{"subdispatch":{"dropped":n}} and the brace that closes all */
static bool
append_dropped(RespBuf *buf, int64_t dropped)
{
	return append_text(buf, EXTENSIONS) && append_dropped_member(buf, dropped) &&
		append_text(buf, EXTENSIONS_END);
}

/* The payload's closing brace makes room for more members. */
bool
response_payload_add_event_id(RespBuf *buf, size_t start, int64_t event_id)
{
	size_t		end = buf->len;
	bool		ok;

	if (end < start + 3 || buf->data[start] != '{' || buf->data[end - 1] != '}')
		return false;
	ok = reserve(buf, sizeof(EXTENSIONS) + sizeof(EXTENSIONS_END) + 64);
	if (!ok)
		return false;
	buf->len--;
	return append_text(buf, "," EXTENSIONS) && append_number(buf, "eventId", event_id) &&
		append_text(buf, EXTENSIONS_END);
}

/* Its end is known: the member goes in before the braces. */
bool
response_payload_merge_dropped(RespBuf *buf, const char *payload, size_t len,
							   int64_t dropped)
{
	size_t		start = buf->len;
	size_t		braces = strlen(EXTENSIONS_END);

	if (len <= braces || memcmp(payload + len - braces, EXTENSIONS_END, braces) != 0)
		return false;
	return finish(buf, start,
				  append(buf, payload, len - braces) && append_text(buf, ",") &&
				  append_dropped_member(buf, dropped) && append_text(buf, EXTENSIONS_END));
}

bool
response_payload_with_dropped(RespBuf *buf, const char *payload, size_t len,
							  int64_t dropped)
{
	size_t		start = buf->len;
	bool		ok;

	if (len < 2 || payload[0] != '{' || payload[len - 1] != '}')
		return false;			/* no object: nothing to be a member of */
	ok = append(buf, payload, len - 1);
	if (ok && len > 2)
		ok = append_text(buf, ",");
	return finish(buf, start, ok && append_dropped(buf, dropped));
}

bool
response_payload_loss(RespBuf *buf, int64_t dropped, bool omit_null_errors)
{
	size_t		start = buf->len;

	return finish(buf, start,
				  append_text(buf, omit_null_errors ? "{\"data\":null," :
							  "{\"data\":null,\"errors\":null,") &&
				  append_dropped(buf, dropped));
}
