#!/bin/sh
# Runs a command with no network but loopback, where that is permitted; elsewhere says so and runs it.
if unshare -n ip link set lo up 2>/dev/null; then
  exec unshare -n sh -c 'ip link set lo up && exec "$@"' sh "$@"
fi
echo "without_network: needs root, unshare and ip; running with the network there is" >&2
exec "$@"
