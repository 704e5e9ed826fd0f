#!/bin/sh
# Makes what compose.yaml needs beside the images: the secrets, in ./secrets or the folder given, and in .env beside it the user
# that owns them. Call it again after an upgrade: what is there and good stays.
set -eu
umask 077
cd "$(dirname "$0")/../.."
dir=${1:-secrets}
keys=$dir/keyset/keyset.json
mkdir -p "$dir/keyset"

# The sealing keys have a folder of their own, which compose.yaml mounts; the command makes some one level up.
if [ -e "$keys" ] && [ -e "$dir/keyset.json" ]; then
  echo "two sets of sealing keys, $dir/keyset.json and $keys: move away the one that is not in use" >&2
  exit 1
fi
go run ./services/cmd/crivo keys services --dir "$dir" >/dev/null
[ -e "$keys" ] || mv "$dir/keyset.json" "$keys"
rm -f "$dir/keyset.json" "$dir/keyset.json.lock"

# What the NATS servers of a cluster ask of each other.
routes=$dir/nats-routes.conf
if ! [ -s "$routes" ]; then
  password=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
  {
    echo "authorization { user: nats, password: \"$password\" }"
    echo "routes: [nats://nats:$password@nats:6222, nats://nats:$password@nats-2:6222, nats://nats:$password@nats-3:6222]"
  } >"$routes.new"
  mv "$routes.new" "$routes"
fi

# What is mounted into images that run as users of their own, should a strict umask have kept it from them.
find services/deploy -type f ! -perm -004 -exec chmod a+r {} +

# Containers run as whoever owns the secrets, and never as root.
env=$(dirname "$dir")/.env
uid=$(id -u) gid=$(id -g)
if [ "$uid" = 0 ]; then
  uid=65532 gid=65532
  chown -R "$uid:$gid" "$dir"
fi
grep -q '^CRIVO_UID=' "$env" 2>/dev/null || printf 'CRIVO_UID=%s\nCRIVO_GID=%s\n' "$uid" "$gid" >>"$env"

echo "$dir holds the secrets, $env their user. Keep a copy: without $keys nothing that was sealed can be read."
