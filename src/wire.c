/*-------------------------------------------------------------------------
 *
 * wire.c
 *	  An event as the text that travels between servers: writing, reading.
 *
 * A text comes from a server of the group, which its MAC has shown, but that
 * may run another version, or be broken: nothing is taken for granted when
 * reading.  The encoding of the strings is not looked at; the caller does that.
 *
 * The data follows DATA_KEY at the end of the object.  Where that key stands
 * can be found without reading what is before it: in front of a quote that is
 * inside a string stands a backslash.
 *
 * No locks, no PostgreSQL: can be tested and fuzzed outside of the server.
 *
 *-------------------------------------------------------------------------
 */
#include "wire.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "jsonc.h"

#define VERSION		1
#define DATA_KEY	",\"data\":"
#define MAX_DEPTH	4			/* an object of arrays of arrays of strings */

static const char no_memory[] = "out of memory";
static const char not_json[] = "it is not a JSON object as another server writes it";

/* ---- writing ---- */

static bool
add_string(json_object *obj, const char *key, const char *s)
{
	return s == NULL || jsonc_add(obj, key, json_object_new_string(s));
}

/* Takes over value. */
static bool
push(json_object *array, json_object *value)
{
	if (value == NULL)
		return false;
	if (json_object_array_add(array, value) == 0)
		return true;
	json_object_put(value);
	return false;
}

static json_object *
column_object(const WireColumn *column)
{
	json_object *pair = json_object_new_array();

	if (pair && push(pair, json_object_new_string(column->name)) &&
		push(pair, json_object_new_string(column->type)))
		return pair;
	json_object_put(pair);
	return NULL;
}

static bool
add_columns(json_object *obj, const Wire *wire)
{
	json_object *array = json_object_new_array();

	if (!jsonc_add(obj, "columns", array))
		return false;
	for (uint32_t i = 0; i < wire->ncolumns; i++)
		if (!push(array, column_object(&wire->columns[i])))
			return false;
	return true;
}

static bool
add_values(json_object *obj, const char *key, const char *const *values, uint32_t n)
{
	json_object *array;

	if (values == NULL)
		return true;
	array = json_object_new_array();
	if (!jsonc_add(obj, key, array))
		return false;
	for (uint32_t i = 0; i < n; i++)
	{
		/* json-c has NULL for null */
		if (values[i] == NULL)
		{
			if (json_object_array_add(array, NULL) != 0)
				return false;
		}
		else if (!push(array, json_object_new_string(values[i])))
			return false;
	}
	return true;
}

static bool
add_image(json_object *obj, const Wire *wire)
{
	return wire->op == NULL ||
		(add_string(obj, "op", wire->op) &&
		 add_string(obj, "schema", wire->schema) &&
		 add_string(obj, "table", wire->table) &&
		 add_columns(obj, wire) &&
		 add_values(obj, "row", wire->row, wire->ncolumns) &&
		 add_values(obj, "old", wire->old, wire->ncolumns));
}

static bool
add_commit(json_object *obj, const Wire *wire)
{
	return wire->lsn == NULL ||
		(add_string(obj, "system", wire->system) &&
		 jsonc_add(obj, "timeline", json_object_new_int64(wire->timeline)) &&
		 add_string(obj, "lsn", wire->lsn));
}

static bool
add_all(json_object *obj, const Wire *wire)
{
	return jsonc_add(obj, "subdispatch", json_object_new_int(VERSION)) &&
		add_string(obj, "encoding", wire->encoding) &&
		add_string(obj, "channel", wire->channel) &&
		add_string(obj, "source", wire->source) &&
		jsonc_add(obj, "timestamp", json_object_new_int64(wire->timestamp)) &&
		add_string(obj, "event_type", wire->event_type) &&
		add_string(obj, "correlation_id", wire->correlation_id) &&
		add_string(obj, "federation_id", wire->federation_id) &&
		add_commit(obj, wire) &&
		add_image(obj, wire);
}

char *
wire_format(const Wire *wire, size_t *len)
{
	json_object *obj = json_object_new_object();
	char	   *text = NULL;
	size_t		json_len;
	const char *json;

	if (obj && add_all(obj, wire) &&
		(json = json_object_to_json_string_length(obj, JSON_C_TO_STRING_PLAIN |
												  JSON_C_TO_STRING_NOSLASHESCAPE,
												  &json_len)) != NULL &&
		(text = malloc(json_len + strlen(DATA_KEY) + wire->data_len + 1)) != NULL)
	{
		memcpy(text, json, json_len);
		*len = json_len;
		if (wire->data)
		{
			/* in place of the closing brace */
			*len -= 1;
			memcpy(text + *len, DATA_KEY, strlen(DATA_KEY));
			*len += strlen(DATA_KEY);
			memcpy(text + *len, wire->data, wire->data_len);
			*len += wire->data_len;
			text[(*len)++] = '}';
		}
		text[*len] = '\0';
	}
	json_object_put(obj);
	return text;
}

/* ---- reading ---- */

/* The object without its data, which *wire gets. */
static json_object *
parse_around_data(const char *text, size_t len, const char *key, Wire *wire)
{
	size_t		head_len = (size_t) (key - text);
	const char *data = key + strlen(DATA_KEY);
	json_object *obj;
	char	   *head;

	if (data >= text + len - 1 || text[len - 1] != '}')
		return NULL;
	wire->data = data;
	wire->data_len = (size_t) (text + len - 1 - data);
	head = malloc(head_len + 2);
	if (head == NULL)
		return NULL;
	memcpy(head, text, head_len);
	memcpy(head + head_len, "}", 2);
	obj = jsonc_parse_object(head, head_len + 1, MAX_DEPTH);
	free(head);
	return obj;
}

static bool
get_int(json_object *obj, const char *key, int64_t min, int64_t *value)
{
	json_object *member;

	if (!json_object_object_get_ex(obj, key, &member) ||
		!json_object_is_type(member, json_type_int))
		return false;
	*value = json_object_get_int64(member);
	return *value >= min;
}

/* False unless it is a string without a NUL inside. */
static bool
string_of(json_object *value, const char **s)
{
	if (!json_object_is_type(value, json_type_string))
		return false;
	*s = json_object_get_string(value);
	return strlen(*s) == (size_t) json_object_get_string_len(value);
}

static bool
get_string(json_object *obj, const char *key, const char **s)
{
	json_object *member;

	return json_object_object_get_ex(obj, key, &member) && string_of(member, s);
}

/* A missing one is NULL. */
static bool
get_optional(json_object *obj, const char *key, const char **s)
{
	json_object *member;

	*s = NULL;
	return !json_object_object_get_ex(obj, key, &member) || string_of(member, s);
}

static bool
get_commit(json_object *obj, Wire *wire)
{
	return get_optional(obj, "lsn", &wire->lsn) &&
		(wire->lsn == NULL ||
		 (get_string(obj, "system", &wire->system) &&
		  get_int(obj, "timeline", 1, &wire->timeline) &&
		  wire->timeline <= UINT32_MAX));
}

static bool
fill_columns(json_object *array, WireColumn *columns, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
	{
		json_object *pair = json_object_array_get_idx(array, i);

		if (!json_object_is_type(pair, json_type_array) ||
			json_object_array_length(pair) != 2 ||
			!string_of(json_object_array_get_idx(pair, 0), &columns[i].name) ||
			!string_of(json_object_array_get_idx(pair, 1), &columns[i].type))
			return false;
	}
	return true;
}

/* *values is set to "to", or to NULL if there is no such member. */
static bool
fill_values(json_object *obj, const char *key, const char **to, uint32_t n,
			const char *const **values)
{
	json_object *array;

	*values = NULL;
	if (!json_object_object_get_ex(obj, key, &array))
		return true;
	if (!json_object_is_type(array, json_type_array) ||
		json_object_array_length(array) != n)
		return false;
	for (uint32_t i = 0; i < n; i++)
	{
		json_object *value = json_object_array_get_idx(array, i);

		to[i] = NULL;
		if (value != NULL && !string_of(value, &to[i]))
			return false;
	}
	*values = to;
	return true;
}

static const char *
get_image(json_object *obj, Wire *wire)
{
	json_object *array;
	size_t		n;
	WireColumn *columns;
	const char **values;

	if (!get_string(obj, "schema", &wire->schema) ||
		!get_string(obj, "table", &wire->table) ||
		!json_object_object_get_ex(obj, "columns", &array) ||
		!json_object_is_type(array, json_type_array))
		return "its row image does not name its table and columns";
	n = json_object_array_length(array);
	if (n > WIRE_MAX_COLUMNS)
		return "its row image has too many columns";

	/* one more, because of an image without any */
	wire->arrays = malloc((n + 1) * (sizeof(WireColumn) + 2 * sizeof(char *)));
	if (wire->arrays == NULL)
		return no_memory;
	columns = wire->arrays;
	values = (const char **) (columns + n);
	wire->ncolumns = (uint32_t) n;
	wire->columns = columns;
	if (!fill_columns(array, columns, wire->ncolumns) ||
		!fill_values(obj, "row", values, wire->ncolumns, &wire->row) ||
		!fill_values(obj, "old", values + n, wire->ncolumns, &wire->old))
		return "its row image does not have a value for each column";
	return NULL;
}

static const char *
read_object(json_object *obj, Wire *wire)
{
	int64_t		version;

	if (!get_int(obj, "subdispatch", 0, &version))
		return not_json;
	if (version != VERSION)
		return "it is of a version that this server does not know";
	if (!get_string(obj, "encoding", &wire->encoding) ||
		!get_string(obj, "channel", &wire->channel) ||
		!get_string(obj, "source", &wire->source) ||
		!get_int(obj, "timestamp", INT64_MIN, &wire->timestamp) ||
		!get_optional(obj, "event_type", &wire->event_type) ||
		!get_optional(obj, "correlation_id", &wire->correlation_id) ||
		!get_optional(obj, "federation_id", &wire->federation_id) ||
		!get_optional(obj, "op", &wire->op))
		return "a member is missing, or has the wrong type";
	if (!get_commit(obj, wire))
		return "its commit's position is incomplete";
	if ((wire->op == NULL) == (wire->data == NULL))
		return "it must have either data or a row image";
	return wire->op ? get_image(obj, wire) : NULL;
}

const char *
wire_parse(const char *text, size_t len, Wire *wire)
{
	const char *key;
	const char *why;
	json_object *obj;

	memset(wire, 0, sizeof(Wire));
	/* json-c takes an int */
	if (len < 2 || len >= INT_MAX || memchr(text, '\0', len) != NULL)
		return not_json;
	key = memmem(text, len, DATA_KEY, strlen(DATA_KEY));
	if (key)
		obj = parse_around_data(text, len, key, wire);
	else
		obj = jsonc_parse_object(text, len, MAX_DEPTH);
	if (obj == NULL)
		return not_json;
	wire->tree = obj;
	why = read_object(obj, wire);
	if (why)
		wire_free(wire);
	return why;
}

void
wire_free(Wire *wire)
{
	json_object_put(wire->tree);
	free(wire->arrays);
	wire->tree = NULL;
	wire->arrays = NULL;
}
