#!/bin/sh
set -e
if ! getent passwd localsnap >/dev/null; then
  adduser --system --group --no-create-home --home /var/lib/localsnap localsnap
fi
systemctl daemon-reload || true
# Nothing is started: /etc/localsnap says first who is who.
