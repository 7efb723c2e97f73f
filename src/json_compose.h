/*-------------------------------------------------------------------------
 *
 * json_compose.h
 *	  JSON objects put together from finished parts, and their text.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_JSON_COMPOSE_H
#define SD_JSON_COMPOSE_H

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

/*
 * One member.  Values may be null, booleans, strings, numbers, or containers
 * that are objects or arrays (jbvBinary); they are copied as they are.
 */
typedef struct JsonMember
{
	const char *key;
	int			keylen;
	JsonbValue	value;
} JsonMember;

/* As jsonb orders keys: shorter ones first, then by bytes.  For qsort. */
extern int	json_member_compare(const void *a, const void *b);

/*
 * The object of these members, which must be in the order of
 * json_member_compare() and have different keys.  Palloc'd.  Raises 54000 if it
 * would be larger than a jsonb can be.
 */
extern Jsonb *json_compose(const JsonMember *members, int n);

/* A jsonb as a value that json_compose() takes; points into it. */
static inline void
json_value_of(Jsonb *jsonb, JsonbValue *value)
{
	if (JB_ROOT_IS_SCALAR(jsonb))
	{
		(void) JsonbExtractScalar(&jsonb->root, value);
		return;
	}
	value->type = jbvBinary;
	value->val.binary.data = &jsonb->root;
	value->val.binary.len = VARSIZE(jsonb) - VARHDRSZ;
}

/* A member; its value is null until it is set. */
static inline JsonMember
json_member(const char *key)
{
	JsonMember	m = {.key = key, .keylen = strlen(key), .value = {.type = jbvNull}};

	return m;
}

/* NULL: JSON null */
static inline JsonMember
json_string_member(const char *key, const char *s)
{
	JsonMember	m = json_member(key);

	if (s)
	{
		m.value.type = jbvString;
		m.value.val.string.val = unconstify(char *, s);
		m.value.val.string.len = strlen(s);
	}
	return m;
}

/* Any jsonb; borrowed, not copied. */
static inline JsonMember
json_jsonb_member(const char *key, Jsonb *value)
{
	JsonMember	m = json_member(key);

	json_value_of(value, &m.value);
	return m;
}

/* Appends the text of a jsonb, the same that jsonb_out() gives. */
extern void json_text(StringInfo out, JsonbContainer *container);

#endif							/* SD_JSON_COMPOSE_H */
