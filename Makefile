# subdispatch: committed events become ready-to-send GraphQL subscription responses
#
#   make && sudo make install         build and install for the PostgreSQL that PG_CONFIG names
#   make check                        everything, on a throw-away server; installs what is missing on Debian
#   make demo                         the main job on pgbench's workload, on a throw-away server (or two, SERVERS=2)
#   make bench                        the benchmark suite, see bench/README.md
#   make installcheck                 regression and isolation tests on a running server that preloads the library
#   make tapcheck, unitcheck          TAP tests (they start their own servers), unit tests of the pure C files
#   make clangcheck                   clang's warnings, as errors
#
# Options of check: TESTS="regress isolation tap unit demo", REGRESS=name, ISOLATION=name, PROVE_TESTS=test/t/name.pl,
# ASSERT=only|no, SANITIZE=1, PROVE_FLAGS=…   Options of demo: SERVERS=1|2, DURATION=seconds, CLIENTS=n, SCALE=n,
#   IDLE_SUBSCRIPTIONS=n
# Options of bench: BENCH="name …", RUNS=rounds, SECONDS=s, QUICK=1, README=1

PG_CONFIG ?= pg_config
PKG_CONFIG ?= pkg-config

# These must work before there is a compiler or a pg_config, so no part of PGXS is read for them.
SETUP_GOALS := check demo bench

ifneq ($(filter $(SETUP_GOALS),$(MAKECMDGOALS)),)

.NOTPARALLEL:
.PHONY: $(MAKECMDGOALS)

check:
	@bash test/check.sh

demo:
	@bash test/demo/run.sh

# bash has a use of its own for a variable SECONDS
bench:
	@env -u SECONDS SECONDS_EACH="$(or $(SECONDS),4)" bash bench/run.sh

OTHER_GOALS := $(filter-out $(SETUP_GOALS),$(MAKECMDGOALS))
ifneq ($(OTHER_GOALS),)
$(OTHER_GOALS):
	$(MAKE) $@
endif

else

MODULE_big = subdispatch
EXTENSION = subdispatch
PGFILEDESC = "subdispatch - GraphQL subscription responses from committed events"
DATA = $(sort $(wildcard sql/subdispatch--*.sql))
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))

# init makes what the other regression tests need, and cleanup ends it: they frame every selection, too
# (make installcheck REGRESS=publish).
REGRESS = $(filter-out subdispatch--%,$(sort $(patsubst sql/%.sql,%,$(wildcard sql/*.sql))))
override REGRESS := $(if $(REGRESS),init $(filter-out init cleanup,$(REGRESS)) cleanup)

ISOLATION = $(sort $(patsubst test/isolation/specs/%.spec,%,$(wildcard test/isolation/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test/isolation

PROVE_TESTS = $(sort $(wildcard test/t/*.pl))

UNIT_TESTS = $(patsubst %.c,%,$(sort $(wildcard test/unit/*_test.c)))
EXTRA_CLEAN = $(UNIT_TESTS) output_iso

GOALS := $(or $(MAKECMDGOALS),all)
CLEAN_GOALS := clean distclean maintainer-clean

ifeq ($(shell command -v $(PG_CONFIG)),)

ifneq ($(filter-out $(CLEAN_GOALS),$(GOALS)),)
$(error $(PG_CONFIG) not found: install PostgreSQL's development files (Debian: postgresql-server-dev-15) or set PG_CONFIG)
endif

# Cleaning up must not need what building needs.
.PHONY: $(CLEAN_GOALS)
$(CLEAN_GOALS):
	rm -rf $(OBJS) $(MODULE_big).so $(EXTRA_CLEAN) results regression.diffs regression.out tmp_check

else

ifneq ($(filter-out $(CLEAN_GOALS) uninstall installcheck tapcheck,$(GOALS)),)
ifneq ($(shell $(PKG_CONFIG) --exists json-c && echo found),found)
$(error json-c not found by $(PKG_CONFIG): install its development files (Debian: libjson-c-dev and pkg-config))
endif
endif

# With or without Redis in use: one build has it all.
ifneq ($(filter-out $(CLEAN_GOALS) uninstall installcheck tapcheck,$(GOALS)),)
ifneq ($(shell $(PKG_CONFIG) --exists hiredis && echo found),found)
$(error hiredis not found by $(PKG_CONFIG): install its development files (Debian: libhiredis-dev and pkg-config))
endif
ifneq ($(shell $(PKG_CONFIG) --exists 'openssl >= 1.1.1' && echo found),found)
$(error openssl (1.1.1 or newer) not found by $(PKG_CONFIG): install its development files (Debian: libssl-dev and pkg-config))
endif
endif

REDIS_CFLAGS := $(shell $(PKG_CONFIG) --cflags hiredis openssl 2>/dev/null)
REDIS_LIBS := $(shell $(PKG_CONFIG) --libs hiredis openssl 2>/dev/null)

JSONC_CFLAGS := $(shell $(PKG_CONFIG) --cflags json-c 2>/dev/null)
JSONC_LIBS := $(shell $(PKG_CONFIG) --libs json-c 2>/dev/null)

# PostgreSQL's own headers are not clean under -Wextra: as system headers they are exempt, and need no exceptions here.
PG_CPPFLAGS = -Isrc $(JSONC_CFLAGS) $(REDIS_CFLAGS) -isystem $(shell $(PG_CONFIG) --includedir-server)
SHLIB_LINK = $(JSONC_LIBS) $(REDIS_LIBS) -ldl

# PG_FUNCTION_ARGS and hook signatures bring parameters that a function need not use.
WARNINGS = -Wall -Wextra -Wno-unused-parameter -Werror=implicit-function-declaration

# "override", because PG_CFLAGS=-DUSE_ASSERT_CHECKING on the command line must not turn the warnings off.
override PG_CFLAGS += $(WARNINGS)

# PGXS hands over the flags of the compiler that built PostgreSQL, some of which clang does not know.
ifneq ($(findstring clang,$(shell $(CC) --version 2>/dev/null)),)
override PG_CFLAGS += -Wno-unknown-warning-option -Wno-ignored-optimization-argument
endif

# Bitcode would only serve to inline these functions into JIT-compiled queries, and needs the clang that built PostgreSQL.
override with_llvm = no

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# PGXS knows no header dependencies.
$(OBJS): $(wildcard src/*.h)

# modules of the TAP tests' own
PG_PROVE_FLAGS += -I $(CURDIR)/test/perl

.PHONY: tapcheck unitcheck clangcheck

tapcheck:
	$(if $(PROVE_TESTS),,$(error no test/t/*.pl))
	$(prove_installcheck)

# A unit test names the files that it needs in a line of its own: /* uses: ratelimit.c */
unit_uses = $(addprefix src/,$(shell sed -n 's|^/\* *uses: *\(.*[^ ]\) *\*/ *$$|\1|p' $(1)))
UNIT_CFLAGS = -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all

define unit_rule
$(1): $(1).c $(call unit_uses,$(1).c) $(wildcard src/*.h test/unit/*.h)
	$$(CC) $(WARNINGS) $(UNIT_CFLAGS) $$(CPPFLAGS) $$(filter %.c,$$^) $(JSONC_LIBS) -lm $$(COPT) -o $$@
endef
$(foreach t,$(UNIT_TESTS),$(eval $(call unit_rule,$(t))))

unitcheck: $(UNIT_TESTS)
	$(if $(UNIT_TESTS),,$(error no test/unit/*_test.c))
	$(PROVE) $(PROVE_FLAGS) --exec '' $(addprefix ./,$(UNIT_TESTS))

CLANG_CHECK = clang
clangcheck:
	$(CLANG_CHECK) -fsyntax-only -Werror $(WARNINGS) -Wdeclaration-after-statement $(CPPFLAGS) $(OBJS:.o=.c)

endif
endif
