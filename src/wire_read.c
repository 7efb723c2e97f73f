/*-------------------------------------------------------------------------
 *
 * wire_read.c
 *	  An event as the text that travels between servers: reading.
 *
 * A text comes from a server of the group, which its MAC has shown, but that
 * may run another version, or be broken: nothing is taken for granted.  The
 * encoding of the strings is not looked at; the caller does that.
 *
 * The data follows WIRE_DATA_KEY at the end of the object.  Where that key
 * stands can be found without reading what is before it: in front of a quote
 * that is inside a string stands a backslash.
 *
 * What is before it is read once as JSON, whatever it says, and the values of
 * the members that we know are noted; then it is seen whether they are what they
 * should be.  Strings are decoded into one piece of memory as large as the text,
 * which is enough: none becomes longer by that, and each has two quotes for the
 * NUL at its end.
 *
 * No locks, no PostgreSQL: can be tested and fuzzed outside of the server.
 *
 *-------------------------------------------------------------------------
 */
#include "wire.h"

#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH	4			/* an object of arrays of arrays of strings */

static const char no_memory[] = "out of memory";
static const char not_json[] = "it is not a JSON object as another server writes it";

typedef struct Reader
{
	const char *at;
	const char *end;
	bool		open;			/* the end stands for the closing brace */
	char	   *strings;		/* where the next one goes */
} Reader;

typedef enum ValueType
{
	VALUE_NONE,					/* no such member */
	VALUE_STRING,
	VALUE_INT,
	VALUE_ARRAY,
	VALUE_OTHER
} ValueType;

typedef struct Value
{
	ValueType	type;
	const char *string;
	bool		has_nul;		/* and so is no C string */
	int64_t		number;
	const char *array;			/* its opening bracket */
	size_t		count;			/* of its elements */
} Value;

/* In the order in which they are written. */
typedef enum Member
{
	M_VERSION, M_ENCODING, M_CHANNEL, M_SOURCE, M_TIMESTAMP, M_EVENT_TYPE, M_CORRELATION_ID,
	M_FEDERATION_ID, M_SYSTEM, M_TIMELINE, M_LSN, M_OP, M_SCHEMA, M_TABLE, M_COLUMNS, M_ROW,
	M_OLD, MEMBERS
} Member;

static const char *const names[MEMBERS] = {
	"subdispatch", "encoding", "channel", "source", "timestamp", "event_type", "correlation_id",
	"federation_id", "system", "timeline", "lsn", "op", "schema", "table", "columns", "row",
	"old"
};

/* ---- JSON ---- */

/* The next character that is no space; 0 at the end. */
static char
look(Reader *r)
{
	while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r'))
		r->at++;
	return r->at < r->end ? *r->at : 0;
}

static bool
take(Reader *r, char c)
{
	if (look(r) != c)
		return false;
	r->at++;
	return true;
}

static bool
take_hex4(Reader *r, uint32_t *code)
{
	*code = 0;
	for (int i = 0; i < 4; i++)
	{
		char		c = r->at < r->end ? *r->at++ : 0;

		if (c >= '0' && c <= '9')
			*code = *code * 16 + (uint32_t) (c - '0');
		else if ((c | 32) >= 'a' && (c | 32) <= 'f')
			*code = *code * 16 + (uint32_t) ((c | 32) - 'a' + 10);
		else
			return false;
	}
	return true;
}

static void
put_utf8(char **to, uint32_t code)
{
	char	   *p = *to;

	if (code < 0x80)
		*p++ = (char) code;
	else if (code < 0x800)
	{
		*p++ = (char) (0xC0 | (code >> 6));
		*p++ = (char) (0x80 | (code & 0x3F));
	}
	else if (code < 0x10000)
	{
		*p++ = (char) (0xE0 | (code >> 12));
		*p++ = (char) (0x80 | ((code >> 6) & 0x3F));
		*p++ = (char) (0x80 | (code & 0x3F));
	}
	else
	{
		*p++ = (char) (0xF0 | (code >> 18));
		*p++ = (char) (0x80 | ((code >> 12) & 0x3F));
		*p++ = (char) (0x80 | ((code >> 6) & 0x3F));
		*p++ = (char) (0x80 | (code & 0x3F));
	}
	*to = p;
}

/* Behind "\u".  Halves of a pair must come together. */
static bool
take_unicode(Reader *r, char **to, bool *has_nul)
{
	uint32_t	code;
	uint32_t	low;

	if (!take_hex4(r, &code) || (code >= 0xDC00 && code <= 0xDFFF))
		return false;
	if (code >= 0xD800 && code <= 0xDBFF)
	{
		if (r->end - r->at < 2 || r->at[0] != '\\' || r->at[1] != 'u')
			return false;
		r->at += 2;
		if (!take_hex4(r, &low) || low < 0xDC00 || low > 0xDFFF)
			return false;
		code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
	}
	*has_nul |= code == 0;
	put_utf8(to, code);
	return true;
}

/* Behind a backslash. */
static bool
take_escape(Reader *r, char **to, bool *has_nul)
{
	char		c = r->at < r->end ? *r->at++ : 0;

	switch (c)
	{
		case '"':
		case '\\':
		case '/':
			break;
		case 'b':
			c = '\b';
			break;
		case 'f':
			c = '\f';
			break;
		case 'n':
			c = '\n';
			break;
		case 'r':
			c = '\r';
			break;
		case 't':
			c = '\t';
			break;
		case 'u':
			return take_unicode(r, to, has_nul);
		default:
			return false;
	}
	*(*to)++ = c;
	return true;
}

static bool
take_string(Reader *r, const char **string, bool *has_nul)
{
	char	   *to = r->strings;

	*string = to;
	*has_nul = false;
	if (!take(r, '"'))
		return false;
	for (;;)
	{
		const char *plain = r->at;
		char		c;

		while (r->at < r->end && (unsigned char) *r->at >= ' ' && *r->at != '"' && *r->at != '\\')
			r->at++;
		memcpy(to, plain, (size_t) (r->at - plain));
		to += r->at - plain;
		c = r->at < r->end ? *r->at++ : 0;
		if (c == '"')
			break;
		if (c != '\\' || !take_escape(r, &to, has_nul))
			return false;
	}
	*to++ = '\0';
	r->strings = to;
	return true;
}

static bool
take_digits(Reader *r)
{
	const char *first = r->at;

	while (r->at < r->end && *r->at >= '0' && *r->at <= '9')
		r->at++;
	return r->at > first;
}

/* *whole: the number, if it is an integer of 64 bits. */
static bool
take_number(Reader *r, bool *is_whole, int64_t *whole)
{
	bool		negative = *r->at == '-';
	const char *digits;

	r->at += negative;
	digits = r->at;
	if (!take_digits(r) || (*digits == '0' && r->at > digits + 1))
		return false;
	*is_whole = true;
	*whole = 0;
	for (const char *p = digits; p < r->at; p++)
		if (__builtin_mul_overflow(*whole, 10, whole) ||
			(negative ? __builtin_sub_overflow(*whole, *p - '0', whole) :
			 __builtin_add_overflow(*whole, *p - '0', whole)))
			*is_whole = false;
	if (r->at < r->end && *r->at == '.')
	{
		*is_whole = false;
		r->at++;
		if (!take_digits(r))
			return false;
	}
	if (r->at < r->end && (*r->at | 32) == 'e')
	{
		*is_whole = false;
		r->at++;
		if (r->at < r->end && (*r->at == '+' || *r->at == '-'))
			r->at++;
		if (!take_digits(r))
			return false;
	}
	return true;
}

static bool
take_word(Reader *r, const char *word)
{
	size_t		len = strlen(word);

	if ((size_t) (r->end - r->at) < len || memcmp(r->at, word, len) != 0)
		return false;
	r->at += len;
	return true;
}

static bool take_value(Reader *r, int depth, Value *value);

/* Elements of an array, or members of an object, that we do not know. */
static bool
skip_all(Reader *r, int depth, char close, size_t *count)
{
	char	   *strings = r->strings;
	Value		value;

	*count = 0;
	if (depth > MAX_DEPTH)
		return false;
	r->at++;
	if (take(r, close))
		return true;
	do
	{
		if (close == '}' &&
			(!take_string(r, &value.string, &value.has_nul) || !take(r, ':')))
			return false;
		if (!take_value(r, depth, &value))
			return false;
		(*count)++;
		r->strings = strings;
	} while (take(r, ','));
	return take(r, close);
}

/* depth: of what it is in. */
static bool
take_value(Reader *r, int depth, Value *value)
{
	bool		is_whole;

	value->type = VALUE_OTHER;
	switch (look(r))
	{
		case '"':
			value->type = VALUE_STRING;
			return take_string(r, &value->string, &value->has_nul);
		case '[':
			value->type = VALUE_ARRAY;
			value->array = r->at;
			return skip_all(r, depth + 1, ']', &value->count);
		case '{':
			return skip_all(r, depth + 1, '}', &value->count);
		case 't':
			return take_word(r, "true");
		case 'f':
			return take_word(r, "false");
		case 'n':
			return take_word(r, "null");
		case 0:
			return false;
		default:
			if (!take_number(r, &is_whole, &value->number))
				return false;
			if (is_whole)
				value->type = VALUE_INT;
			return true;
	}
}

/* Which member has the name?  "next" is tried first.  MEMBERS: none. */
static int
find_member(const char *name, int next)
{
	for (int i = 0; i < MEMBERS; i++)
	{
		int			m = (next + i) % MEMBERS;

		if (strcmp(name, names[m]) == 0)
			return m;
	}
	return MEMBERS;
}

static bool
is_at_end(Reader *r)
{
	if (r->open)
		return look(r) == 0 && r->at == r->end;
	return take(r, '}') && r->at == r->end;
}

/* All of the text as an object. */
static bool
take_object(Reader *r, Value *values)
{
	int			m = -1;

	if (!take(r, '{'))
		return false;
	do
	{
		char	   *strings = r->strings;
		Value		unknown;
		const char *name;
		bool		has_nul;

		if (!take_string(r, &name, &has_nul) || !take(r, ':'))
			return false;
		m = has_nul ? MEMBERS : find_member(name, m + 1);
		r->strings = strings;
		if (!take_value(r, 1, m < MEMBERS ? &values[m] : &unknown))
			return false;
		if (m == MEMBERS)
			r->strings = strings;
	} while (take(r, ','));
	return is_at_end(r);
}

/* ---- what it says ---- */

static bool
get_int(const Value *value, int64_t min, int64_t *number)
{
	*number = value->number;
	return value->type == VALUE_INT && *number >= min;
}

static bool
get_string(const Value *value, const char **s)
{
	*s = value->string;
	return value->type == VALUE_STRING && !value->has_nul;
}

/* A missing one is NULL. */
static bool
get_optional(const Value *value, const char **s)
{
	*s = NULL;
	return value->type == VALUE_NONE || get_string(value, s);
}

static bool
get_commit(const Value *values, Wire *wire)
{
	return get_optional(&values[M_LSN], &wire->lsn) &&
		(wire->lsn == NULL ||
		 (get_string(&values[M_SYSTEM], &wire->system) &&
		  get_int(&values[M_TIMELINE], 1, &wire->timeline) &&
		  wire->timeline <= UINT32_MAX));
}

/* False unless it is a string without a NUL inside. */
static bool
take_plain_string(Reader *r, const char **s)
{
	bool		has_nul;

	return look(r) == '"' && take_string(r, s, &has_nul) && !has_nul;
}

static bool
fill_columns(Reader *r, const Value *array, WireColumn *columns)
{
	r->at = array->array + 1;
	for (size_t i = 0; i < array->count; i++)
		if ((i > 0 && !take(r, ',')) || !take(r, '[') ||
			!take_plain_string(r, &columns[i].name) || !take(r, ',') ||
			!take_plain_string(r, &columns[i].type) || !take(r, ']'))
			return false;
	return true;
}

/* *values is set to "to", or to NULL if there is no such member. */
static bool
fill_values(Reader *r, const Value *array, const char **to, uint32_t n,
			const char *const **values)
{
	*values = NULL;
	if (array->type == VALUE_NONE)
		return true;
	if (array->type != VALUE_ARRAY || array->count != n)
		return false;
	r->at = array->array + 1;
	for (uint32_t i = 0; i < n; i++)
	{
		to[i] = NULL;
		if (i > 0 && !take(r, ','))
			return false;
		if (look(r) == 'n' ? !take_word(r, "null") : !take_plain_string(r, &to[i]))
			return false;
	}
	*values = to;
	return true;
}

static const char *
get_image(Reader *r, const Value *values, Wire *wire)
{
	size_t		n = values[M_COLUMNS].count;
	WireColumn *columns;
	const char **texts;

	if (!get_string(&values[M_SCHEMA], &wire->schema) ||
		!get_string(&values[M_TABLE], &wire->table) ||
		values[M_COLUMNS].type != VALUE_ARRAY)
		return "its row image does not name its table and columns";
	if (n > WIRE_MAX_COLUMNS)
		return "its row image has too many columns";

	/* one more, because of an image without any */
	wire->arrays = malloc((n + 1) * (sizeof(WireColumn) + 2 * sizeof(char *)));
	if (wire->arrays == NULL)
		return no_memory;
	columns = wire->arrays;
	texts = (const char **) (columns + n);
	wire->ncolumns = (uint32_t) n;
	wire->columns = columns;
	if (!fill_columns(r, &values[M_COLUMNS], columns) ||
		!fill_values(r, &values[M_ROW], texts, wire->ncolumns, &wire->row) ||
		!fill_values(r, &values[M_OLD], texts + n, wire->ncolumns, &wire->old))
		return "its row image does not have a value for each column";
	return NULL;
}

static const char *
read_object(Reader *r, Wire *wire)
{
	Value		values[MEMBERS] = {0};
	int64_t		version;

	if (!take_object(r, values) || !get_int(&values[M_VERSION], 0, &version))
		return not_json;
	if (version != WIRE_VERSION)
		return "it is of a version that this server does not know";
	if (!get_string(&values[M_ENCODING], &wire->encoding) ||
		!get_string(&values[M_CHANNEL], &wire->channel) ||
		!get_string(&values[M_SOURCE], &wire->source) ||
		!get_int(&values[M_TIMESTAMP], INT64_MIN, &wire->timestamp) ||
		!get_optional(&values[M_EVENT_TYPE], &wire->event_type) ||
		!get_optional(&values[M_CORRELATION_ID], &wire->correlation_id) ||
		!get_optional(&values[M_FEDERATION_ID], &wire->federation_id) ||
		!get_optional(&values[M_OP], &wire->op))
		return "a member is missing, or has the wrong type";
	if (!get_commit(values, wire))
		return "its commit's position is incomplete";
	if ((wire->op == NULL) == (wire->data == NULL))
		return "it must have either data or a row image";
	return wire->op ? get_image(r, values, wire) : NULL;
}

const char *
wire_parse(const char *text, size_t len, Wire *wire)
{
	Reader		r = {.at = text,.end = text + len};
	const char *key;
	const char *why;

	memset(wire, 0, sizeof(Wire));
	if (len < 2 || memchr(text, '\0', len) != NULL)
		return not_json;
	key = memmem(text, len, WIRE_DATA_KEY, strlen(WIRE_DATA_KEY));
	if (key)
	{
		wire->data = key + strlen(WIRE_DATA_KEY);
		if (wire->data >= text + len - 1 || text[len - 1] != '}')
			return not_json;
		wire->data_len = (size_t) (text + len - 1 - wire->data);
		r.end = key;
		r.open = true;
	}
	r.strings = wire->strings = malloc((size_t) (r.end - text) + 1);
	if (wire->strings == NULL)
		return no_memory;
	why = read_object(&r, wire);
	if (why)
		wire_free(wire);
	return why;
}

void
wire_free(Wire *wire)
{
	free(wire->strings);
	free(wire->arrays);
	wire->strings = NULL;
	wire->arrays = NULL;
}
