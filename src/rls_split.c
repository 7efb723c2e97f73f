/*-------------------------------------------------------------------------
 *
 * rls_split.c
 *	  Policies of which each part is computed once for all that share it.
 *
 * A policy such as
 *
 *	  lower(tenant) = current_setting('app.tenant') AND status <> 'draft'
 *
 * asks the same of each row for all identities in one part, lower(tenant) and
 * status <> 'draft', and the same of each identity for all rows in another,
 * current_setting('app.tenant').  So the conditions are split:
 *
 *	  the row's part		subexpressions of columns and constants alone, each as
 *							large as can be: computed once per event and image
 *	  the identity's part	subexpressions without columns, of what stays the same
 *							for an identity: its settings (those that
 *							context_settings lists) and its role: computed once,
 *							and kept as long as the plan
 *	  the rest				with parameters in place of both: evaluated for each
 *							identity and image, in some 30 nanoseconds
 *
 * The answer must be the one that the whole conditions would give, so they are
 * split only if:
 *
 *	- the plan is steady (see rls_plan.c): built-in functions and types;
 *	- functions are IMMUTABLE, but for current_setting() of a listed setting
 *	  and current_user and the like: time, other settings, and what is in
 *	  tables differ from event to event;
 *	- the rest consists of comparisons and what is leakproof: it raises no
 *	  error, takes no time to speak of, and needs nobody's rights.
 *
 * Computing a part that the conditions would not have come to (the other side of
 * an OR, of a CASE) can raise an error that they would not have raised.  So an
 * error denies nothing here.  If it is the identity's, the whole conditions are
 * asked for that identity from then on; if it is the row's, or the rest's, for
 * all.
 *
 * Users' code that is neither inlined nor built in is never split.
 *
 * Locks: none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_proc.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "rls_split.h"
#include "security.h"
#include "stream.h"

/* More than this and all are forgotten: identities that are gone stay in it. */
#define MAX_IDENTITIES	100000

/* A subexpression that became a parameter of the rest. */
typedef struct Part
{
	Expr	   *expr;
	ExprState  *state;
	bool		of_identity;	/* else the row's */
	bool		by_value;
	int16		len;
	Datum		values[2];		/* the row's: of row and old */
	bool		nulls[2];
} Part;

typedef struct Identity
{
	uint64		serial;			/* hash key */
	char		status;			/* simplehash's */
	bool		usable;
	NullableDatum *values;		/* of the identity's parts, in their order */
} Identity;

#define SH_PREFIX		identities
#define SH_ELEMENT_TYPE	Identity
#define SH_KEY_TYPE		uint64
#define SH_KEY			serial
#define SH_HASH_KEY(tb, key)	serial_hash(key)
#define SH_EQUAL(tb, a, b)		((a) == (b))
#define SH_SCOPE		static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

struct RlsSplit
{
	MemoryContext context;
	List	   *rest;			/* of conditions; parameter i is parts[i] */
	int			nparts;
	int			nidentity_parts;
	Part	   *parts;
	bool		row_is_code;	/* some part of the row's is no mere column */
	bool		running;		/* still set: an error ended it, and its use */

	/* ready to run, from the first identity on */
	ExprContext *econtext;
	ParamExecData *params;
	ExprState  *state;

	uint64		event_id;		/* whose images' parts are computed */
	const SdEvent *ev;			/* where it was; not to be looked into */
	MemoryContext row_context;	/* of their values */
	MemoryContext identity_context; /* of "identities" and all in it */
	identities_hash *identities;	/* NULL at first */
};

/* ---- what an expression depends on ---- */

#define ON_ROW			0x01
#define ON_IDENTITY		0x02
#define ON_OTHERS		0x04	/* or it is not known */

static bool
is_mutable(Oid function, void *arg)
{
	return func_volatile(function) != PROVOLATILE_IMMUTABLE;
}

/* current_setting() of a setting that identities have. */
static bool
is_identitys_setting(const Node *node)
{
	const FuncExpr *call = (const FuncExpr *) node;
	const Const *name;

	if (!IsA(node, FuncExpr) || (call->funcid != F_CURRENT_SETTING_TEXT &&
								 call->funcid != F_CURRENT_SETTING_TEXT_BOOL))
		return false;
	name = linitial(call->args);
	return IsA(name, Const) && !name->constisnull &&
		security_lists_setting(TextDatumGetCString(name->constvalue));
}

static bool
dependencies_walker(Node *node, int *on)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_Var:
			*on |= ON_ROW;
			return false;
		case T_SQLValueFunction:
			switch (((SQLValueFunction *) node)->op)
			{
				case SVFOP_CURRENT_ROLE:
				case SVFOP_CURRENT_USER:
				case SVFOP_USER:
				case SVFOP_SESSION_USER:
					*on |= ON_IDENTITY;
					break;
				default:
					*on |= ON_OTHERS;
			}
			return false;
		case T_Param:
			*on |= ON_OTHERS;
			return false;
		default:
			break;
	}
	if (is_identitys_setting(node))
		*on |= ON_IDENTITY;
	else if (check_functions_in_node(node, is_mutable, NULL))
		*on |= ON_OTHERS;
	return expression_tree_walker(node, dependencies_walker, on);
}

bool
split_is_identitys(Node *expr)
{
	int			on = 0;

	(void) dependencies_walker(expr, &on);
	return on == ON_IDENTITY;
}

/* ---- splitting ---- */

typedef struct Splitting
{
	RlsSplit   *split;
	bool		impossible;
} Splitting;

/* A column as it is, or under another type's name. */
static bool
is_column(const Node *expr)
{
	while (IsA(expr, RelabelType))
		expr = (const Node *) ((const RelabelType *) expr)->arg;
	return IsA(expr, Var);
}

static Node *
make_part(RlsSplit *split, Node *expr, bool of_identity)
{
	Param	   *param = makeNode(Param);
	Part	   *part;

	if (split->parts == NULL)
		split->parts = palloc(sizeof(Part));
	else
		split->parts = repalloc(split->parts, sizeof(Part) * (split->nparts + 1));
	part = &split->parts[split->nparts];
	memset(part, 0, sizeof(Part));
	part->expr = copyObject((Expr *) expr);
	part->of_identity = of_identity;
	get_typlenbyval(exprType(expr), &part->len, &part->by_value);
	if (of_identity)
		split->nidentity_parts++;
	else if (!is_column(expr))
		split->row_is_code = true;

	param->paramkind = PARAM_EXEC;
	param->paramid = split->nparts++;
	param->paramtype = exprType(expr);
	param->paramtypmod = exprTypmod(expr);
	param->paramcollid = exprCollation(expr);
	param->location = -1;
	return (Node *) param;
}

static bool
is_no_comparison(Oid function, void *arg)
{
	return !get_func_leakproof(function);
}

/* May the node itself be in the rest? */
static bool
is_harmless(Node *node)
{
	if (IsA(node, OpExpr) && get_op_btree_interpretation(((OpExpr *) node)->opno) != NIL)
		return true;
	if (IsA(node, ScalarArrayOpExpr) &&
		get_op_btree_interpretation(((ScalarArrayOpExpr *) node)->opno) != NIL)
		return true;
	/* what its arms compare is in a place that only it knows */
	if (IsA(node, CaseExpr) && ((CaseExpr *) node)->arg != NULL)
		return false;
	return !check_functions_in_node(node, is_no_comparison, NULL);
}

static Node *
split_mutator(Node *node, Splitting *s)
{
	int			on = 0;

	if (node == NULL || s->impossible)
		return NULL;
	if (IsA(node, List) || IsA(node, CaseWhen))
		return expression_tree_mutator(node, split_mutator, s);
	if (IsA(node, Const))
		return copyObject(node);
	(void) dependencies_walker(node, &on);
	if (on == ON_IDENTITY)
		return make_part(s->split, node, true);
	if (on == ON_ROW)
		return make_part(s->split, node, false);
	if ((on & ON_OTHERS) || !is_harmless(node))
	{
		s->impossible = true;
		return NULL;
	}
	return expression_tree_mutator(node, split_mutator, s);
}

RlsSplit *
split_make(const RlsPlan *plan, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	Splitting	s = {.split = palloc0(sizeof(RlsSplit))};

	s.split->context = context;
	s.split->rest = (List *) split_mutator((Node *) plan->quals, &s);
	MemoryContextSwitchTo(old);
	return s.impossible ? NULL : s.split;
}

RlsSplit *
split_make_empty(MemoryContext context)
{
	RlsSplit   *split = MemoryContextAllocZero(context, sizeof(RlsSplit));

	split->context = context;
	return split;
}

int
split_add_identity_part(RlsSplit *split, Node *expr)
{
	MemoryContext old = MemoryContextSwitchTo(split->context);

	(void) make_part(split, expr, true);
	MemoryContextSwitchTo(old);
	return split->nidentity_parts - 1;
}

bool
split_usable(const RlsSplit *split)
{
	return !split->running;
}

/* ---- running ---- */

/*
 * With an identity's rights: whether it may execute the functions is looked up
 * here.  All identities of a plan have the same role.
 */
static void
get_ready(RlsSplit *split)
{
	MemoryContext old;

	if (split->state)
		return;
	split->running = true;
	old = MemoryContextSwitchTo(split->context);
	split->econtext = CreateStandaloneExprContext();
	split->params = palloc0(sizeof(ParamExecData) * Max(split->nparts, 1));
	split->econtext->ecxt_param_exec_vals = split->params;
	split->row_context = AllocSetContextCreate(split->context, "subdispatch policy's row",
											   ALLOCSET_SMALL_SIZES);
	for (int i = 0; i < split->nparts; i++)
		split->parts[i].state = ExecInitExpr(split->parts[i].expr, NULL);
	split->state = ExecInitQual(split->rest, NULL);
	MemoryContextSwitchTo(old);
	split->running = false;
}

static void
make_identities(RlsSplit *split)
{
	if (split->identity_context)
		MemoryContextDelete(split->identity_context);
	split->identity_context = NULL;
	split->identities = NULL;
	split->identity_context = AllocSetContextCreate(split->context, "subdispatch policy's identities",
													ALLOCSET_DEFAULT_SIZES);
	split->identities = identities_create(split->identity_context, 64, NULL);
}

static Identity *
find_identity(RlsSplit *split, uint64 serial)
{
	return split->identities ? identities_lookup(split->identities, serial) : NULL;
}

bool
split_knows_identity(RlsSplit *split, uint64 identity)
{
	return find_identity(split, identity) != NULL;
}

static Identity *
add_identity(RlsSplit *split, uint64 serial)
{
	identities_hash *table;
	Identity   *identity;
	bool		found;

	if (split->identities == NULL || split->identities->members >= MAX_IDENTITIES)
		make_identities(split);
	/* if it finds no memory when it grows the table is not to be used again */
	table = split->identities;
	split->identities = NULL;
	identity = identities_insert(table, serial, &found);
	split->identities = table;
	return identity;
}

void
split_compute_identity(RlsSplit *split, uint64 serial)
{
	Identity   *identity = add_identity(split, serial);
	int			n = 0;

	identity->usable = false;	/* if what follows fails */
	identity->values = NULL;
	get_ready(split);
	identity->values = MemoryContextAlloc(split->identity_context,
										  sizeof(NullableDatum) * Max(split->nidentity_parts, 1));
	for (int i = 0; i < split->nparts; i++)
	{
		Part	   *part = &split->parts[i];
		NullableDatum *value = &identity->values[n];
		MemoryContext old;

		if (!part->of_identity)
			continue;
		value->value = ExecEvalExpr(part->state, split->econtext, &value->isnull);
		old = MemoryContextSwitchTo(split->identity_context);
		if (!value->isnull)
			value->value = datumCopy(value->value, part->by_value, part->len);
		MemoryContextSwitchTo(old);
		n++;
	}
	identity->usable = true;
}

const NullableDatum *
split_identity_values(RlsSplit *split, uint64 serial)
{
	const Identity *identity = find_identity(split, serial);

	return identity && identity->usable ? identity->values : NULL;
}

bool
split_knows_row(const RlsSplit *split, uint64 event_id, const SdEvent *ev)
{
	return split->event_id == event_id && split->ev == ev;
}

bool
split_row_is_code(const RlsSplit *split)
{
	return split->row_is_code;
}

static void
compute_image(RlsSplit *split, RlsTable *table, const SdEvent *ev, uint32 image, int which)
{
	const char *tuple = (const char *) ev + image;

	if (image == 0)
		return;
	split->econtext->ecxt_scantuple = rls_table_slot(table, (const HeapTupleHeaderData *) tuple);
	for (int i = 0; i < split->nparts; i++)
	{
		Part	   *part = &split->parts[i];

		if (!part->of_identity)
			part->values[which] = ExecEvalExpr(part->state, split->econtext, &part->nulls[which]);
	}
	split->econtext->ecxt_scantuple = NULL;
	ExecClearTuple(table->slot);
}

/*
 * Values may lie in the event, which stays where it is while it is the one that
 * is dispatched.  It can be dispatched again, after an error or for those who
 * resume; a change of another server is read anew then, and lies elsewhere.
 */
void
split_compute_row(RlsSplit *split, RlsTable *table, uint64 event_id, const SdEvent *ev)
{
	MemoryContext caller;

	Assert(split->state);
	split->event_id = 0;
	split->running = true;
	MemoryContextReset(split->row_context);
	caller = MemoryContextSwitchTo(split->row_context);
	compute_image(split, table, ev, ev->row, 0);
	compute_image(split, table, ev, ev->old, 1);
	MemoryContextSwitchTo(caller);
	split->running = false;
	split->event_id = event_id;
	split->ev = ev;
}

static bool
ask_image(RlsSplit *split, const Identity *identity, int which)
{
	const NullableDatum *value = identity->values;
	bool		visible;

	for (int i = 0; i < split->nparts; i++)
	{
		Part	   *part = &split->parts[i];
		ParamExecData *param = &split->params[i];

		if (part->of_identity)
		{
			param->value = value->value;
			param->isnull = value->isnull;
			value++;
		}
		else
		{
			param->value = part->values[which];
			param->isnull = part->nulls[which];
		}
	}
	split->running = true;
	ResetExprContext(split->econtext);
	visible = ExecQual(split->state, split->econtext);
	split->running = false;
	return visible;
}

bool
split_ask(RlsSplit *split, uint64 serial, bool row, bool old, bool *row_visible,
		  bool *old_visible)
{
	Identity   *identity = find_identity(split, serial);

	if (unlikely(identity == NULL || !identity->usable))
		return false;
	*row_visible = row && ask_image(split, identity, 0);
	*old_visible = old && ask_image(split, identity, 1);
	return true;
}
