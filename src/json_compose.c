/*-------------------------------------------------------------------------
 *
 * json_compose.c
 *	  JSON objects put together from finished parts, and their text.
 *
 * PostgreSQL's own way to make a jsonb takes every part to pieces, sorts the
 * keys and serializes all of it again; its way to text allocates an iterator
 * for each level.  Both are done for every event, with parts that are jsonb
 * already and keys whose order is known, so here parts are copied as they are
 * and text is written straight from them.
 *
 * The layout is that of convertJsonbObject() in PostgreSQL's jsonb_util.c,
 * which is the format on disk: an array of JEntry for the keys and one for the
 * values, then the keys' bytes, then the values', where numbers and containers
 * are int-aligned and the padding counts as theirs.  Builds with assertions
 * compare each result with what PostgreSQL makes.
 *
 * No locks are taken, nothing is kept.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

#include "json_compose.h"

/* ---- composing ---- */

int
json_member_compare(const void *a, const void *b)
{
	const JsonMember *x = a;
	const JsonMember *y = b;

	if (x->keylen != y->keylen)
		return x->keylen < y->keylen ? -1 : 1;
	return memcmp(x->key, y->key, x->keylen);
}

/* Bytes of a value, without padding. */
static Size
value_size(const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvString:
			return value->val.string.len;
		case jbvNumeric:
			return VARSIZE_ANY(value->val.numeric);
		case jbvBinary:
			return value->val.binary.len;
		default:
			return 0;
	}
}

static void
too_large(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("JSON object is too large"),
			 errdetail("A jsonb holds at most %d bytes.", JENTRY_OFFLENMASK)));
}

/* At most what the object takes. */
static Size
object_size(const JsonMember *members, int n)
{
	Size		size = sizeof(Jsonb) + sizeof(JEntry) * 2 * n;

	for (int i = 0; i < n; i++)
		size += members[i].keylen + value_size(&members[i].value) + sizeof(int32);
	if (size > JENTRY_OFFLENMASK)
		too_large();
	return size;
}

/* What is written so far. */
typedef struct Writer
{
	char	   *start;			/* of the jsonb: alignment counts from here */
	char	   *at;
	JEntry	   *entries;
	int			nentries;
	uint32		total;			/* bytes of all entries */
} Writer;

/*
 * Ends an entry that began at "from".  Every so often an entry has its end's
 * offset instead of its length, so that readers need not add up all of them.
 */
static void
end_entry(Writer *w, char *from, JEntry type)
{
	uint32		len = w->at - from;

	w->total += len;
	if (w->nentries % JB_OFFSET_STRIDE == 0)
		w->entries[w->nentries] = type | w->total | JENTRY_HAS_OFF;
	else
		w->entries[w->nentries] = type | len;
	w->nentries++;
}

static void
put(Writer *w, const void *data, Size len)
{
	memcpy(w->at, data, len);
	w->at += len;
}

static void
pad(Writer *w)
{
	Size		len = INTALIGN(w->at - w->start) - (w->at - w->start);

	memset(w->at, 0, len);
	w->at += len;
}

static void
put_value(Writer *w, const JsonbValue *value)
{
	char	   *from = w->at;

	switch (value->type)
	{
		case jbvNull:
			end_entry(w, from, JENTRY_ISNULL);
			break;
		case jbvBool:
			end_entry(w, from, value->val.boolean ? JENTRY_ISBOOL_TRUE : JENTRY_ISBOOL_FALSE);
			break;
		case jbvString:
			put(w, value->val.string.val, value->val.string.len);
			end_entry(w, from, JENTRY_ISSTRING);
			break;
		case jbvNumeric:
			pad(w);
			put(w, value->val.numeric, VARSIZE_ANY(value->val.numeric));
			end_entry(w, from, JENTRY_ISNUMERIC);
			break;
		case jbvBinary:
			Assert(!JsonContainerIsScalar(value->val.binary.data));
			pad(w);
			put(w, value->val.binary.data, value->val.binary.len);
			end_entry(w, from, JENTRY_ISCONTAINER);
			break;
		default:
			elog(ERROR, "unexpected type of a JSON value: %d", value->type);
	}
}

#ifdef USE_ASSERT_CHECKING
/* What PostgreSQL makes of the same members. */
static Jsonb *
compose_by_postgres(const JsonMember *members, int n)
{
	JsonbParseState *state = NULL;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	for (int i = 0; i < n; i++)
	{
		JsonbValue	key = {.type = jbvString};
		JsonbValue	value = members[i].value;

		key.val.string.val = unconstify(char *, members[i].key);
		key.val.string.len = members[i].keylen;
		(void) pushJsonbValue(&state, WJB_KEY, &key);
		(void) pushJsonbValue(&state, WJB_VALUE, &value);
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

static void
check_composed(const Jsonb *result, const JsonMember *members, int n)
{
	Jsonb	   *expected = compose_by_postgres(members, n);

	Assert(VARSIZE(result) == VARSIZE(expected));
	Assert(memcmp(result, expected, VARSIZE(result)) == 0);
	pfree(expected);
}
#else
#define check_composed(result, members, n)	((void) 0)
#endif

Jsonb *
json_compose(const JsonMember *members, int n)
{
	Jsonb	   *result = palloc(object_size(members, n));
	Writer		w = {.start = (char *) result, .entries = result->root.children};

	for (int i = 1; i < n; i++)
		Assert(json_member_compare(&members[i - 1], &members[i]) < 0);
	result->root.header = n | JB_FOBJECT;
	w.at = (char *) (w.entries + 2 * n);
	for (int i = 0; i < n; i++)
	{
		char	   *from = w.at;

		put(&w, members[i].key, members[i].keylen);
		end_entry(&w, from, JENTRY_ISSTRING);
	}
	for (int i = 0; i < n; i++)
		put_value(&w, &members[i].value);
	SET_VARSIZE(result, w.at - (char *) result);
	check_composed(result, members, n);
	return result;
}

/* ---- text ---- */

/* What follows the backslash for a byte that JSON text can't have as it is. */
static inline bool
must_escape(unsigned char c)
{
	return c < ' ' || c == '"' || c == '\\';
}

static void
put_escaped(StringInfo out, unsigned char c)
{
	switch (c)
	{
		case '\b':
			appendBinaryStringInfo(out, "\\b", 2);
			break;
		case '\f':
			appendBinaryStringInfo(out, "\\f", 2);
			break;
		case '\n':
			appendBinaryStringInfo(out, "\\n", 2);
			break;
		case '\r':
			appendBinaryStringInfo(out, "\\r", 2);
			break;
		case '\t':
			appendBinaryStringInfo(out, "\\t", 2);
			break;
		case '"':
			appendBinaryStringInfo(out, "\\\"", 2);
			break;
		case '\\':
			appendBinaryStringInfo(out, "\\\\", 2);
			break;
		default:
			appendStringInfo(out, "\\u%04x", c);
			break;
	}
}

/* As escape_json() does it, in runs instead of byte by byte. */
static void
string_text(StringInfo out, const char *s, int len)
{
	int			from = 0;

	appendStringInfoCharMacro(out, '"');
	for (int i = 0; i < len; i++)
	{
		if (likely(!must_escape(s[i])))
			continue;
		appendBinaryStringInfo(out, s + from, i - from);
		put_escaped(out, s[i]);
		from = i + 1;
	}
	appendBinaryStringInfo(out, s + from, len - from);
	appendStringInfoCharMacro(out, '"');
}

static void
numeric_text(StringInfo out, const char *value)
{
	char	   *text = DatumGetCString(DirectFunctionCall1(numeric_out, PointerGetDatum(value)));

	appendStringInfoString(out, text);
	pfree(text);
}

static void container_text(StringInfo out, JsonbContainer *container);

/*
 * The value of one entry, whose bytes lie between "from" and "to" (offsets from
 * base); numbers and containers begin at the next aligned place.
 */
static void
value_text(StringInfo out, char *base, uint32 from, uint32 to, JEntry entry)
{
	if (JBE_ISSTRING(entry))
		string_text(out, base + from, to - from);
	else if (JBE_ISNUMERIC(entry))
		numeric_text(out, base + INTALIGN(from));
	else if (JBE_ISBOOL_TRUE(entry))
		appendBinaryStringInfo(out, "true", 4);
	else if (JBE_ISBOOL_FALSE(entry))
		appendBinaryStringInfo(out, "false", 5);
	else if (JBE_ISNULL(entry))
		appendBinaryStringInfo(out, "null", 4);
	else
		container_text(out, (JsonbContainer *) (base + INTALIGN(from)));
}

static void
array_text(StringInfo out, JsonbContainer *array)
{
	int			n = JsonContainerSize(array);
	char	   *base = (char *) &array->children[n];
	uint32		from = 0;

	if (!JsonContainerIsScalar(array))
		appendStringInfoCharMacro(out, '[');
	for (int i = 0; i < n; i++)
	{
		uint32		to = from;

		JBE_ADVANCE_OFFSET(to, array->children[i]);
		if (i > 0)
			appendBinaryStringInfo(out, ", ", 2);
		value_text(out, base, from, to, array->children[i]);
		from = to;
	}
	if (!JsonContainerIsScalar(array))
		appendStringInfoCharMacro(out, ']');
}

/* Keys and values have their entries apart, the keys' first. */
static void
object_text(StringInfo out, JsonbContainer *object)
{
	int			n = JsonContainerSize(object);
	char	   *base = (char *) &object->children[2 * n];
	uint32		key = 0;
	uint32		value = 0;

	for (int i = 0; i < n; i++)
		JBE_ADVANCE_OFFSET(value, object->children[i]);
	appendStringInfoCharMacro(out, '{');
	for (int i = 0; i < n; i++)
	{
		uint32		key_end = key;
		uint32		value_end = value;

		JBE_ADVANCE_OFFSET(key_end, object->children[i]);
		JBE_ADVANCE_OFFSET(value_end, object->children[n + i]);
		if (i > 0)
			appendBinaryStringInfo(out, ", ", 2);
		string_text(out, base + key, key_end - key);
		appendBinaryStringInfo(out, ": ", 2);
		value_text(out, base, value, value_end, object->children[n + i]);
		key = key_end;
		value = value_end;
	}
	appendStringInfoCharMacro(out, '}');
}

static void
container_text(StringInfo out, JsonbContainer *container)
{
	check_stack_depth();
	if (JsonContainerIsObject(container))
		object_text(out, container);
	else
		array_text(out, container);
}

void
json_text(StringInfo out, JsonbContainer *container)
{
	int			from PG_USED_FOR_ASSERTS_ONLY = out->len;

	container_text(out, container);
	Assert(strcmp(out->data + from, JsonbToCString(NULL, container, out->len - from)) == 0);
}
