/*-------------------------------------------------------------------------
 *
 * envelope.c
 *	  An event of publish() as the text of a notification: writing, reading.
 *
 * Whoever can NOTIFY can send any text, so nothing is taken for granted when
 * reading: a text that is not exactly what envelope_format() could have made is
 * none.  The encoding of the strings is not looked at; the caller does that.
 *
 * No locks, no PostgreSQL: can be tested and fuzzed outside of the server.
 *
 *-------------------------------------------------------------------------
 */
#include "envelope.h"

#include <stdlib.h>
#include <string.h>

#include "jsonc.h"

#define PREFIX		"{\"subdispatch\":1,"
#define MAX_DEPTH	2			/* an object of scalars */

static bool
add_string(json_object *obj, const char *key, const char *s)
{
	return s == NULL || jsonc_add(obj, key, json_object_new_string(s));
}

char *
envelope_format(const Envelope *env)
{
	json_object *obj = json_object_new_object();
	char	   *line = NULL;

	if (obj == NULL)
		return NULL;
	/* "subdispatch" first: it is what the text is recognized by */
	if (jsonc_add(obj, "subdispatch", json_object_new_int(1)) &&
		jsonc_add(obj, "seq", json_object_new_int64(env->seq)) &&
		jsonc_add(obj, "pid", json_object_new_int(env->pid)) &&
		add_string(obj, "event_type", env->event_type) &&
		add_string(obj, "correlation_id", env->correlation_id) &&
		add_string(obj, "federation_id", env->federation_id) &&
		add_string(obj, "timestamp", env->timestamp))
	{
		size_t		len;
		const char *json = json_object_to_json_string_length(obj, JSON_C_TO_STRING_PLAIN |
															 JSON_C_TO_STRING_NOSLASHESCAPE, &len);

		line = json ? malloc(len + 2) : NULL;
		if (line)
		{
			memcpy(line, json, len);
			memcpy(line + len, "\n", 2);
		}
	}
	json_object_put(obj);
	return line;
}

bool
envelope_looks_like(const char *text)
{
	return strncmp(text, PREFIX, strlen(PREFIX)) == 0 && strchr(text, '\n') != NULL;
}

static bool
get_int(json_object *obj, const char *key, int64_t min, int64_t max, int64_t *value)
{
	json_object *member;

	if (!json_object_object_get_ex(obj, key, &member) ||
		!json_object_is_type(member, json_type_int))
		return false;
	*value = json_object_get_int64(member);
	return *value >= min && *value <= max;
}

/*
 * Copies a string to *buf and advances it; a missing one is NULL.  A decoded
 * string is never longer than what it was decoded from.
 */
static bool
get_string(json_object *obj, const char *key, const char **value, char **buf)
{
	json_object *member;
	const char *s;
	size_t		len;

	*value = NULL;
	if (!json_object_object_get_ex(obj, key, &member))
		return true;
	if (!json_object_is_type(member, json_type_string))
		return false;
	s = json_object_get_string(member);
	len = (size_t) json_object_get_string_len(member);
	if (strlen(s) != len)
		return false;			/* \u0000 */
	memcpy(*buf, s, len + 1);
	*value = *buf;
	*buf += len + 1;
	return true;
}

bool
envelope_parse(const char *text, Envelope *env, char *buf, const char **data)
{
	const char *end = strchr(text, '\n');
	json_object *obj;
	int64_t		version;
	int64_t		pid = 0;
	bool		ok;

	if (end == NULL)
		return false;
	obj = jsonc_parse_object(text, (size_t) (end - text), MAX_DEPTH);
	if (obj == NULL)
		return false;
	ok = get_int(obj, "subdispatch", 1, 1, &version) &&
		get_int(obj, "seq", INT64_MIN, INT64_MAX, &env->seq) &&
		get_int(obj, "pid", INT32_MIN, INT32_MAX, &pid) &&
		get_string(obj, "event_type", &env->event_type, &buf) &&
		get_string(obj, "correlation_id", &env->correlation_id, &buf) &&
		get_string(obj, "federation_id", &env->federation_id, &buf) &&
		get_string(obj, "timestamp", &env->timestamp, &buf);
	json_object_put(obj);
	env->pid = (int32_t) pid;
	*data = end + 1;
	return ok;
}
