#!/usr/bin/env bash
# Runs every fuzz target for the given time (default 30s).
set -euo pipefail
time=${1:-30s}
grep -rl --include=*_test.go '^func Fuzz' pkg streams services test | while read -r file; do
	dir=$(dirname "$file")
	grep -o '^func Fuzz[A-Za-z0-9_]*' "$file" | cut -c6- | while read -r target; do
		echo "$dir $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$dir"
	done
done
