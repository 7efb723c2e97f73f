/*-------------------------------------------------------------------------
 *
 * rls_plan.c
 *	  A table's policies as something that can be asked about a row image.
 *
 * Which policies apply, and how they combine, is PostgreSQL's own to tell:
 * get_row_security_policies() is called as the rewriter would for a SELECT of
 * the table.  What it gives are conditions over a range table entry number 1.
 *
 * Conditions without sub-selects are evaluated as expressions on a slot that
 * holds the image.  Others become the WHERE clause of a query that reads the
 * image out of a tuplestore; the rewriter then adds the policies of the tables
 * in the sub-selects, and the executor checks the rights on them.
 *
 * A sub-select that reads no table, as in (SELECT current_user) = owner, is
 * taken for what it selects.
 *
 * Two things are different from a query of one session:
 *
 *	- An image has no system columns.  tableoid is the table's, unless that is
 *	  partitioned, for then it is a partition's; policies that refer to other
 *	  system columns show nothing.
 *
 *	- A plan is used for identities with other settings.  Planning calls
 *	  IMMUTABLE functions with constant arguments; one that is labelled so
 *	  wrongly, and looks at a setting, would give one identity's answer to
 *	  the others.  So a plan for which such a function of a user's was called
 *	  is not shareable: it is made anew each time, as it would be for a query.
 *
 * For the same reason an expression is "steady", so that its run-time state can
 * be kept, only if it consists of nothing but built-in functions in C and
 * built-in types.
 *
 * Locks: those that planning a query takes, until the end of the transaction.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/transam.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "jit/jit.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "rewrite/rewriteHandler.h"
#include "rewrite/rewriteManip.h"
#include "rewrite/rowsecurity.h"
#include "tcop/tcopprot.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "dispatch.h"
#include "event_image.h"
#include "rls_plan.h"
#include "rls_set.h"

/* ---- the table ---- */

static Bitmapset *
index_columns(Form_pg_index index)
{
	Bitmapset  *columns = NULL;

	for (int i = 0; i < index->indnkeyatts; i++)
		if (AttributeNumberIsValid(index->indkey.values[i]))
			columns = bms_add_member(columns, index->indkey.values[i]);
	return columns;
}

/*
 * Not out of rel->rd_pkindex, which is not set for a primary key that is
 * deferrable.
 */
static Bitmapset *
key_columns(Relation rel)
{
	List	   *indexes = RelationGetIndexList(rel);
	Bitmapset  *replica_identity = NULL;
	Bitmapset  *primary_key = NULL;
	ListCell   *lc;

	foreach(lc, indexes)
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(lc)));
		Form_pg_index index;

		if (!HeapTupleIsValid(tuple))
			continue;
		index = (Form_pg_index) GETSTRUCT(tuple);
		if (index->indisprimary)
			primary_key = index_columns(index);
		else if (index->indisreplident)
			replica_identity = index_columns(index);
		ReleaseSysCache(tuple);
	}
	list_free(indexes);
	return primary_key ? primary_key : replica_identity;
}

RlsTable *
rls_table_make(Relation rel)
{
	RlsTable   *table = palloc0(sizeof(RlsTable));

	table->relid = RelationGetRelid(rel);
	table->desc = CreateTupleDescCopy(RelationGetDescr(rel));
	table->layout = event_table_make(rel);
	for (uint32 i = 0; i < table->layout->natts; i++)
		if (OidIsValid(table->layout->atts[i].type) &&
			event_type_has_rows(table->layout->atts[i].type))
			table->has_rows = true;
	table->keys = key_columns(rel);
	table->slot = MakeSingleTupleTableSlot(table->desc, &TTSOpsHeapTuple);
	return table;
}

/* ---- system columns ---- */

typedef struct SystemColumns
{
	Oid			tableoid;		/* InvalidOid: not known */
	Index		level;			/* of sub-selects, how deep */
	bool		unknown;		/* out: one that an image doesn't have */
	Bitmapset  *columns;		/* out: the others; 0: the whole row */
} SystemColumns;

static Node *
replace_system_columns(Node *node, SystemColumns *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, Var))
	{
		Var		   *var = (Var *) node;

		if (var->varno != 1 || var->varlevelsup != context->level)
			return copyObject(node);
		if (var->varattno >= 0)
		{
			context->columns = bms_add_member(context->columns, var->varattno);
			return copyObject(node);
		}
		if (var->varattno == TableOidAttributeNumber && OidIsValid(context->tableoid))
			return (Node *) makeConst(OIDOID, -1, InvalidOid, sizeof(Oid),
									  ObjectIdGetDatum(context->tableoid), false, true);
		context->unknown = true;
		return copyObject(node);
	}
	if (IsA(node, Query))
	{
		Query	   *query;

		context->level++;
		query = query_tree_mutator((Query *) node, replace_system_columns, context, 0);
		context->level--;
		return (Node *) query;
	}
	return expression_tree_mutator(node, replace_system_columns, context);
}

/* ---- sub-selects that read no table ---- */

static bool
selects_expression(const SubLink *link)
{
	const Query *query = (const Query *) link->subselect;

	return link->subLinkType == EXPR_SUBLINK && IsA(query, Query) &&
		query->commandType == CMD_SELECT && query->rtable == NIL &&
		query->jointree->fromlist == NIL && query->jointree->quals == NULL &&
		list_length(query->targetList) == 1 && !query->hasAggs && !query->hasWindowFuncs &&
		!query->hasTargetSRFs && query->cteList == NIL && query->groupClause == NIL &&
		query->groupingSets == NIL && query->havingQual == NULL && query->distinctClause == NIL &&
		query->sortClause == NIL && query->limitOffset == NULL && query->limitCount == NULL &&
		query->setOperations == NULL;
}

static Node *
pull_up_expressions(Node *node, void *context)
{
	if (node == NULL)
		return NULL;
	if (IsA(node, SubLink) && selects_expression((SubLink *) node))
	{
		Query	   *query = (Query *) ((SubLink *) node)->subselect;
		Node	   *expr = copyObject((Node *) linitial_node(TargetEntry, query->targetList)->expr);

		IncrementVarSublevelsUp(expr, -1, 1);
		return pull_up_expressions(expr, context);
	}
	return expression_tree_mutator(node, pull_up_expressions, context);
}

/* ---- whose code planning runs ---- */

static object_access_hook_type previous_hook = NULL;
static bool user_code_folded = false;

/* Called before each call of a function, in planning. */
static void
watch_functions(ObjectAccessType access, Oid class, Oid object, int sub, void *arg)
{
	if (access == OAT_FUNCTION_EXECUTE && object >= FirstNormalObjectId &&
		func_volatile(object) == PROVOLATILE_IMMUTABLE)
		user_code_folded = true;
	if (previous_hook)
		previous_hook(access, class, object, sub, arg);
}

/* ---- what an expression's state keeps ---- */

bool
rls_plan_is_internal(Oid function)
{
	HeapTuple	tuple;
	bool		internal;

	if (function >= FirstNormalObjectId)
		return false;
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		return false;
	internal = ((Form_pg_proc) GETSTRUCT(tuple))->prolang == INTERNALlanguageId;
	ReleaseSysCache(tuple);
	return internal;
}

static bool
keeps_something(Oid function, void *arg)
{
	return !rls_plan_is_internal(function);
}

bool
rls_plan_is_plain(const Node *node)
{
	switch (nodeTag(node))
	{
		case T_Var:
		case T_Const:
		case T_FuncExpr:
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
		case T_ScalarArrayOpExpr:
		case T_BoolExpr:
		case T_NullTest:
		case T_BooleanTest:
		case T_RelabelType:
		case T_CoerceViaIO:
		case T_CaseExpr:
		case T_CaseTestExpr:
		case T_CoalesceExpr:
		case T_ArrayExpr:
		case T_ArrayCoerceExpr:
		case T_SQLValueFunction:
			return true;
		default:
			return false;
	}
}

/* True for what is not known to be steady. */
static bool
unsteady_walker(Node *node, void *arg)
{
	if (node == NULL)
		return false;
	if (IsA(node, List) || IsA(node, CaseWhen))
		return expression_tree_walker(node, unsteady_walker, arg);
	if (!rls_plan_is_plain(node) || (IsA(node, Var) && ((Var *) node)->varattno <= 0))
		return true;
	if (exprType(node) >= FirstNormalObjectId)
		return true;
	if (check_functions_in_node(node, keeps_something, NULL))
		return true;
	return expression_tree_walker(node, unsteady_walker, arg);
}

bool
rls_plan_is_steady(Node *expr)
{
	return !unsteady_walker(expr, NULL);
}

/* ---- planning ---- */

/* The conditions, as the rewriter would attach them to a SELECT. */
static List *
get_policies(Relation rel, bool *has_sublinks)
{
	RangeTblEntry *rte = makeNode(RangeTblEntry);
	Query	   *query = makeNode(Query);
	List	   *quals;
	List	   *checks;
	bool		has_policies;

	rte->rtekind = RTE_RELATION;
	rte->relid = RelationGetRelid(rel);
	rte->relkind = rel->rd_rel->relkind;
	rte->rellockmode = AccessShareLock;
	rte->requiredPerms = ACL_SELECT;
	query->commandType = CMD_SELECT;
	query->rtable = list_make1(rte);
	get_row_security_policies(query, rte, 1, &quals, &checks, &has_policies, has_sublinks);
	return quals;
}

static void
plan_expression(RlsPlan *plan, List *quals)
{
	Expr	   *expr;

	plan->repeatable = !contain_volatile_functions((Node *) quals);
	expr = expression_planner_with_deps(make_ands_explicit(quals),
													&plan->relids, &plan->items);

	plan->quals = make_ands_implicit(expr);
	if (plan->quals == NIL)
		plan->kind = RLS_EVERYTHING;
	else if (IsA(linitial(plan->quals), Const))
	{
		Const	   *constant = linitial_node(Const, plan->quals);

		/* false: true would have been simplified away, and so would an AND */
		plan->kind = RLS_NOTHING;
		Assert(constant->constisnull || !DatumGetBool(constant->constvalue));
		(void) constant;
	}
	else
	{
		plan->kind = RLS_EXPRESSION;
		plan->steady = rls_plan_is_steady((Node *) plan->quals);
	}
}

/* The one row of the tuplestore, in place of the table. */
static RangeTblEntry *
image_rte(const RlsTable *table)
{
	RangeTblEntry *rte = makeNode(RangeTblEntry);

	rte->rtekind = RTE_NAMEDTUPLESTORE;
	rte->relid = table->relid;
	rte->rellockmode = AccessShareLock;
	rte->enrname = pstrdup(RLS_IMAGE_NAME);
	rte->enrtuples = 1;
	rte->inFromCl = true;
	rte->eref = makeAlias(RLS_IMAGE_NAME, NIL);
	for (int i = 0; i < table->desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(table->desc, i);
		bool		dropped = att->attisdropped;

		rte->eref->colnames = lappend(rte->eref->colnames,
									  makeString(pstrdup(dropped ? "" : NameStr(att->attname))));
		rte->coltypes = lappend_oid(rte->coltypes, dropped ? InvalidOid : att->atttypid);
		rte->coltypmods = lappend_int(rte->coltypmods, dropped ? 0 : att->atttypmod);
		rte->colcollations = lappend_oid(rte->colcollations,
										 dropped ? InvalidOid : att->attcollation);
	}
	return rte;
}

static void
plan_query(RlsPlan *plan, List *quals, const RlsTable *table)
{
	Query	   *query = makeNode(Query);
	RangeTblRef *ref = makeNode(RangeTblRef);
	List	   *rewritten;

	ref->rtindex = 1;
	query->commandType = CMD_SELECT;
	query->canSetTag = true;
	query->rtable = list_make1(image_rte(table));
	query->jointree = makeFromExpr(list_make1(ref), (Node *) make_ands_explicit(quals));
	query->hasSubLinks = true;
	query->targetList = list_make1(makeTargetEntry((Expr *) makeBoolConst(true, false), 1,
												   pstrdup("visible"), false));
	AcquireRewriteLocks(query, true, false);
	rewritten = QueryRewrite(query);
	if (list_length(rewritten) != 1)
		elog(ERROR, "policies became %d queries", list_length(rewritten));
	/* with the policies of other tables, and what views select */
	plan->repeatable = !contain_volatile_functions((Node *) linitial(rewritten));
	plan->kind = RLS_QUERY;
	plan->set_stmt = set_plan(linitial_node(Query, rewritten), &plan->set_parts);
	plan->stmt = pg_plan_query(linitial_node(Query, rewritten), "", 0, NULL);
	plan->stmt->jitFlags = PGJIT_NONE;	/* for one row */
	plan->relids = plan->stmt->relationOids;
	plan->items = plan->stmt->invalItems;
}

RlsPlan *
rls_plan_make(Relation rel, const RlsTable *table)
{
	RlsPlan    *plan = palloc0(sizeof(RlsPlan));
	bool		partitioned = rel->rd_rel->relkind == RELKIND_PARTITIONED_TABLE;
	SystemColumns system = {
		.tableoid = partitioned ? InvalidOid : RelationGetRelid(rel)
	};
	bool		has_sublinks;
	List	   *quals = get_policies(rel, &has_sublinks);

	quals = (List *) replace_system_columns((Node *) quals, &system);
	if (has_sublinks)
	{
		quals = (List *) pull_up_expressions((Node *) quals, NULL);
		has_sublinks = checkExprHasSubLink((Node *) quals);
	}
	plan->columns = system.columns;
	plan->shareable = true;
	if (system.unknown)
	{
		dispatch_log_failure(InvalidOid, NULL,
							 psprintf("policies of table \"%s\" refer to a system column, which a change does not tell",
									  RelationGetRelationName(rel)));
		plan->kind = RLS_NOTHING;
		return plan;
	}

	user_code_folded = false;
	previous_hook = object_access_hook;
	object_access_hook = watch_functions;
	PG_TRY();
	{
		if (has_sublinks)
			plan_query(plan, quals, table);
		else
			plan_expression(plan, quals);
	}
	PG_FINALLY();
	{
		object_access_hook = previous_hook;
	}
	PG_END_TRY();
	plan->shareable = !user_code_folded;
	return plan;
}

RlsPlan *
rls_plan_copy(const RlsPlan *plan)
{
	RlsPlan    *copy = palloc0(sizeof(RlsPlan));

	copy->kind = plan->kind;
	copy->shareable = plan->shareable;
	copy->steady = plan->steady;
	copy->repeatable = plan->repeatable;
	copy->columns = bms_copy(plan->columns);
	copy->quals = copyObject(plan->quals);
	copy->stmt = copyObject(plan->stmt);
	copy->set_stmt = copyObject(plan->set_stmt);
	copy->set_parts = copyObject(plan->set_parts);
	copy->relids = list_copy(plan->relids);
	copy->items = copyObject(plan->items);
	return copy;
}
