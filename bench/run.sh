#!/usr/bin/env bash
# Runs a benchmark on a throw-away server: bench/run.sh [dispatch_performance]
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:-dispatch_performance}
[ -f "bench/$name.sql" ] || { echo "no benchmark bench/$name.sql" >&2; exit 2; }
exec test/with_server.sh psql -X -f "bench/$name.sql"
