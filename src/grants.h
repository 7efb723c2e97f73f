/*-------------------------------------------------------------------------
 *
 * grants.h
 *	  Who may publish on and subscribe to which channels.
 *
 *-------------------------------------------------------------------------
 */
#ifndef SD_GRANTS_H
#define SD_GRANTS_H

#include "subdispatch.h"

#include "utils/jsonb.h"
#include "utils/relcache.h"

typedef enum GrantPrivilege
{
	GRANT_PUBLISH,
	GRANT_SUBSCRIBE
} GrantPrivilege;

/*
 * All of these need a transaction, no LWLock held, and may raise an error when
 * the table has to be read (again).
 */

/*
 * Has the role the privilege on the channel?  context: the subscriber's
 * security context, NULL for publishing.
 */
extern bool grants_allow(Oid role, const char *channel, GrantPrivilege privilege, Jsonb *context);

/*
 * The same, but raises 42501 if it hasn't, and counts that.  table: the name of
 * the table that publishes by its trigger and whose owner the role is, or NULL.
 */
extern void grants_require(Oid role, const char *channel, GrantPrivilege privilege,
						   Jsonb *context, const char *table);

/* Is there a grant, of either privilege and to whomever, on the channel? */
extern bool grants_cover(const char *channel);

/* Reads the table if what is known of it is out of date. */
extern void grants_refresh(void);

extern void grants_init(void);	/* transaction callbacks; after publish_init() */

/* ---- between grants.c and grants_sql.c ---- */

/* The table's OID, or InvalidOid where the extension does not exist. */
extern Oid	grants_table(void);

/* This transaction changed the table. */
extern void grants_changed(Relation rel);

/* Keys of a security context, as bits. */
#define GRANT_CONTEXT_KEYS	5
extern const char *const grants_context_keys[GRANT_CONTEXT_KEYS];

extern const char *grants_privilege_name(GrantPrivilege privilege);

/* ---- grants_sql.c ---- */

/* The role is being dropped: what was granted to it goes with it. */
extern void grants_role_dropped(Oid role);

#endif							/* SD_GRANTS_H */
