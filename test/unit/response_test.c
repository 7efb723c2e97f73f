/* Unit tests of src/response.c. */
/* uses: response.c */
#include "response.h"
#include "tap.h"

#include <json-c/json.h>
#include <setjmp.h>
#include <stdlib.h>

/* ---------- helpers ---------- */

static int	grows_left = -1;	/* -1: as many as it likes */
static jmp_buf *jump;			/* leave grow() this way when none are left */

static void *
grow(void *old, size_t newsize)
{
	if (grows_left == 0)
	{
		if (jump)
			longjmp(*jump, 1);
		return NULL;
	}
	if (grows_left > 0)
		grows_left--;
	return realloc(old, newsize);
}

/* The buffer's content as a string; the next call starts anew. */
static const char *
text(RespBuf *buf)
{
	static char *copy = NULL;

	free(copy);
	copy = malloc(buf->len + 1);
	if (copy == NULL)
		abort();
	if (buf->len > 0)
		memcpy(copy, buf->data, buf->len);
	copy[buf->len] = '\0';
	buf->len = 0;
	return copy;
}

/* The text, whole, as JSON; NULL if it is none. */
static json_object *
parse(const char *json, size_t len)
{
	json_tokener *tokener = json_tokener_new_ex(100);
	json_object *result;

	json_tokener_set_flags(tokener, JSON_TOKENER_STRICT);
	result = json_tokener_parse_ex(tokener, json, (int) len);
	if (json_tokener_get_error(tokener) != json_tokener_success ||
		json_tokener_get_parse_end(tokener) != len)
	{
		json_object_put(result);
		result = NULL;
	}
	json_tokener_free(tokener);
	return result;
}

/* ---------- tests ---------- */

static void
test_strings(RespBuf *buf)
{
	ok(response_escape(buf, "a\"b\\c/d\n\x01\x1f\x7f\xc3\xa9"), "a string with everything in it");
	is_text(text(buf), "\"a\\\"b\\\\c/d\\n\\u0001\\u001f\x7f\xc3\xa9\"", "is escaped, slashes are not");
	response_escape(buf, "");
	is_text(text(buf), "\"\"", "an empty string");
	response_escape(buf, NULL);
	is_text(text(buf), "\"\"", "a NULL string");
}

static void
test_messages(RespBuf *buf)
{
	size_t		size;

	response_message(buf, "next", "\"1\"", 3, "{\"data\":1}", 10);
	size = buf->len;
	is_text(text(buf), "{\"type\":\"next\",\"id\":\"1\",\"payload\":{\"data\":1}}", "next");
	is_int((int64_t) response_message_size("next", 3, "{\"data\":1}", 10), (int64_t) size, "its size");
	response_message(buf, "complete", "\"1\"", 3, NULL, 0);
	size = buf->len;
	is_text(text(buf), "{\"type\":\"complete\",\"id\":\"1\"}", "complete has no payload");
	is_int((int64_t) response_message_size("complete", 3, NULL, 0), (int64_t) size, "its size");
	response_message(buf, "next", "\"a\"", 3, "{}", 2);
	response_message(buf, "complete", "\"b\"", 3, NULL, 0);
	is_text(text(buf), "{\"type\":\"next\",\"id\":\"a\",\"payload\":{}}{\"type\":\"complete\",\"id\":\"b\"}",
			"messages are appended");
}

static void
test_payloads(RespBuf *buf)
{
	response_payload_data(buf, "{\"a\":1}", 7, NULL, false);
	is_text(text(buf), "{\"data\":{\"a\":1},\"errors\":null}", "data");
	response_payload_data(buf, "{\"a\":1}", 7, NULL, true);
	is_text(text(buf), "{\"data\":{\"a\":1}}", "data without null errors");
	response_payload_data(buf, "{\"a\":1}", 7, "k\"ey", false);
	is_text(text(buf), "{\"data\":{\"k\\\"ey\":{\"a\":1}},\"errors\":null}", "data under a key");
	response_payload_data(buf, "1", 1, "", true);
	is_text(text(buf), "{\"data\":{\"\":1}}", "an empty key is a key");
	response_payload_data(buf, NULL, 0, NULL, false);
	is_text(text(buf), "{\"data\":null,\"errors\":null}", "no result is null");
	response_payload_error(buf, "canceling \"x\"", "57014");
	is_text(text(buf), "{\"data\":null,\"errors\":[{\"message\":\"canceling \\\"x\\\"\","
			"\"extensions\":{\"code\":\"57014\"}}]}", "an error");
	response_payload_end(buf, "gone", "42501");
	is_text(text(buf), "[{\"message\":\"gone\",\"extensions\":{\"code\":\"42501\"}}]", "an end");
}

static void
test_losses(RespBuf *buf)
{
	const char *payload = "{\"data\":{\"a\":{}},\"errors\":null}";

	response_payload_with_dropped(buf, payload, strlen(payload), 3);
	is_text(text(buf), "{\"data\":{\"a\":{}},\"errors\":null,"
			"\"extensions\":{\"subdispatch\":{\"dropped\":3}}}", "a loss in a payload");
	response_payload_with_dropped(buf, "{}", 2, INT64_MAX);
	is_text(text(buf), "{\"extensions\":{\"subdispatch\":{\"dropped\":9223372036854775807}}}",
			"in an empty one, and the largest number");
	response_payload_with_dropped(buf, payload, strlen(payload), RESPONSE_DROPPED_UNKNOWN);
	is_text(text(buf), "{\"data\":{\"a\":{}},\"errors\":null,"
			"\"extensions\":{\"subdispatch\":{\"dropped\":null}}}", "an unknown loss is null");
	ok(!response_payload_with_dropped(buf, "[]", 2, 1), "an array has no extensions");
	ok(!response_payload_with_dropped(buf, "{", 1, 1), "nor has half an object");
	ok(!response_payload_with_dropped(buf, "", 0, 1), "nor has nothing");
	is_int((int64_t) buf->len, 0, "which append nothing");
	response_payload_loss(buf, 2, false);
	is_text(text(buf), "{\"data\":null,\"errors\":null,"
			"\"extensions\":{\"subdispatch\":{\"dropped\":2}}}", "a loss notice");
	response_payload_loss(buf, -1, true);
	is_text(text(buf), "{\"data\":null,\"extensions\":{\"subdispatch\":{\"dropped\":null}}}",
			"a loss notice without null errors");
}

static void
test_event_ids(RespBuf *buf)
{
	const char *payload = "{\"data\":{\"a\":{}},\"errors\":null,"
		"\"extensions\":{\"subdispatch\":{\"eventId\":9007199254740991}}}";

	response_payload_data(buf, "{\"a\":{}}", 8, NULL, false);
	response_payload_add_event_id(buf, 0, INT64_C(9007199254740991));
	is_text(text(buf), payload, "an event id in a payload");
	response_payload_error(buf, "x", "57014");
	response_payload_add_event_id(buf, 0, 7);
	is_text(text(buf), "{\"data\":null,\"errors\":[{\"message\":\"x\",\"extensions\":{\"code\":\"57014\"}}],"
			"\"extensions\":{\"subdispatch\":{\"eventId\":7}}}", "in that of an error");
	response_payload_merge_dropped(buf, payload, strlen(payload), 3);
	is_text(text(buf), "{\"data\":{\"a\":{}},\"errors\":null,"
			"\"extensions\":{\"subdispatch\":{\"eventId\":9007199254740991,\"dropped\":3}}}",
			"a loss joins it");
	response_payload_merge_dropped(buf, payload, strlen(payload), RESPONSE_DROPPED_UNKNOWN);
	is_text(text(buf), "{\"data\":{\"a\":{}},\"errors\":null,"
			"\"extensions\":{\"subdispatch\":{\"eventId\":9007199254740991,\"dropped\":null}}}",
			"an unknown one, too");
	ok(!response_payload_merge_dropped(buf, "{\"data\":1}", 10, 1) && buf->len == 0,
	   "it joins nothing else");
	ok(!response_payload_add_event_id(buf, 0, 1) && buf->len == 0, "no payload gets no id");
}

/* Everything into one buffer; the number of parts that failed. */
static int
append_everything(RespBuf *buf, const char *s)
{
	size_t		start = buf->len;
	int			failed = 0;

	failed += !response_escape(buf, s);
	failed += !response_message(buf, "next", "\"1\"", 3, "{}", 2);
	failed += !response_payload_data(buf, "{}", 2, s, false);
	failed += !response_payload_error(buf, s, s);
	failed += !response_payload_with_dropped(buf, "{\"data\":1}", 10, 1);
	failed += !response_payload_loss(buf, 1, false);
	failed += !response_payload_end(buf, s, s);
	if (failed == 7 && buf->len != start)
		return -1;
	return failed;
}

static void
test_no_memory(void)
{
	char		s[500];
	bool		consistent = true;
	jmp_buf		environment;

	memset(s, '\n', sizeof(s) - 1);
	s[sizeof(s) - 1] = '\0';
	for (int n = 0; n < 8; n++)
	{
		RespBuf		buf = {NULL, 0, 0, grow};
		int			failed;

		grows_left = n;
		failed = append_everything(&buf, s);
		consistent &= failed >= 0 && (n > 0 || failed == 7) && buf.len <= buf.cap;
		free(buf.data);
	}
	ok(consistent, "without memory a function fails and appends nothing");

	/* The address sanitizer says at the end whether json-c objects leaked. */
	for (volatile int n = 0; n < 8; n++)
	{
		static RespBuf buf;

		buf = (RespBuf) {NULL, 0, 0, grow};
		grows_left = n;
		jump = &environment;
		if (setjmp(environment) == 0)
			append_everything(&buf, s);
		free(buf.data);
	}
	ok(true, "a grow() that jumps out leaks nothing");
	jump = NULL;
	grows_left = -1;
}

/* Random strings: what json-c reads back is what went in. */
static bool
round_trip(RespBuf *buf)
{
	char		s[300];
	size_t		len = random_below(sizeof(s));
	json_object *message;
	json_object *errors;
	json_object *dropped;
	json_object *string;
	RespBuf		payload = {NULL, 0, 0, grow};
	RespBuf		id = {NULL, 0, 0, grow};
	bool		same;

	for (size_t i = 0; i < len; i++)
		s[i] = (char) (1 + random_below(random_below(2) ? 127 : 40));
	s[len] = '\0';

	response_payload_error(&payload, s, "57014");
	response_escape(&id, s);
	buf->len = 0;
	response_payload_with_dropped(buf, payload.data, payload.len, (int64_t) len);
	payload.len = 0;
	response_message(&payload, "next", id.data, id.len, buf->data, buf->len);

	message = parse(payload.data, payload.len);
	same = message != NULL &&
		json_object_object_get_ex(message, "id", &string) &&
		strcmp(json_object_get_string(string), s) == 0 &&
		json_pointer_get(message, "/payload/errors", &errors) == 0 &&
		json_object_object_get_ex(json_object_array_get_idx(errors, 0), "message", &string) &&
		strcmp(json_object_get_string(string), s) == 0 &&
		json_pointer_get(message, "/payload/extensions/subdispatch/dropped", &dropped) == 0 &&
		json_object_get_int64(dropped) == (int64_t) len;
	json_object_put(message);
	free(payload.data);
	free(id.data);
	return same;
}

int
main(void)
{
	RespBuf		buf = {NULL, 0, 0, grow};
	int			differ = 0;

	test_strings(&buf);
	test_messages(&buf);
	test_payloads(&buf);
	test_losses(&buf);
	test_event_ids(&buf);
	test_no_memory();
	for (int i = 0; i < 20000; i++)
		differ += !round_trip(&buf);
	is_int(differ, 0, "20000 random strings come back from a whole message");
	free(buf.data);
	return done();
}
