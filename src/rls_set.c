/*-------------------------------------------------------------------------
 *
 * rls_set.c
 *	  Policies with sub-selects, asked for many identities at once.
 *
 * To start and end a query costs several times what it costs to look a row up
 * in an index.  So what would be asked for one identity after the other, with
 * the settings of each in force,
 *
 *	  SELECT true FROM image
 *	  WHERE EXISTS (SELECT FROM members m
 *					WHERE m.who = current_setting('app.user')::int AND m.project = image.project)
 *
 * is asked once for all identities of a role that are looked at together:
 *
 *	  SELECT identities.n FROM image, identities
 *	  WHERE EXISTS (SELECT FROM members m
 *					WHERE m.who = identities.part1 AND m.project = image.project)
 *
 * How it is best found out whom the row is for is then the planner's to say.
 *
 * That gives the answers that each identity would get by itself only if nothing
 * else in the query looks at the settings.  So it is asked so only if:
 *
 *	- what depends on the identity is, as in rls_split.c, current_setting() of a
 *	  listed setting, and what IMMUTABLE functions make of it.  These parts are
 *	  computed with the identity's settings, once, and kept;
 *	- all other functions are PostgreSQL's own and IMMUTABLE, or now(); users'
 *	  functions in SQL that are inlined are what their body is;
 *	- it consists of what is listed here, and reads ordinary tables only.
 *
 * current_user is the same for all, since they have one role.  The settings are
 * not in force while the query runs: what should be overlooked here would see
 * none at all, and not those of another.
 *
 * A part is computed whether the query would have come to it or not.  An
 * identity for which that raises an error is asked by itself.  An error of the
 * query's has all asked by themselves.
 *
 * Locks: none; the caller has those on the tables.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "jit/jit.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/queryenvironment.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "rls_set.h"

#define IDENTITIES_NAME	"subdispatch_identities"
#define IDENTITIES_VARNO	2		/* the image is 1 */
/*
 * What the planner is told: the plan is then that of a query for one identity,
 * run for each, and never more than that.  (For 64 it reads all of a large table
 * and not its index, since it doesn't know that they are asked for every event.)
 */
#define IDENTITIES_ROWS	1
#define MAX_INLINED		100		/* a function in SQL may call itself */
/* us, after an error; twice as long after each, up to a day. */
#define FIRST_PAUSE		INT64CONST(60000000)
#define LONGEST_PAUSE	INT64CONST(86400000000)

struct RlsSet
{
	RlsSplit   *identities;
	PlannedStmt *stmt;			/* the plan's */
	TupleDesc	desc;			/* of a row per identity: number, parts */
	TimestampTz paused_until;	/* 0: no error so far */
	int64		pause;			/* the last one; us */
};

/* ---- making the query ---- */

typedef struct Making
{
	List	   *parts;
	Index		level;			/* of sub-selects, how deep */
	int			inlined;
	bool		impossible;
} Making;

/* Other functions may look at what is different from identity to identity. */
static bool
looks_elsewhere(Oid function, void *arg)
{
	if (!rls_plan_is_internal(function))
		return true;
	return func_volatile(function) != PROVOLATILE_IMMUTABLE &&
		function != F_NOW && function != F_TRANSACTION_TIMESTAMP;
}

static bool
is_listed(const Node *node)
{
	switch (nodeTag(node))
	{
		case T_List:
		case T_FromExpr:
		case T_JoinExpr:
		case T_RangeTblRef:
		case T_RangeTblFunction:
		case T_SetOperationStmt:
		case T_SortGroupClause:
		case T_TargetEntry:
		case T_SubLink:
		case T_Aggref:
		case T_CaseWhen:
			return true;
		case T_CaseExpr:
			/* what its arms compare is in a place that only it knows */
			return ((const CaseExpr *) node)->arg == NULL;
		case T_Param:
			return ((const Param *) node)->paramkind == PARAM_SUBLINK;
		default:
			return rls_plan_is_plain(node);
	}
}

static bool
is_listed_rte(const RangeTblEntry *rte)
{
	switch (rte->rtekind)
	{
		case RTE_RELATION:
			return rte->tablesample == NULL &&
				(rte->relkind == RELKIND_RELATION || rte->relkind == RELKIND_MATVIEW ||
				 rte->relkind == RELKIND_PARTITIONED_TABLE || rte->relkind == RELKIND_VIEW);
		case RTE_SUBQUERY:
		case RTE_JOIN:
		case RTE_FUNCTION:
		case RTE_VALUES:
		case RTE_RESULT:
			return true;
		default:
			return false;
	}
}

static bool
is_listed_query(const Query *query)
{
	ListCell   *lc;

	if (query->commandType != CMD_SELECT || query->utilityStmt || query->cteList != NIL ||
		query->rowMarks != NIL || query->windowClause != NIL || query->groupingSets != NIL)
		return false;
	foreach(lc, query->rtable)
		if (!is_listed_rte(lfirst_node(RangeTblEntry, lc)))
			return false;
	return true;
}

/* A value that is computed of the identity alone? */
static bool
is_part(Node *node)
{
	return !IsA(node, List) && !IsA(node, CaseWhen) && split_is_identitys(node) &&
		rls_plan_is_steady(node) && !expression_returns_set(node);
}

/* A column of the identities in place of what they have in it. */
static Node *
part_column(Node *expr, Making *m)
{
	int			n = 0;
	ListCell   *lc;

	foreach(lc, m->parts)
	{
		if (equal(lfirst(lc), expr))
			break;
		n++;
	}
	if (lc == NULL)
		m->parts = lappend(m->parts, copyObject(expr));
	return (Node *) makeVar(IDENTITIES_VARNO, n + 2, exprType(expr), exprTypmod(expr),
							exprCollation(expr), m->level);
}

static Node *set_mutator(Node *node, Making *m);

static Node *
inline_function(Node *call, Making *m)
{
	Node	   *body;

	if (m->inlined++ < MAX_INLINED)
	{
		body = eval_const_expressions(NULL, call);
		if (!IsA(body, FuncExpr) || ((FuncExpr *) body)->funcid != ((FuncExpr *) call)->funcid)
			return set_mutator(body, m);
	}
	m->impossible = true;
	return call;
}

static Node *
set_mutator(Node *node, Making *m)
{
	if (node == NULL || m->impossible)
		return node;
	if (IsA(node, Query))
	{
		Query	   *query = (Query *) node;

		if (is_listed_query(query))
		{
			m->level++;
			query = query_tree_mutator(query, set_mutator, m, 0);
			m->level--;
			return (Node *) query;
		}
	}
	else if (is_listed(node))
	{
		if (IsA(node, FuncExpr) && ((FuncExpr *) node)->funcid >= FirstNormalObjectId)
			return inline_function(node, m);
		if (is_part(node))
			return part_column(node, m);
		if (!check_functions_in_node(node, looks_elsewhere, NULL))
			return expression_tree_mutator(node, set_mutator, m);
	}
	m->impossible = true;
	return node;
}

static RangeTblEntry *
identities_rte(List *parts)
{
	RangeTblEntry *rte = makeNode(RangeTblEntry);
	ListCell   *lc;

	rte->rtekind = RTE_NAMEDTUPLESTORE;
	rte->enrname = pstrdup(IDENTITIES_NAME);
	rte->enrtuples = IDENTITIES_ROWS;
	rte->inFromCl = true;
	rte->eref = makeAlias(IDENTITIES_NAME, list_make1(makeString(pstrdup("n"))));
	rte->coltypes = list_make1_oid(INT4OID);
	rte->coltypmods = list_make1_int(-1);
	rte->colcollations = list_make1_oid(InvalidOid);
	foreach(lc, parts)
	{
		Node	   *expr = lfirst(lc);

		rte->eref->colnames = lappend(rte->eref->colnames, makeString(pstrdup("part")));
		rte->coltypes = lappend_oid(rte->coltypes, exprType(expr));
		rte->coltypmods = lappend_int(rte->coltypmods, exprTypmod(expr));
		rte->colcollations = lappend_oid(rte->colcollations, exprCollation(expr));
	}
	return rte;
}

PlannedStmt *
set_plan(const Query *rewritten, List **parts)
{
	Query	   *query = copyObject(unconstify(Query *, rewritten));
	RangeTblRef *ref = makeNode(RangeTblRef);
	Making		m = {0};
	PlannedStmt *stmt;

	*parts = NIL;
	if (list_length(query->rtable) != IDENTITIES_VARNO - 1)
		return NULL;
	query->jointree->quals = set_mutator(query->jointree->quals, &m);
	if (m.impossible)
		return NULL;
	ref->rtindex = IDENTITIES_VARNO;
	query->rtable = lappend(query->rtable, identities_rte(m.parts));
	query->jointree->fromlist = lappend(query->jointree->fromlist, ref);
	query->targetList = list_make1(makeTargetEntry((Expr *) makeVar(IDENTITIES_VARNO, 1, INT4OID, -1,
																	InvalidOid, 0),
												   1, pstrdup("n"), false));
	stmt = pg_plan_query(query, "", 0, NULL);
	stmt->jitFlags = PGJIT_NONE;
	*parts = m.parts;
	return stmt;
}

RlsSet *
set_make(const RlsPlan *plan, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	RlsSet	   *set = palloc0(sizeof(RlsSet));
	int			attno = 1;
	ListCell   *lc;

	set->stmt = plan->set_stmt;
	set->identities = split_make_empty(context);
	set->desc = CreateTemplateTupleDesc(1 + list_length(plan->set_parts));
	TupleDescInitEntry(set->desc, attno, "n", INT4OID, -1, 0);
	foreach(lc, plan->set_parts)
	{
		Node	   *expr = lfirst(lc);

		(void) split_add_identity_part(set->identities, expr);
		TupleDescInitEntry(set->desc, ++attno, "part", exprType(expr), exprTypmod(expr), 0);
		TupleDescInitEntryCollation(set->desc, attno, exprCollation(expr));
	}
	MemoryContextSwitchTo(old);
	return set;
}

/* ---- asking ---- */

RlsSplit *
set_identities(RlsSet *set)
{
	return set->identities;
}

bool
set_usable(const RlsSet *set)
{
	return split_usable(set->identities) &&
		(set->paused_until == 0 || GetCurrentTimestamp() >= set->paused_until);
}

void
set_note_error(RlsSet *set)
{
	set->pause = set->pause == 0 ? FIRST_PAUSE : Min(set->pause * 2, LONGEST_PAUSE);
	set->paused_until = GetCurrentTimestamp() + set->pause;
}

static void
register_rows(QueryEnvironment *env, const char *name, TupleDesc desc, Tuplestorestate *store, int n)
{
	EphemeralNamedRelation relation = palloc0(sizeof(EphemeralNamedRelationData));

	relation->md.name = pstrdup(name);
	relation->md.reliddesc = InvalidOid;
	relation->md.tupdesc = desc;
	relation->md.enrtype = ENR_NAMED_TUPLESTORE;
	relation->md.enrtuples = n;
	relation->reldata = store;
	register_ENR(env, relation);
}

static Tuplestorestate *
store_identities(RlsSet *set, const uint64 *identities, int n)
{
	Tuplestorestate *store = tuplestore_begin_heap(false, false, work_mem);
	Datum	   *values = palloc(sizeof(Datum) * set->desc->natts);
	bool	   *nulls = palloc(sizeof(bool) * set->desc->natts);

	for (int i = 0; i < n; i++)
	{
		const NullableDatum *parts = split_identity_values(set->identities, identities[i]);

		Assert(parts);
		values[0] = Int32GetDatum(i);
		nulls[0] = false;
		for (int part = 0; part < set->desc->natts - 1; part++)
		{
			values[1 + part] = parts[part].value;
			nulls[1 + part] = parts[part].isnull;
		}
		tuplestore_putvalues(store, set->desc, values, nulls);
	}
	return store;
}

/* Notes the numbers of those to whom the image is visible. */
typedef struct Receiver
{
	DestReceiver pub;
	bool	   *visible;
} Receiver;

static bool
receive(TupleTableSlot *slot, DestReceiver *self)
{
	bool		isnull;
	int			n = DatumGetInt32(slot_getattr(slot, 1, &isnull));

	Assert(!isnull);
	((Receiver *) self)->visible[n] = true;
	return true;
}

static void
receive_startup(DestReceiver *self, int operation, TupleDesc desc)
{
}

static void
receive_nothing(DestReceiver *self)
{
}

void
set_run(RlsSet *set, RlsTable *table, const HeapTupleHeaderData *image, const uint64 *identities,
		int n, bool *visible)
{
	QueryEnvironment *env = create_queryEnv();
	Tuplestorestate *rows = tuplestore_begin_heap(false, false, 64);
	Tuplestorestate *those = store_identities(set, identities, n);
	Receiver	receiver = {
		.pub = {receive, receive_startup, receive_nothing, receive_nothing, DestNone},
		.visible = visible
	};
	QueryDesc  *desc;

	memset(visible, false, sizeof(bool) * n);
	rls_table_put(table, image, rows);
	register_rows(env, RLS_IMAGE_NAME, table->desc, rows, 1);
	register_rows(env, IDENTITIES_NAME, set->desc, those, n);

	desc = CreateQueryDesc(set->stmt, "", GetActiveSnapshot(), InvalidSnapshot, &receiver.pub,
						   NULL, env, 0);
	ExecutorStart(desc, 0);
	ExecutorRun(desc, ForwardScanDirection, 0, true);
	ExecutorFinish(desc);
	ExecutorEnd(desc);
	FreeQueryDesc(desc);
	tuplestore_end(those);
	tuplestore_end(rows);
}
