#!/bin/bash
# make check: builds with assertions and without, and runs every suite on throw-away servers. A failure does not stop the
# suites after it. The last line counts what the runners reported: "N passed, N failed".
#
# With assertions: regression tests, isolation specs, TAP tests. As built for users: unit tests, clang's warnings, regression
# tests, isolation specs, and a short make demo. ASSERT=only or ASSERT=no runs all suites in the one build.
set -euo pipefail
# shellcheck source=test/lib/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/env.sh"
exec </dev/null

SUITE_TIMEOUT=${SUITE_TIMEOUT:-1800}
OUTPUT=$TOP/test/output

# Naming tests of a suite means that suite alone, unless TESTS says otherwise.
if [ -z "${TESTS:-}" ]; then
	TESTS="${REGRESS:+regress} ${ISOLATION:+isolation} ${PROVE_TESTS:+tap} ${UNIT_TESTS:+unit}"
	case $TESTS in *[a-z]*) ;; *) TESTS="regress isolation tap unit demo" ;; esac
fi
TESTS=${TESTS//[,|]/ }
for t in $TESTS; do
	case $t in regress | isolation | tap | unit | demo) ;; *) die "TESTS knows regress, isolation, tap, unit and demo, not $t" ;; esac
done
if [ -n "${SANITIZE:=}" ]; then ASSERT=only; fi
case ${ASSERT:=} in '' | no | only) ;; *) die "ASSERT is only or no" ;; esac

wanted() { [[ " $TESTS " = *" $1 "* ]]; }

passed=0
failed=0
summary=

# record WHAT PASSED FAILED SECONDS
record() {
	passed=$((passed + $2))
	failed=$((failed + $3))
	summary+=$(printf '%-34s %5d passed %5d failed %6d s' "$@")$'\n'
}

# keep FILE…: what a developer wants to see of a failure outlives the throw-away directory.
keep() {
	local dir=$OUTPUT/$1
	shift
	mkdir -p "$dir"
	cp -R --no-preserve=all "$@" "$dir/" 2>/dev/null || true
	chown -R --reference="$TOP" "$OUTPUT" 2>/dev/null || true
}

count() { grep -cE "$1" "$2" || true; }

# count_regress LOG: sets ok and bad. Until PostgreSQL 15 "test name ... ok 1 ms", afterwards TAP.
count_regress() {
	ok=$(count '( \.\.\. ok +[0-9]+ ms$|^ok [0-9]+ )' "$1")
	bad=$(count '( \.\.\. FAILED|^not ok [0-9]+ )' "$1")
}

# count_prove LOG: a test file that died, or whose plan was not kept, without a failed assertion is one failure.
count_prove() {
	local tests
	tests=$(sed -n 's/^Files=[0-9]*, Tests=\([0-9]*\),.*/\1/p' "$1" | tail -n 1)
	read -r bad not_ok < <(awk '
		/\(Wstat: [0-9]+.* Tests: [0-9]+ Failed: [0-9]+\)$/ {
			wstat = $0; sub(/.*Wstat: /, "", wstat)
			n = $0; sub(/.*Failed: /, "", n); n += 0
			not_ok += n
			open = (n == 0)
			bad += n
			if (open && wstat + 0 != 0) { bad++; open = 0 }
		}
		/^  (Parse errors|Non-zero)/ && open { bad++; open = 0 }
		END { print bad + 0, not_ok + 0 }' "$1")
	ok=$((${tests:-0} - not_ok))
}

# run_suite NAME BUILD DIR CMD…: runs, shows and counts one suite. DIR is where the runner leaves its findings.
run_suite() {
	local suite=$1 build=$2 dir=$3 label="$1 ($2)" log=$BASE/$2-$1.log rc=0 start=$SECONDS ok=0 bad=0 not_ok
	shift 3
	say "$label"
	# pg_regress gives up at the first test without expected output, and with it on all tests after that one.
	if [ "$dir" = . ] || [ "$dir" = output_iso ]; then
		# shellcheck disable=SC2016
		"${AS[@]}" bash -c 'for f in sql/*.sql test/isolation/specs/*.spec; do
			n=${f##*/} d=expected
			case $f in sql/subdispatch--*) continue ;; *.spec) d=test/isolation/expected ;; esac
			[ ! -e "$f" ] || [ -e "$d/${n%.*}.out" ] || { mkdir -p $d; touch "$d/${n%.*}.out"; }
		done'
	fi
	# shellcheck disable=SC2016
	run_job "$SUITE_TIMEOUT" bash -c 'set -o pipefail; log=$1; shift; "$@" 2>&1 | tee "$log"' bash "$log" "$@" || rc=$?
	if [ $rc = 124 ] || [ $rc = 137 ]; then
		say "$label: ended after $SUITE_TIMEOUT s"
		hang "$suite"
	fi
	case $suite in
	regress | isolation) count_regress "$log" ;;
	*) count_prove "$log" ;;
	esac
	if [ $rc -ne 0 ] && [ "$bad" = 0 ]; then bad=1; fi
	# A worker that died of an assertion is started again, and its test may never notice.
	if [ "$suite" = tap ] && grep -rs 'TRAP: ' "$SRC/tmp_check/log" >&2; then
		bad=$((bad + 1))
	fi
	if [ "$bad" != 0 ]; then
		if [ -s "$dir/regression.diffs" ]; then
			say "regression.diffs"
			head -n 300 "$dir/regression.diffs"
		fi
		if [ "$suite" = tap ]; then tap_tails "$log"; fi
		keep "$build-$suite" "$log" "$dir/regression.diffs" "$dir/results" "$SRC/tmp_check/log" ${SERVER_LOG:+"$SERVER_LOG"}
		say "$label: kept in ${OUTPUT#"$TOP"/}/$build-$suite"
	fi
	record "$label" "$ok" "$bad" $((SECONDS - start))
}

# hang SUITE: what was going on when a suite was ended.
hang() {
	local f
	if [ -n "$SERVER_LOG" ]; then
		"${AS[@]}" timeout 20 "$BINDIR/psql" -Xc "SELECT pid, backend_type, application_name, state, wait_event_type, wait_event,
			left(query, 100) AS query FROM pg_stat_activity ORDER BY backend_start" || true
	fi
	if [ "$1" = tap ]; then
		# shellcheck disable=SC2012
		f=$(ls -t "$SRC"/tmp_check/log/regress_log_* 2>/dev/null | head -n 1)
		if [ -n "$f" ]; then
			say "the end of ${f##*/}"
			tail -n 60 "$f"
		fi
	fi
}

# tap_tails LOG: the ends of the logs of the test files that prove calls failed.
tap_tails() {
	local name f
	sed -n 's|^\([^ ]*\)\.pl  *(Wstat: .*|\1|p' "$1" | sort -u | while read -r name; do
		name=$(basename "$name")
		for f in "$SRC/tmp_check/log/regress_log_$name" "$SRC/tmp_check/log/$name"_*.log; do
			[ -s "$f" ] || continue
			say "the end of ${f##*/}"
			tail -n 40 "$f"
		done
	done
}

# failed_step LABEL BUILD LOG…: a step that is no test, and failed.
failed_step() {
	local label=$1 build=$2
	shift 2
	tail -n 100 "$@" >&2 || true
	keep "$build" "$@"
	record "$label" 0 1 0
}

none() { say "$1: there are none"; }

# suites BUILD SUITE…
suites() {
	local build=$1 as=("${AS[@]}") suite mk
	shift
	use_build "$build"
	cd "$SRC"
	mk=(make -s --no-print-directory "PG_CONFIG=$BINDIR/pg_config")
	SERVER_LOG=
	for suite; do
		wanted "$suite" || continue
		case $suite in
		unit)
			if ! compgen -G 'test/unit/*_test.c' >/dev/null; then none unit; continue; fi
			run_suite unit "$build" test/unit "${mk[@]}" unitcheck COPT=-Werror ${UNIT_TESTS:+"UNIT_TESTS=$UNIT_TESTS"}
			;;
		tap)
			if ! compgen -G 'test/t/*.pl' >/dev/null; then none tap; continue; fi
			# they wait more than they compute
			run_suite tap "$build" tmp_check "${mk[@]}" tapcheck "PROVE_FLAGS=--timer -j $(($(nproc) < 4 ? 2 : 4)) ${PROVE_FLAGS:-}" \
				${PROVE_TESTS:+"PROVE_TESTS=$PROVE_TESTS"}
			;;
		regress | isolation)
			if [ -z "$SERVER_LOG" ] && ! start_server "server-$build"; then
				failed_step "server ($build)" "$build" "${SERVER_LOG:-$BASE/initdb.log}"
				SERVER_LOG=
				continue
			fi
			;;&
		regress)
			run_suite regress "$build" . "${mk[@]}" installcheck ISOLATION= ${REGRESS:+"REGRESS=$REGRESS"}
			;;
		isolation)
			if ! compgen -G 'test/isolation/specs/*.spec' >/dev/null; then none isolation; continue; fi
			run_suite isolation "$build" output_iso "${mk[@]}" installcheck REGRESS= ${ISOLATION:+"ISOLATION=$ISOLATION"}
			;;
		esac
	done
	if [ -n "$SERVER_LOG" ] && ! stop_server; then
		failed_step "server ($build)" "$build" "$SERVER_LOG"
	fi
	SERVER_LOG=
	AS=("${as[@]}")
}

# The command that the README begins with, as it is, and on two servers.
demo() {
	local start log label servers
	for servers in 1 2; do
		start=$SECONDS log=$BASE/demo-$servers.log label="demo (SERVERS=$servers)"
		say "$label"
		if SERVERS=$servers DURATION=5 CLIENTS=$((4 / servers)) SCALE=$((4 / servers)) bash "$TOP/test/demo/run.sh" >"$log" 2>&1; then
			tail -n $((1 + servers)) "$log"
			record "$label" 1 0 $((SECONDS - start))
		else
			failed_step "$label" demo "$log"
		fi
	done
}

clang_warnings() {
	local start=$SECONDS clang
	for clang in clang "$(sed -n 's/^CLANG *= *//p' "$(dirname "$("$PG_CONFIG" --pgxs)")/../Makefile.global")"; do
		command -v "$clang" >/dev/null && break
		clang=
	done
	if [ -z "$clang" ]; then
		say "clang is not installed: its warnings are not looked at"
		return
	fi
	say "clang's warnings"
	if ! run_job 600 make -s -C "$BASE/$1/src" "PG_CONFIG=$PG_CONFIG" CLANG_CHECK="$clang" clangcheck \
		>"$BASE/clang.log" 2>&1; then
		failed_step "clang's warnings" clang "$BASE/clang.log"
	fi
	say "clang's warnings: $((SECONDS - start)) s"
}

make_base
rm -rf "$OUTPUT"
install_packages "${BUILD_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
choose_user
if [ -n "$SANITIZE" ]; then
	"${AS[@]}" mkdir "$BASE/sanitizer"
	AS+=("UBSAN_OPTIONS=print_stacktrace=1:log_path=$BASE/sanitizer/report")
fi

builds=()
for b in assert plain; do
	case $ASSERT/$b in no/assert | only/plain) continue ;; esac
	flags=(COPT=-Werror)
	if [ $b = assert ]; then flags+=(PG_CFLAGS=-DUSE_ASSERT_CHECKING); fi
	if [ -n "$SANITIZE" ]; then flags+=("COPT=-O1 -fno-omit-frame-pointer -fsanitize=undefined"); fi
	say "build ($b)"
	start=$SECONDS
	if build $b "${flags[@]}"; then
		say "build ($b): $((SECONDS - start)) s"
		builds+=("$b")
	else
		failed_step "build ($b)" "$b" "$BASE/$b/build.log"
	fi
done

case " ${builds[*]} " in
*' plain '*) clang_warnings plain ;;
*' assert '*) clang_warnings assert ;;
esac
case " ${builds[*]} " in
' assert plain ')
	suites plain unit
	suites assert regress isolation tap
	suites plain regress isolation
	;;
' assert ') suites assert unit regress isolation tap ;;
' plain ') suites plain unit regress isolation tap ;;
esac

if wanted demo; then demo; fi

# Each process writes what the sanitizer finds in it to a file of its own.
if [ -n "$SANITIZE" ]; then
	mapfile -t reports < <(find "$BASE/sanitizer" -type f)
	if [ ${#reports[@]} != 0 ]; then failed_step sanitizer sanitizer "${reports[@]}"; fi
fi

if [ $((passed + failed)) = 0 ]; then
	say "no test was run"
	failed=1
fi
printf '\n%s\n%d passed, %d failed\n' "$summary" $passed $failed
[ $failed = 0 ]
