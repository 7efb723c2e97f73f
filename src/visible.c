/*-------------------------------------------------------------------------
 *
 * visible.c
 *	  What an identity sees of an event.
 *
 * The steps, in this order: SELECT right and row-level security (rls.c, row
 * images only), the modules of the security context (context.c), removal of
 * columns and fields.  The two images of an UPDATE are judged each by itself: a
 * row that can no longer be seen, and could before, becomes a LEAVE with no
 * more than the old row's key.
 *
 * An identity that sees all of an event gets the event's own data, so that all
 * such identities share one payload.
 *
 * No locks are taken.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "context.h"
#include "event_image.h"
#include "rls.h"
#include "security.h"
#include "visible.h"

/* What of a row image goes on; see copy_object(). */
typedef struct Keep
{
	const SdEvent *ev;			/* whose columns these are */
	const RlsView *view;		/* NULL: all columns */
	Bitmapset  *only;			/* NULL: all columns */
} Keep;

/* ---- parts of data ---- */

static int
column_number(const SdEvent *ev, const char *name, int len)
{
	const SdEventAtt *atts = (const SdEventAtt *) ((const char *) ev + ev->atts);

	for (uint32 i = 0; i < ev->natts; i++)
		if (OidIsValid(atts[i].type) && strlen(NameStr(atts[i].name)) == (size_t) len &&
			memcmp(NameStr(atts[i].name), name, len) == 0)
			return i + 1;
	return 0;
}

static bool
keeps(const Keep *keep, const char *name, int len)
{
	int			attno;

	if (keep->view == NULL && keep->only == NULL)
		return true;
	attno = column_number(keep->ev, name, len);
	if (attno == 0)
		return false;
	return (keep->view == NULL || rls_column_visible(keep->ev, keep->view, attno)) &&
		(keep->only == NULL || bms_is_member(attno, keep->only));
}

/* A copy of an object with those members that are kept. */
static Jsonb *
copy_object(JsonbContainer *object, const Keep *keep)
{
	JsonbParseState *state = NULL;
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbValue	key;
	JsonbValue	value;

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		(void) JsonbIteratorNext(&it, &value, true);
		if (!keeps(keep, key.val.string.val, key.val.string.len))
			continue;
		(void) pushJsonbValue(&state, WJB_KEY, &key);
		(void) pushJsonbValue(&state, WJB_VALUE, &value);
	}
	return JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
}

/* The member as an object, or NULL. */
static JsonbContainer *
member_object(Jsonb *data, const char *name)
{
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(data) ||
		getKeyJsonValueFromContainer(&data->root, name, strlen(name), &value) == NULL ||
		value.type != jbvBinary || !JsonContainerIsObject(value.val.binary.data))
		return NULL;
	return value.val.binary.data;
}

/* ---- the steps ---- */

static void
deny(Visible *v, SdCounter reason)
{
	v->denied = true;
	v->reason = reason;
}

/* What a plain event's data shows. */
static void
see_plain(DispatchEvent *e, SdIdentity *identity, Visible *v)
{
	SdCounter	reason;

	if (!context_passes(identity->context, &e->data->root, &reason))
		deny(v, reason);
	else
	{
		v->data = context_visible_fields(identity->context, e->data);
		if (v->data == NULL)
			deny(v, SD_STAT_DENIED_RBAC);
	}
}

/*
 * One image: what SELECT shows of it, if the modules let it pass; NULL if not,
 * and *reason then tells why.
 */
static Jsonb *
see_image(DispatchEvent *e, SdIdentity *identity, const RlsView *view, const char *name,
		  bool passed_rls, SdCounter *reason)
{
	JsonbContainer *image = member_object(e->data, name);
	Keep		keep = {.ev = e->ev, .view = view->all_columns ? NULL : view};
	Jsonb	   *seen;

	*reason = SD_STAT_DENIED_RLS;
	if (image == NULL || !passed_rls)
		return NULL;
	seen = copy_object(image, &keep);
	return context_passes(identity->context, &seen->root, reason) ? seen : NULL;
}

static Jsonb *
remove_fields(SdIdentity *identity, Jsonb *image)
{
	return image ? context_visible_fields(identity->context, image) : NULL;
}

/* What is left of a row that left: its key, as far as that may be seen. */
static Jsonb *
key_of(DispatchEvent *e, Jsonb *old)
{
	Keep		keep = {.ev = e->ev, .only = rls_key_columns(e->ev->relid)};

	return keep.only ? copy_object(&old->root, &keep) : dispatch_empty_object();
}

static void
see_images(DispatchEvent *e, SdIdentity *identity, const RlsView *view, Visible *v)
{
	bool		update = e->ev->op == SD_OP_UPDATE;
	SdCounter	reason;
	SdCounter	old_reason;
	Jsonb	   *row;
	Jsonb	   *old = NULL;

	row = see_image(e, identity, view, "row", view->row_visible, &reason);
	if (update)
		old = see_image(e, identity, view, "old", view->old_visible, &old_reason);
	if (row)
		v->data = event_change_object(e->ev, event_op_name(e->ev->op), remove_fields(identity, row),
							  remove_fields(identity, old));
	else if (old)
	{
		v->leave = true;
		v->data = event_change_object(e->ev, "LEAVE", remove_fields(identity, key_of(e, old)), NULL);
	}
	else
		deny(v, reason);
}

/* An identity's rights, made once. */
typedef struct Rights
{
	uint64		identity;		/* serial; identities never change */
	SdRights   *rights;
} Rights;

#define MAX_RIGHTS	10000		/* then the cache begins anew */

/* Whoever uses them still shall be noticed. */
static void
spoil_rights(HTAB *cache)
{
#ifdef USE_ASSERT_CHECKING
	HASH_SEQ_STATUS seq;
	Rights	   *r;

	hash_seq_init(&seq, cache);
	while ((r = hash_seq_search(&seq)) != NULL)
		r->rights->role = InvalidOid;
#endif
}

/*
 * Rights are the same for all events until the list of settings changes.  The
 * cache lives in a context of its own, to be dropped as a whole.
 */
const SdRights *
visible_rights(SdIdentity *identity)
{
	static MemoryContext context = NULL;
	static HTAB *cache = NULL;
	static char *made_for = NULL;
	Rights	   *r;
	bool		found;

	if (cache && (hash_get_num_entries(cache) >= MAX_RIGHTS ||
				  strcmp(made_for, subdispatch_context_settings) != 0))
	{
		spoil_rights(cache);
		cache = NULL;
	}
	if (cache == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(uint64), .entrysize = sizeof(Rights)};

		/* also one that an error left without a cache in it */
		if (context)
			MemoryContextDelete(context);
		context = NULL;
		context = AllocSetContextCreate(TopMemoryContext, "subdispatch rights",
										ALLOCSET_DEFAULT_SIZES);
		ctl.hcxt = context;
		made_for = MemoryContextStrdup(context, subdispatch_context_settings);
		cache = hash_create("subdispatch rights", 256, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	r = hash_search(cache, &identity->serial, HASH_FIND, NULL);
	if (r == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		SdRights   *rights = security_make_rights(identity->role, identity->settings,
												  subdispatch_context_settings);

		MemoryContextSwitchTo(old);
		r = hash_search(cache, &identity->serial, HASH_ENTER, &found);
		r->rights = rights;
	}
	return r->rights;
}

/* Nothing is to be taken away: the payload can be shared. */
static bool
sees_both(DispatchEvent *e, SdIdentity *identity, const RlsView *view)
{
	return view->all_columns && view->row_visible &&
		(view->old_visible || e->ev->op != SD_OP_UPDATE) &&
		JB_ROOT_COUNT(identity->context) == 0;
}

/*
 * Identities whose policies have raised an error before: theirs get a
 * subtransaction at once, or each of their events would have the whole batch
 * done again.  By serial, which never comes twice; forgotten when the place is
 * needed.
 */
#define SUSPECTS	1024

static uint64 suspects[SUSPECTS];
static uint64 evaluating = 0;	/* the identity whose policies run */

void
visible_note_error(void)
{
	if (evaluating != 0)
		suspects[evaluating % SUSPECTS] = evaluating;
	evaluating = 0;
}

static void
ask_policies(DispatchEvent *e, SdIdentity *identity, RlsView *view)
{
	bool		careful = e->careful || suspects[identity->serial % SUSPECTS] == identity->serial;

	evaluating = identity->serial;
	rls_view(e, identity, !careful, subdispatch_resolver_timeout, view);
	evaluating = 0;
}

static void
see_change(DispatchEvent *e, SdIdentity *identity, Visible *v)
{
	RlsView		view = {
		.allowed = true, .row_visible = true, .old_visible = true, .all_columns = true
	};

	if (!rls_sees_all(e->ev, identity->role))
		ask_policies(e, identity, &view);
	else if (JB_ROOT_COUNT(identity->context) == 0)
	{
		v->data = e->data;
		return;
	}
	if (!view.allowed ||
		(e->ev->op != SD_OP_TRUNCATE && !view.row_visible &&
		 (e->ev->op != SD_OP_UPDATE || !view.old_visible)))
		deny(v, SD_STAT_DENIED_RLS);
	else if (e->ev->op == SD_OP_TRUNCATE || sees_both(e, identity, &view))
		v->data = e->data;
	else
		see_images(e, identity, &view, v);
}

static void
see(DispatchEvent *e, SdIdentity *identity, Visible *v)
{
	bool		truncate = e->ev->source == SD_SOURCE_CHANGE && e->ev->op == SD_OP_TRUNCATE;

	if (e->ev->source == SD_SOURCE_CHANGE)
		see_change(e, identity, v);
	else
		see_plain(e, identity, v);
	if (!v->denied && !truncate &&
		!context_passes_federation(identity->context, EVENT_STRING(e->ev, federation_id)))
		deny(v, SD_STAT_DENIED_FEDERATION);
}

/* ---- once per event and identity ---- */

/*
 * The first identities of an event are found by looking at each, which is all
 * that most events need; beyond those there is a hash table.
 */
#define SEEN_FIRST	8

static uint32
hash_serial(const void *key, Size size)
{
	return serial_hash(*(const uint64 *) key);
}

static void
make_cache(DispatchEvent *e)
{
	HASHCTL		ctl = {
		.keysize = sizeof(uint64), .entrysize = sizeof(Visible), .hash = hash_serial,
		.hcxt = dispatch_context
	};

	e->seen = hash_create("subdispatch visible", 64, &ctl,
						  HASH_ELEM | HASH_FUNCTION | HASH_CONTEXT);
}

/* The identity's place; a new one is not known yet. */
static Visible *
get_seen(DispatchEvent *e, uint64 identity)
{
	Visible    *v;
	bool		found = false;

	for (int i = 0; i < e->nseen_first; i++)
		if (e->seen_first[i].identity == identity)
			return &e->seen_first[i];
	if (e->seen_first == NULL)
		e->seen_first = MemoryContextAlloc(dispatch_context, sizeof(Visible) * SEEN_FIRST);
	if (e->nseen_first < SEEN_FIRST)
		v = &e->seen_first[e->nseen_first++];
	else
	{
		if (e->seen == NULL)
			make_cache(e);
		v = hash_search(e->seen, &identity, HASH_ENTER, &found);
	}
	if (!found)
	{
		v->identity = identity;
		v->known = false;
	}
	return v;
}

void
visible_forget(DispatchEvent *e)
{
	e->nseen_first = 0;
	e->seen = NULL;
	e->answers = NULL;
}

/*
 * Published data is hidden from nobody but by a security context.  That is so
 * quickly seen that it needs no place in the cache, where a hundred thousand
 * identities would push one another out of the processor's.
 */
static Visible *
everything(DispatchEvent *e)
{
	static Visible all;

	all.data = e->data;
	return &all;
}

Visible *
visible_to(DispatchEvent *e, SdIdentity *identity)
{
	Visible		fresh = {.identity = identity->serial, .known = true};
	Visible    *v;
	MemoryContext old;

	if (e->ev->source != SD_SOURCE_CHANGE && JB_ROOT_COUNT(identity->context) == 0)
		return everything(e);
	v = get_seen(e, identity->serial);
	if (v->known)
		return v;
	old = MemoryContextSwitchTo(dispatch_context);
	see(e, identity, &fresh);
	MemoryContextSwitchTo(old);
	if (fresh.denied && e->first_time)
		stats_add(&dispatch_self()->stats, fresh.reason, 1);
	*v = fresh;
	return v;
}

/* Most often the stream itself tells: its identity need not be fetched. */
Visible *
visible_in(DispatchEvent *e, const SdStream *stream)
{
	if (e->ev->source != SD_SOURCE_CHANGE && !stream->has_context)
		return everything(e);
	return visible_to(e, stream_identity(stream));
}

bool
visible_may_leave(const DispatchEvent *e)
{
	return e->ev->source == SD_SOURCE_CHANGE && e->ev->op == SD_OP_UPDATE;
}

bool
visible_table_has_policies(const DispatchEvent *e)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(e->ev->relid));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	result = ((Form_pg_class) GETSTRUCT(tuple))->relrowsecurity;
	ReleaseSysCache(tuple);
	return result;
}
