/*-------------------------------------------------------------------------
 *
 * pytimeout.c
 *	  Ends Python code that runs inside a PL/Python function.
 *
 * Python code does not look at PostgreSQL's interrupts.  It looks at its own
 * signals, between instructions and after a system call was interrupted, so:
 *
 *	1. Once per process a handler for SIGINT, written in C, is registered with
 *	   Python's signal module, and PostgreSQL's own handler is put back behind
 *	   Python's back.
 *	2. pytimeout_interrupt(), called from a signal handler, tells Python that
 *	   a SIGINT came (PyErr_SetInterruptEx, made for signal handlers).
 *	3. Python then runs our handler, which raises KeyboardInterrupt, once.
 *	   That ends loops and sleeps; "with" and "finally" do their work.
 *	4. Code may catch what we raise.  If it is still there after PATIENCE
 *	   interrupts, the handler installs a trace function, in C, that raises
 *	   again at each line and each call.  Unlike one installed by
 *	   sys.settrace() it is not removed when it raises: each "except" and
 *	   "finally" is left at its first line, however deeply they are nested.
 *	5. pytimeout_leave() removes the trace function, so the next call of the
 *	   language finds nothing of it.  A SIGINT that Python has not yet seen by
 *	   then does nothing: the handler looks at "wanted" first.
 *
 * WHERE NOT TO RAISE.  PL/Python and its transforms do not expect an exception
 * wherever they call Python: not in repr() of a float, not in the items() of a
 * result, not in the first import of decimal; some go on with the NULL that
 * they get, and crash.  In a server where nobody interrupts Python they are
 * right.  So nothing is raised unless it will arrive where exceptions are
 * expected: stack_allows() tells.  Elsewhere the code goes on until
 * it is back in a function's own code, or has ended.  Nor is anything raised in
 * Python's import machinery itself (the module's own code is no part of it):
 * its clean-up, cut short, would leave half a module behind for good.
 *
 * A blocking system call of Python's (a read from a socket without a timeout)
 * is taken up again by the kernel after a handler with SA_RESTART, as all of
 * PostgreSQL's are.  Where the first interrupt did not end the code, SIGALRM
 * loses that flag until the code has ended, and the next tick of the timer
 * gets through.
 *
 * What can't be ended: a call into C that does not return to Python and does
 * not look at its signals, such as sum(itertools.repeat(1)); a method of a
 * class that PL/Python calls while it converts a result, an argument or an
 * error; where there is no backtrace() (glibc has it), all Python code.
 *
 * Python's headers and library are not needed for building, and a server
 * without PL/Python does not load them: everything is looked up in the running
 * process.  All of it runs in the process's main thread, which holds Python's
 * global lock whenever PL/Python isn't in a blocking call of Python's.
 *
 * Locks: none.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <dlfcn.h>
#include <signal.h>
#ifdef HAVE_EXECINFO_H
#include <execinfo.h>
#endif

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

#include "pytimeout.h"

#define PLPYTHON_HANDLER	"plpython3_call_handler"

/* Interrupts that code is given to catch the first, and clean up. */
#define PATIENCE		5

/* Functions on the stack that are looked at, for one that called Python. */
#define MAX_STACK		4096

/* Python's stable ABI, as far as it is used here. */
#define PY_METH_VARARGS		0x0001
#define PY_TRACE_EXCEPTION	1
#define PY_TRACE_RETURN		3

typedef void PyAny;
typedef PyAny *(*PyMethod) (PyAny *self, PyAny *args);
typedef int (*PyTrace) (PyAny *self, PyAny *frame, int what, PyAny *arg);

typedef struct PyMethodDesc
{
	const char *name;
	PyMethod	method;
	int			flags;
	const char *doc;
} PyMethodDesc;

static struct
{
	int			(*is_initialized) (void);
	int			(*set_interrupt_ex) (int signum);
	void		(*set_interrupt) (void);	/* before Python 3.10 */
	void		(*set_trace) (PyTrace func, PyAny *arg);
	void		(*set_string) (PyAny *exception, const char *message);
	void		(*clear) (void);
	int			(*check_signals) (void);
	PyAny	   *(*import) (const char *name);
	PyAny	   *(*new_function) (PyMethodDesc *desc, PyAny *self, PyAny *module);
	PyAny	   *(*call_method) (PyAny *object, const char *name, const char *format,...);
	void		(*incref) (PyAny *object);
	void		(*decref) (PyAny *object);
	PyAny	   *(*get_attr) (PyAny *object, const char *name);
	PyAny	   *(*tuple_item) (PyAny *tuple, ssize_t i);
	const char *(*as_utf8) (PyAny *string);
	PyAny	   *none;
	PyAny	  **keyboard_interrupt;
}			py;

typedef enum PyState
{
	PY_UNKNOWN,					/* to be looked for */
	PY_ABSENT,					/* not in this database, or unusable */
	PY_READY					/* our handler is registered */
} PyState;

static volatile PyState state = PY_UNKNOWN;

/* Shared with signal handlers. */
static volatile sig_atomic_t inside = false;	/* user code runs */
static volatile sig_atomic_t wanted = 0;	/* interrupts asked for since, up to
											 * PATIENCE + 1 */
static volatile sig_atomic_t unrestarted = false;	/* SIGALRM lost SA_RESTART */

static bool raised = false;		/* an exception, since user code began */
static uintptr_t denied = 0;	/* where on the stack it was not to be, since
								 * the last interrupt */

/* ---- called by Python ---- */

/*
 * Is this object file the server or one of its modules (PL/Python, its
 * transforms, any other), rather than Python's library or an extension of it?
 */
static bool
is_server_file(const Dl_info *info)
{
	static const void *python = NULL;	/* the last that was none */
	Dl_info		server;
	void	   *handle;
	bool		result;

	if (info->dli_fbase == python)
		return false;
	if (dladdr(&DataDir, &server) != 0 && server.dli_fbase == info->dli_fbase)
		return true;
	handle = dlopen(info->dli_fname, RTLD_LAZY | RTLD_NOLOAD);
	if (handle == NULL)
		return true;			/* don't know */
	result = dlsym(handle, PG_MAGIC_FUNCTION_NAME_STRING) != NULL;
	dlclose(handle);
	if (!result)
		python = info->dli_fbase;
	return result;
}

/*
 * Would an exception that is raised now arrive where one is expected?  It goes
 * up the stack to the first function that isn't Python's.  That must have
 * called Python to run a function's code, that is PyEval_EvalCode() or what it
 * became by a tail call, and nothing else.  When in doubt: no.
 */
static bool
stack_allows(void)
{
#ifdef HAVE_EXECINFO_H
	static void *stack[MAX_STACK];
	Dl_info		own;
	Dl_info		info;
	const char *callee = NULL;
	int			depth = backtrace(stack, MAX_STACK);
	int			i;

	if (dladdr(&py, &own) == 0)
		return false;
	for (i = 0; i < depth; i++)
	{
		/* one less: a call may be the last instruction of its function */
		if (dladdr((char *) stack[i] - 1, &info) == 0)
			return false;
		if (callee == NULL && info.dli_fbase == own.dli_fbase)
			continue;			/* this function and its callers */
		if (is_server_file(&info))
			return callee != NULL &&
				(strncmp(callee, "PyEval_", 7) == 0 || strncmp(callee, "_PyEval_", 8) == 0);
		callee = info.dli_sname ? info.dli_sname : "";
	}
#endif
	return false;
}

/* Is this frame one of the import machinery's? */
static bool
is_importing(PyAny *frame)
{
	PyAny	   *code = frame ? py.get_attr(frame, "f_code") : NULL;
	PyAny	   *file = code ? py.get_attr(code, "co_filename") : NULL;
	const char *name = file ? py.as_utf8(file) : NULL;
	bool		result = name != NULL && strncmp(name, "<frozen importlib", 17) == 0;

	if (name == NULL)
		py.clear();				/* no frame */
	if (file != NULL)
		py.decref(file);
	if (code != NULL)
		py.decref(code);
	return result;
}

static void
raise_exception(void)
{
	raised = true;
	py.set_string(*py.keyboard_interrupt, "interrupted by subdispatch");
}

/*
 * The trace function: 0, or -1 with an exception.
 *
 * Looking at the stack takes some 100 us.  What is called from where raising
 * was found to be wrong is therefore not looked at again until the next
 * interrupt, lest it be slowed down at each of its lines.
 */
static int
raise_again(PyAny *self, PyAny *frame, int what, PyAny *arg)
{
	char		here;

	/* where an exception passes through already, it goes on */
	if (!wanted || what == PY_TRACE_EXCEPTION || what == PY_TRACE_RETURN)
		return 0;
	if ((uintptr_t) &here <= denied || is_importing(frame))
		return 0;
	if (!stack_allows())
	{
		denied = (uintptr_t) &here; /* stacks grow downwards */
		return 0;
	}
	raise_exception();
	return -1;
}

/* The signal handler, as Python calls it: with the signal and the frame. */
static PyAny *
on_interrupt(PyAny *self, PyAny *args)
{
	denied = 0;
	if (wanted > PATIENCE)
		py.set_trace(raise_again, NULL);
	if (wanted && (!raised || wanted > PATIENCE) &&
		!is_importing(py.tuple_item(args, 1)) && stack_allows())
	{
		raise_exception();
		return NULL;
	}
	py.incref(py.none);
	return py.none;
}

static PyMethodDesc interrupt_desc = {
	"subdispatch_interrupt", on_interrupt, PY_METH_VARARGS, NULL
};

/* ---- getting hold of Python ---- */

/* All symbols, or false: some are missing. */
static bool
find_symbols(void)
{
	struct
	{
		const char *name;
		void	   *variable;
	}			symbols[] = {
		{"Py_IsInitialized", &py.is_initialized},
		{"PyEval_SetTrace", &py.set_trace},
		{"PyErr_SetString", &py.set_string},
		{"PyErr_Clear", &py.clear},
		{"PyErr_CheckSignals", &py.check_signals},
		{"PyImport_ImportModule", &py.import},
		{"PyCFunction_NewEx", &py.new_function},
		{"PyObject_CallMethod", &py.call_method},
		{"Py_IncRef", &py.incref},
		{"Py_DecRef", &py.decref},
		{"PyObject_GetAttrString", &py.get_attr},
		{"PyTuple_GetItem", &py.tuple_item},
		{"PyUnicode_AsUTF8", &py.as_utf8},
		{"_Py_NoneStruct", &py.none},
		{"PyExc_KeyboardInterrupt", &py.keyboard_interrupt},
	};
	void	   *symbol;
	int			i;

	for (i = 0; i < (int) lengthof(symbols); i++)
	{
		symbol = dlsym(RTLD_DEFAULT, symbols[i].name);
		if (symbol == NULL)
			return false;
		memcpy(symbols[i].variable, &symbol, sizeof(symbol));
	}
	symbol = dlsym(RTLD_DEFAULT, "PyErr_SetInterruptEx");
	memcpy(&py.set_interrupt_ex, &symbol, sizeof(symbol));
	symbol = dlsym(RTLD_DEFAULT, "PyErr_SetInterrupt");
	memcpy(&py.set_interrupt, &symbol, sizeof(symbol));
	return py.set_interrupt_ex != NULL || py.set_interrupt != NULL;
}

/*
 * Registers our handler, if Python runs in this process.  signal.signal()
 * changes the process's handler of SIGINT too, which is put back at once; one
 * that arrives in between is noted by Python and does nothing.
 */
static bool
register_handler(void)
{
	struct sigaction before;
	PyAny	   *module;
	PyAny	   *function;
	PyAny	   *result = NULL;

	if (!find_symbols() || !py.is_initialized())
		return false;
	if (sigaction(SIGINT, NULL, &before) != 0)
		return false;

	module = py.import("signal");
	function = py.new_function(&interrupt_desc, NULL, NULL);
	if (module != NULL && function != NULL)
		result = py.call_method(module, "signal", "iO", SIGINT, function);
	(void) sigaction(SIGINT, &before, NULL);

	if (result == NULL)
		py.clear();
	else
		py.decref(result);
	if (function != NULL)
		py.decref(function);
	if (module != NULL)
		py.decref(module);
	return result != NULL;
}

/* The inline handler and OID of a PL/Python in this database, or false. */
static bool
find_language(Oid *language, Oid *inline_handler)
{
	Relation	rel = table_open(LanguageRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;
	bool		found = false;

	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_language form = (Form_pg_language) GETSTRUCT(tuple);
		HeapTuple	proc;
		Datum		source;
		bool		isnull;

		if (!OidIsValid(form->laninline))
			continue;
		proc = SearchSysCache1(PROCOID, ObjectIdGetDatum(form->lanplcallfoid));
		if (!HeapTupleIsValid(proc))
			continue;
		source = SysCacheGetAttr(PROCOID, proc, Anum_pg_proc_prosrc, &isnull);
		if (!isnull && strcmp(TextDatumGetCString(source), PLPYTHON_HANDLER) == 0)
		{
			*language = form->oid;
			*inline_handler = form->laninline;
			found = true;
		}
		ReleaseSysCache(proc);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/*
 * PL/Python loads Python and starts it with its first function.  Have it run
 * nothing at all: DO 'pass', past the parser.  An error, such as that of a
 * library that isn't installed, is logged and costs nothing else.
 */
static void
start_python(Oid language, Oid inline_handler)
{
	InlineCodeBlock *code = makeNode(InlineCodeBlock);
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	code->source_text = "pass";
	code->langOid = language;
	code->langIsTrusted = false;
	code->atomic = true;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		(void) OidFunctionCall1(inline_handler, PointerGetDatum(code));
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		ereport(LOG,
				(errcode(edata->sqlerrcode),
				 errmsg("could not start PL/Python: %s", edata->message)));
		FreeErrorData(edata);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}

/* A language came or went. */
static void
language_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	if (state == PY_ABSENT)
		state = PY_UNKNOWN;
}

void
pytimeout_prepare(void)
{
	static bool watching = false;
	Oid			language;
	Oid			inline_handler;

	if (likely(state != PY_UNKNOWN))
		return;

	if (!watching)
	{
		CacheRegisterSyscacheCallback(LANGOID, language_changed, (Datum) 0);
		watching = true;
	}
	state = PY_ABSENT;			/* first, for a change to be noticed */
	if (find_language(&language, &inline_handler))
	{
		start_python(language, inline_handler);
		if (register_handler())
			state = PY_READY;
		else
			ereport(LOG,
					(errmsg("PL/Python functions cannot be interrupted in this process"),
					 errdetail("Python could not be started, or its library lacks a function that is needed.")));
	}
}

/* ---- around user code ---- */

void
pytimeout_enter(void)
{
	wanted = 0;
	raised = false;
	inside = (state == PY_READY);
}

void
pytimeout_leave(void)
{
	inside = false;				/* first: no interrupt from here on */
	if (likely(!wanted))
		return;

	wanted = 0;
	if (unrestarted)
	{
		struct sigaction action;

		if (sigaction(SIGALRM, NULL, &action) == 0)
		{
			action.sa_flags |= SA_RESTART;
			(void) sigaction(SIGALRM, &action, NULL);
		}
		unrestarted = false;
	}
	py.set_trace(NULL, NULL);
	/* what Python has not seen yet: on_interrupt ignores it now */
	if (py.check_signals() != 0)
		py.clear();
}

void
pytimeout_interrupt(void)
{
	if (!inside)
		return;

	if (wanted == 1)
	{
		struct sigaction action;

		if (sigaction(SIGALRM, NULL, &action) == 0 && (action.sa_flags & SA_RESTART) != 0)
		{
			action.sa_flags &= ~SA_RESTART;
			if (sigaction(SIGALRM, &action, NULL) == 0)
				unrestarted = true;
		}
	}
	if (wanted <= PATIENCE)
		wanted++;
	if (py.set_interrupt_ex != NULL)
		(void) py.set_interrupt_ex(SIGINT);
	else
		py.set_interrupt();
}
