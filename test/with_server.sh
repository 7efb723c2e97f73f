#!/bin/bash
# with_server.sh [-a] [-m VARIABLE=VALUE]… [-c SETTING=VALUE]… CMD…
#
# Builds the extension, starts a throw-away server that preloads it, and runs CMD there: in a copy of the checkout, as an
# unprivileged user (PGHOST, PGPORT, PGUSER and PGDATABASE are set, PostgreSQL's programs are in the PATH). For example
#
#   test/with_server.sh psql
#   test/with_server.sh -a make installcheck REGRESS=publish
#   test/with_server.sh -a prove -v test/t/001_name.pl
#   test/with_server.sh -c fsync=on -c subdispatch.dispatchers=4 pgbench -i
#
# -a builds with assertions, -m gives make a variable. KEEP=1 in the environment keeps the directory with the build, the logs and the data.
set -euo pipefail
# shellcheck source=test/lib/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/env.sh"

settings=()
flags=()
while getopts ac:m: opt; do
	case $opt in
	a) flags+=(PG_CFLAGS=-DUSE_ASSERT_CHECKING) ;;
	c) settings+=("$OPTARG") ;;
	m) flags+=("$OPTARG") ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || die "usage: with_server.sh [-a] [-c setting=value]… command…"

# The set-up must not eat what CMD is to read.
exec 3<&0 </dev/null

make_base
install_packages "${BUILD_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
choose_user
build build "${flags[@]}" || { cat "$BASE/build/build.log" >&2; die "the build failed"; }
use_build build
start_server server "${settings[@]}" || die "the server did not start"
"${AS[@]}" "$BINDIR/psql" -Xqc 'CREATE EXTENSION subdispatch'

rc=0
cd "$SRC"
if [ -t 3 ]; then
	# A program that talks to the terminal must be in its foreground.
	"${AS[@]}" "$@" <&3 || rc=$?
else
	run_job 0 "$@" <&3 || rc=$?
fi
stop_server || [ $rc -ne 0 ] || rc=1
exit $rc
