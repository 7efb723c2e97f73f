# shellcheck shell=bash
# The environment of make check, make demo and with_server.sh: packages, a build and a server that leave no trace.
#
# Nothing is written to the system's PostgreSQL. PostgreSQL finds its files relative to its own executable, so a directory
# with copies of the programs, and links to everything else, is an installation of its own, into which the extension is
# installed. Different builds, checkouts and runs so cannot meet, and no rights are needed but for missing packages.
#
# initdb and postgres refuse to run as root: started as root, all but the installation of packages is done as another user.
# That user may not be able to see the checkout, nor root want files of another user in it: the build is in a copy.

PG_MAJOR=${PG_MAJOR:-15}
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

BUILD_PACKAGES=(gcc libc6-dev pkg-config libjson-c-dev libhiredis-dev libssl-dev libkrb5-dev)
if [ -z "${PG_CONFIG:-}" ]; then
	BUILD_PACKAGES+=("postgresql-$PG_MAJOR" "postgresql-server-dev-$PG_MAJOR" "postgresql-plpython3-$PG_MAJOR")
fi

# redis-tools has the program of redis-server, without the service that redis-server would start.
TEST_PACKAGES=(perl libipc-run-perl python3-psycopg redis-tools openssl)

BASE=          # this run's directory; everything that a run makes is below it
AS=()          # the prefix that makes a command run as the unprivileged user, in a clean environment
JOB=           # process group of the running job
SRC=           # the build that use_build chose
BINDIR=        # its PostgreSQL

say() { printf '== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# A surrounding make, or somebody's own server, must not reach into the throw-away one.
clean_environment() {
	local v
	for v in ${!PG*}; do
		case $v in PG_*) ;; *) unset "$v" ;; esac
	done
	unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL CDPATH PYTHONPATH PYTHONHOME PERL5LIB PERL5OPT
	umask 022
}

install_packages() {
	local p missing=() sudo=()
	command -v apt-get >/dev/null || return 0
	for p; do
		if [ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" != installed ]; then missing+=("$p"); fi
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	if [ "$(id -u)" != 0 ]; then
		command -v sudo >/dev/null || die "these packages are missing, and there is no sudo to install them: ${missing[*]}"
		sudo=(sudo)
	fi
	say "installing ${missing[*]}"
	# One unreachable third-party repository must not stop what Debian's own can deliver.
	"${sudo[@]}" apt-get -qq update </dev/null || say "apt-get update failed; trying with the lists that are there"
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
		-o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=600 install "${missing[@]}" </dev/null >"$BASE/apt.log" 2>&1 || {
		tail -n 40 "$BASE/apt.log" >&2
		die "could not install ${missing[*]}"
	}
}

# Makes BASE, and sees to it that it goes, with every process of it, however this script ends.
make_base() {
	clean_environment
	BASE=$(mktemp -d "${TMPDIR:-/tmp}/subdispatch.XXXXXX")
	trap cleanup EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
}

# Call after install_packages: the user "postgres" comes with Debian's package.
choose_user() {
	local user group
	PG_CONFIG=${PG_CONFIG:-/usr/lib/postgresql/$PG_MAJOR/bin/pg_config}
	PG_CONFIG=$(command -v "$PG_CONFIG") || die "pg_config not found: install PostgreSQL's development files or set PG_CONFIG"
	if [ "$(id -u)" = 0 ]; then
		user=postgres
		id -u "$user" >/dev/null 2>&1 || user=nobody
		group=$(id -g "$user")
		chown "$user:$group" "$BASE"
		AS=(setpriv --reuid "$user" --regid "$group" --init-groups --)
		# A TMPDIR of root's own is of no use to anybody else.
		if ! "${AS[@]}" test -w "$BASE"; then
			rmdir "$BASE"
			BASE=$(mktemp -d /tmp/subdispatch.XXXXXX)
			chown "$user:$group" "$BASE"
		fi
	fi
	# The path of a Unix socket has at most 107 bytes.
	[ ${#BASE} -le 80 ] || die "TMPDIR is too long for a socket's path: $BASE"
	AS+=(env "HOME=$BASE" "TMPDIR=$BASE/tmp" LC_ALL=C.UTF-8 "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
	cd "$BASE" || exit
	"${AS[@]}" mkdir tmp
}

cleanup() {
	local rc=$? f
	trap - EXIT
	trap '' HUP INT TERM
	set +e
	[ -n "$BASE" ] && [ -d "$BASE" ] || exit "$rc"
	end_job
	find "$BASE" -name postmaster.pid 2>/dev/null | while read -r f; do
		"${AS[@]}" "$BINDIR/pg_ctl" -D "$(dirname "$f")" -m immediate -t 20 stop >/dev/null 2>&1 </dev/null
	done
	# What is still running from this run's copies of PostgreSQL has lost its postmaster, or is one that does not stop.
	for f in /proc/[0-9]*; do
		case $(readlink "$f/exe" 2>/dev/null) in "$BASE"/*) kill -KILL "${f#/proc/}" 2>/dev/null ;; esac
	done
	cd /
	if [ -n "${KEEP:-}" ]; then say "kept: $BASE"; else rm -rf "$BASE"; fi
	exit "$rc"
}

# run_job SECONDS CMD… runs a program in a process group of its own, so that an interrupt, which reaches this script at
# once instead of when CMD has ended, can end all of it. It ends after SECONDS (0: never) with status 124.
run_job() {
	local limit=$1 rc=0
	shift
	set -m
	timeout --kill-after=30 "$limit" "${AS[@]}" "$@" &
	JOB=$!
	set +m
	wait "$JOB" || rc=$?
	end_job
	return $rc
}

end_job() {
	local i
	[ -n "$JOB" ] || return 0
	kill -TERM -- "-$JOB" 2>/dev/null
	for i in {1..100}; do
		kill -0 -- "-$JOB" 2>/dev/null || break
		[ "$i" = 100 ] && kill -KILL -- "-$JOB" 2>/dev/null
		sleep 0.1
	done
	JOB=
}

# build NAME [MAKE-ARGUMENT…]: a copy of the checkout in BASE/NAME/src, built and installed into BASE/NAME/pg.
build() {
	local dir=$BASE/$1 src=$BASE/$1/src root=$BASE/$1/pg opt d
	shift
	"${AS[@]}" mkdir -p "$src" "$root"
	# All builds of a run are of one state of the checkout, in which somebody may be at work (tar's status 1).
	if [ ! -e "$BASE/tree.tar" ]; then
		tar -C "$TOP" -cf "$BASE/tree.tar" --exclude-vcs --exclude='*.o' --exclude='*.so' --exclude='*.bc' \
			--exclude=./test/output --exclude=./results --exclude=./output_iso --exclude=./tmp_check \
			--exclude='./regression.*' . || [ $? = 1 ] || return 1
	fi
	"${AS[@]}" tar -C "$src" --no-same-owner -x <"$BASE/tree.tar" || return 1

	# shellcheck disable=SC2016
	run_job 300 bash -c '
		set -euo pipefail
		pg_config=$1 root=$2
		bindir=$("$pg_config" --bindir)
		mkdir -p "$root$bindir"
		cp -L "$bindir"/* "$root$bindir/"
		for opt in --sharedir --pkglibdir; do
			d=$("$pg_config" $opt)
			mkdir -p "$root$d"
			cp -as "$d/." "$root$d/"
		done
		for opt in --pkgincludedir --includedir-server; do
			d=$("$pg_config" $opt)
			if [ ! -e "$root$d" ]; then mkdir -p "$root$(dirname "$d")"; ln -s "$d" "$root$d"; fi
		done
		# one that the system has must not be mistaken for this one
		rm -rf "$root$("$pg_config" --pkglibdir)"/subdispatch* "$root$("$pg_config" --sharedir)"/extension/subdispatch*
	' bash "$PG_CONFIG" "$root" || return 1
	opt=$root$("$PG_CONFIG" --bindir)/pg_config
	for d in sharedir pkglibdir; do
		[ "$("$opt" --$d)" = "$root$("$PG_CONFIG" --$d)" ] ||
			die "$PG_CONFIG: this PostgreSQL does not find its $d relative to its programs"
	done
	run_job 1200 make -s -C "$src" -j "$(nproc)" PG_CONFIG="$opt" "$@" all >"$dir/build.log" 2>&1 &&
		run_job 300 make -s -C "$src" PG_CONFIG="$opt" "$@" install >>"$dir/build.log" 2>&1
}

# use_build NAME: that build's programs and test modules are in the environment of AS from now on.
use_build() {
	local pgxs
	SRC=$BASE/$1/src
	BINDIR=$BASE/$1/pg$("$PG_CONFIG" --bindir)
	pgxs=$(dirname "$("$BINDIR/pg_config" --pgxs)")/../..
	AS+=("PATH=$BINDIR:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" "PG_CONFIG=$BINDIR/pg_config"
		"PG_REGRESS=$pgxs/src/test/regress/pg_regress" "PERL5LIB=$pgxs/src/test/perl:$SRC/test/perl" "TESTDIR=$SRC")
}

# start_server NAME [SETTING=VALUE…] starts a server in BASE/NAME and puts its address into the environment of AS.
start_server() {
	local dir=$BASE/$1 s
	shift
	DATADIR=$dir/data
	SERVER_LOG=$dir/server.log
	"${AS[@]}" mkdir -p "$dir"
	run_job 120 "$BINDIR/initdb" -D "$DATADIR" -U postgres -A trust -E UTF8 --locale=C --no-sync --no-instructions \
		>"$BASE/initdb.log" 2>&1 || { cat "$BASE/initdb.log" >&2; return 1; }
	{
		cat "$SRC/test/subdispatch.conf"
		printf "unix_socket_directories = '%s'\nport = 65432\n" "$dir"
		for s; do printf "%s = '%s'\n" "${s%%=*}" "${s#*=}"; done
	} | "${AS[@]}" tee -a "$DATADIR/postgresql.conf" >/dev/null
	"${AS[@]}" "$BINDIR/pg_ctl" -D "$DATADIR" -l "$SERVER_LOG" -w -t 60 start >"$BASE/start.log" 2>&1 </dev/null || {
		cat "$BASE/start.log" "$SERVER_LOG" >&2
		return 1
	}
	AS+=("PGHOST=$dir" PGPORT=65432 PGUSER=postgres PGDATABASE=postgres "PGDATA=$DATADIR")
}

# stop_server: fails if the server did not stop as it should, or if something crashed while it ran.
stop_server() {
	local rc=0
	"${AS[@]}" "$BINDIR/pg_ctl" -D "$DATADIR" -m fast -t 60 stop >/dev/null 2>&1 || {
		printf 'the server did not stop within 60 s:\n' >&2
		tail -n 20 "$SERVER_LOG" >&2
		"${AS[@]}" "$BINDIR/pg_ctl" -D "$DATADIR" -m immediate -t 20 stop >/dev/null 2>&1
		rc=1
	}
	if grep -E 'TRAP: |PANIC: |terminated by signal|terminated by exception' "$SERVER_LOG" >&2; then
		printf 'the server log tells of a crash\n' >&2
		rc=1
	fi
	return $rc
}
