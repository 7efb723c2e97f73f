/*-------------------------------------------------------------------------
 *
 * jsonc.h
 *	  The little that those who read and write JSON with json-c share.
 *
 * No PostgreSQL header.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SUBDISPATCH_JSONC_H
#define SUBDISPATCH_JSONC_H

#include <stdbool.h>
#include <stddef.h>

#include <json-c/json.h>

/* Adds a member; takes over value.  False if there is no memory. */
extern bool jsonc_add(json_object *obj, const char *key, json_object *value);

/*
 * All of the len bytes as a JSON object, nested no deeper than max_depth; NULL
 * if they are none.  The caller's, who gives it back with json_object_put().
 */
extern json_object *jsonc_parse_object(const char *json, size_t len, int max_depth);

#endif							/* SUBDISPATCH_JSONC_H */
