#!/bin/sh
set -e
[ "$1" != upgrade ] || exit 0
for role in gateway chunkserver server; do
  systemctl disable --now localsnap-$role.service || true
done
