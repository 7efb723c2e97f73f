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

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jsonc.h"

#define VERSION		1
#define DATA_KEY	",\"data\":"
#define MAX_DEPTH	4			/* an object of arrays of arrays of strings */

static const char no_memory[] = "out of memory";
static const char not_json[] = "it is not a JSON object as another server writes it";

/* ---- writing ---- */

/* A text that grows; "text" is NULL when there was no memory. */
typedef struct Buffer
{
	char	   *text;
	size_t		len;
	size_t		size;
} Buffer;

/* Room for n bytes more, and a NUL. */
static bool
make_room(Buffer *buf, size_t n)
{
	size_t		size = buf->size;
	char	   *text;

	if (buf->text == NULL)
		return false;
	if (n < size - buf->len)
		return true;
	while (n >= size - buf->len)
		size *= 2;
	text = realloc(buf->text, size);
	if (text == NULL)
		free(buf->text);
	buf->text = text;
	buf->size = size;
	return text != NULL;
}

static void
add_bytes(Buffer *buf, const char *bytes, size_t n)
{
	if (!make_room(buf, n))
		return;
	memcpy(buf->text + buf->len, bytes, n);
	buf->len += n;
}

static void
add_literal(Buffer *buf, const char *s)
{
	add_bytes(buf, s, strlen(s));
}

/* The letter that stands for the character behind a backslash, 'u' for \u00xx; or 0. */
static char
escape_of(unsigned char c)
{
	switch (c)
	{
		case '"':
		case '\\':
			return (char) c;
		case '\b':
			return 'b';
		case '\f':
			return 'f';
		case '\n':
			return 'n';
		case '\r':
			return 'r';
		case '\t':
			return 't';
		default:
			return c < ' ' ? 'u' : 0;
	}
}

static void
add_escaped(Buffer *buf, unsigned char c, char escape)
{
	static const char digits[] = "0123456789abcdef";
	char		text[6] = {'\\', escape, '0', '0', digits[c >> 4], digits[c & 15]};

	add_bytes(buf, text, escape == 'u' ? 6 : 2);
}

static void
add_quoted(Buffer *buf, const char *s)
{
	const char *plain = s;

	add_bytes(buf, "\"", 1);
	for (; *s; s++)
	{
		char		escape = escape_of((unsigned char) *s);

		if (escape == 0)
			continue;
		add_bytes(buf, plain, (size_t) (s - plain));
		add_escaped(buf, (unsigned char) *s, escape);
		plain = s + 1;
	}
	add_bytes(buf, plain, (size_t) (s - plain));
	add_bytes(buf, "\"", 1);
}

/* key: with all that stands before the value. */
static void
add_string(Buffer *buf, const char *key, const char *s)
{
	if (s == NULL)
		return;
	add_literal(buf, key);
	add_quoted(buf, s);
}

static void
add_int(Buffer *buf, const char *key, int64_t value)
{
	char		digits[24];

	add_literal(buf, key);
	add_bytes(buf, digits, (size_t) snprintf(digits, sizeof(digits), "%" PRId64, value));
}

static void
add_columns(Buffer *buf, const Wire *wire)
{
	add_literal(buf, ",\"columns\":[");
	for (uint32_t i = 0; i < wire->ncolumns; i++)
	{
		add_string(buf, i == 0 ? "[" : ",[", wire->columns[i].name);
		add_string(buf, ",", wire->columns[i].type);
		add_literal(buf, "]");
	}
	add_literal(buf, "]");
}

static void
add_values(Buffer *buf, const char *key, const char *const *values, uint32_t n)
{
	if (values == NULL)
		return;
	add_literal(buf, key);
	for (uint32_t i = 0; i < n; i++)
	{
		if (i > 0)
			add_literal(buf, ",");
		if (values[i] == NULL)
			add_literal(buf, "null");
		else
			add_quoted(buf, values[i]);
	}
	add_literal(buf, "]");
}

static void
add_image(Buffer *buf, const Wire *wire)
{
	if (wire->op == NULL)
		return;
	add_string(buf, ",\"op\":", wire->op);
	add_string(buf, ",\"schema\":", wire->schema);
	add_string(buf, ",\"table\":", wire->table);
	add_columns(buf, wire);
	add_values(buf, ",\"row\":[", wire->row, wire->ncolumns);
	add_values(buf, ",\"old\":[", wire->old, wire->ncolumns);
}

static void
add_commit(Buffer *buf, const Wire *wire)
{
	if (wire->lsn == NULL)
		return;
	add_string(buf, ",\"system\":", wire->system);
	add_int(buf, ",\"timeline\":", wire->timeline);
	add_string(buf, ",\"lsn\":", wire->lsn);
}

char *
wire_format(const Wire *wire, size_t *len)
{
	Buffer		buf = {.size = 512 + wire->data_len};

	buf.text = malloc(buf.size);
	add_int(&buf, "{\"subdispatch\":", VERSION);
	add_string(&buf, ",\"encoding\":", wire->encoding);
	add_string(&buf, ",\"channel\":", wire->channel);
	add_string(&buf, ",\"source\":", wire->source);
	add_int(&buf, ",\"timestamp\":", wire->timestamp);
	add_string(&buf, ",\"event_type\":", wire->event_type);
	add_string(&buf, ",\"correlation_id\":", wire->correlation_id);
	add_string(&buf, ",\"federation_id\":", wire->federation_id);
	add_commit(&buf, wire);
	add_image(&buf, wire);
	if (wire->data)
	{
		add_literal(&buf, DATA_KEY);
		add_bytes(&buf, wire->data, wire->data_len);
	}
	add_literal(&buf, "}");
	if (buf.text)
		buf.text[buf.len] = '\0';
	*len = buf.len;
	return buf.text;
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
