/*-------------------------------------------------------------------------
 *
 * context.h
 *	  The security context of a subscription: five modules.
 *
 *	  row filter   user_id          must equal the event's user_id
 *	  tenant       tenant_id, match must equal the event's fields
 *	  federation   federation_id    must equal the event's
 *	  scope        (at subscribe)   variables may not ask for another's
 *	  RBAC         fields           the top-level fields that may be seen
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_CONTEXT_H
#define SD_CONTEXT_H

#include "utils/jsonb.h"

#include "stats.h"

/*
 * subscribe(): raises 22023 for unknown keys, nulls and values of the wrong
 * kind.
 */
extern void context_check(Jsonb *context);
/* Raises 42501 if variables ask for what is not the context's (scope). */
extern void context_check_scope(Jsonb *context, Jsonb *variables);
/* The context's user_id as text that tells types apart, palloc'd, or NULL. */
extern char *context_user_key(Jsonb *context);

/*
 * Do row filter and tenant let an object (data, row or old) pass?  What is
 * not an object passes no condition.  *denied tells whose fault it is.
 */
extern bool context_passes(Jsonb *context, JsonbContainer *object, SdCounter *denied);
/* Does the federation module?  federation_id may be NULL. */
extern bool context_passes_federation(Jsonb *context, const char *federation_id);

/* Is anything left out for RBAC? */
extern bool context_has_fields(Jsonb *context);
/*
 * What RBAC leaves of an object: the object itself, or a palloc'd copy; NULL if
 * fields are to be left out of something that is no object.
 */
extern Jsonb *context_visible_fields(Jsonb *context, Jsonb *object);

#endif							/* SD_CONTEXT_H */
