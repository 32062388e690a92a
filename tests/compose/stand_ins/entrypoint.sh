#!/bin/sh
# What the official images' entrypoints do of what docker-compose.yml needs: a database with a user and a password of a file.
set -eu
folder=/var/lib/postgresql/data
if [ "$1" = postgres ] && [ ! -s "$folder/PG_VERSION" ]; then
    initdb --pgdata "$folder" --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" --encoding UTF8 --auth-local trust
    echo 'host all all all scram-sha-256' >> "$folder/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB" | postgres --single -D "$folder" postgres
fi
[ "$1" != postgres ] || set -- postgres -D "$folder" -c 'listen_addresses=*' -c unix_socket_directories=/var/run/postgresql
exec "$@"
